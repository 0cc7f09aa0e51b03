"""What a fork server does before the first fork, so that no child has to do it again.

Libraries load much when it is first needed. One tiny job here, on a CPU, with random weights of our own, and
every child finds it loaded: that halves what a small job costs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from evals import compare
from tricks import convert, make_plan, parse_trick, read_checkpoint


def warm_up() -> None:
    """Plan, convert and compare a model of a few thousand weights."""
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # a process with threads cannot be forked
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    with tempfile.TemporaryDirectory(prefix="tricksmith-") as scratch:
        source, out = Path(scratch) / "source", Path(scratch) / "out"
        model = LlamaForCausalLM(config)
        model.bfloat16().save_pretrained(source)
        plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
        convert(plan, source, out)
        compare(source, out, tokens=32, device="cpu")
