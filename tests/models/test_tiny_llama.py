from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from models.evaluate import HELDOUT, MODEL, perplexity, tokens_of, trained, untrained

SHARDS = sorted(MODEL.glob("*.safetensors"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_is_a_llama_with_multi_head_attention_and_a_head_of_its_own() -> None:
    config = AutoConfig.from_pretrained(MODEL)
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.num_key_value_heads == config.num_attention_heads
    assert not config.tie_word_embeddings
    assert config.dtype == torch.bfloat16


def test_the_index_names_every_tensor_of_several_bfloat16_shards() -> None:
    index = json.loads((MODEL / "model.safetensors.index.json").read_text())
    found = {}
    for shard in SHARDS:
        with safe_open(shard, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                assert tensors.get_slice(name).get_dtype() == "BF16"
                found[name] = shard.name
    assert len(SHARDS) > 1
    assert found == index["weight_map"]
    assert sum(shard.stat().st_size for shard in SHARDS) < 10_000_000


def test_every_norm_gain_was_trained() -> None:
    gains = {name: weight for name, weight in trained().named_parameters() if weight.ndim == 1}
    assert len(gains) == 13
    for name, gain in gains.items():
        assert gain.std() > 0.05, name


@pytest.mark.parametrize("text", ["plain", "  indented\n\ttabs", "“starred” é 漢 🙂", ""])
def test_the_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_held_out_text_is_far_less_surprising_than_to_an_untrained_model(dtype: torch.dtype) -> None:
    tokens, start = tokens_of(HELDOUT.read_text(encoding="utf-8"))
    some = tokens[:4088]  # eight windows
    learned = perplexity(trained(dtype=dtype), some, start)
    assert learned < 40
    assert perplexity(untrained(dtype=dtype), some, start) > 40 * learned


def test_the_recorded_perplexity_is_the_one_measured_again() -> None:
    recorded = json.loads((MODEL / "training.json").read_text())["held-out perplexity as committed"]
    tokens, start = tokens_of(HELDOUT.read_text(encoding="utf-8"))
    assert len(tokens) == recorded["tokens"]
    assert perplexity(trained(), tokens, start) == pytest.approx(recorded["trained float32"], rel=1e-3)
