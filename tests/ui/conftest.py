"""The models that the faces are tried on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# For the processes that the tests start: on few cores, threads that spin for each other cost more than
# they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_TINY = Path(__file__).resolve().parents[2] / "models" / "tiny-llama"


@pytest.fixture(scope="session")
def model() -> Path:
    """The trained model of the repo."""
    return _TINY


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of one narrow layer, quick to verify, with the trained one's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    vocabulary = LlamaConfig.from_pretrained(_TINY).vocab_size
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    network = LlamaForCausalLM(config)
    for name, weight in network.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    folder = tmp_path_factory.mktemp("small-model")
    network.to(torch.bfloat16).save_pretrained(folder)
    for file in _TINY.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder
