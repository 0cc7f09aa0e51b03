"""Models that are no plain causal LM: what they return must not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from tests.tricks.small_models import COMMON
from tricks import Plan, convert, make_plan, parse_trick, read_checkpoint
from tricks.float64 import float64_arithmetic
from tricks.inputs import sample_inputs
from tricks.model import Blueprint, build
from tricks.small import randomise

TEXT = {**COMMON, "num_labels": 3}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
WHISPER = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_source_positions": 20,
    "max_target_positions": 20,
    "num_mel_bins": 8,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
MODERNBERT = {**TEXT, "num_hidden_layers": 2}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "T5ForConditionalGeneration": ("t5", T5, 10),
    "WhisperForConditionalGeneration": ("whisper", WHISPER, 6),
    "LlamaModel": ("llama", TEXT, 6),
    "LlamaForSequenceClassification": ("llama", TEXT, 6),
    "LlamaForTokenClassification": ("llama", TEXT, 6),
    "Qwen3Model": ("qwen3", TEXT, 6),
    "ModernBertForMaskedLM": ("modernbert", MODERNBERT, 3),
    "BertModel": ("bert", TEXT, 0),
}
"""Class -> model type, configuration, and how many norms can be folded at least."""


def outputs(folder: Path, architecture: str) -> dict[str, torch.Tensor]:
    model = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float64)
    inputs = next(iter(sample_inputs(model, seed=3)))
    with torch.no_grad(), float64_arithmetic():
        result = model.double().eval()(**inputs)
    return {
        k: v
        for k, v in result.items()
        if isinstance(v, torch.Tensor) and v.is_floating_point() and k != "encoder_last_hidden_state"
    }


@pytest.mark.parametrize("architecture", CASES)
def test_what_a_model_returns_does_not_change(architecture: str, tmp_path: Path) -> None:
    model_type, fields, least = CASES[architecture]
    config = AutoConfig.for_model(model_type, **fields)
    model: Any = build(Blueprint(architecture, config), "cpu", torch.float64)
    randomise(model)
    model.save_pretrained(tmp_path / "source")
    plan: Plan = make_plan(read_checkpoint(tmp_path / "source"), [parse_trick("flashnorm")])
    assert plan.architecture == architecture
    assert sum(place.fits for place in plan.places) >= least
    convert(plan, tmp_path / "source", tmp_path / "out")
    before, after = outputs(tmp_path / "source", architecture), outputs(tmp_path / "out", architecture)
    assert before
    for name, value in before.items():
        assert ((value - after[name]).abs().max() / value.abs().max()).item() <= 1e-9


@pytest.mark.parametrize("architecture", ["LlamaModel", "LlamaForSequenceClassification"])
def test_an_embedding_keeps_its_last_gain(architecture: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model("llama", **TEXT)
    model: Any = build(Blueprint(architecture, config), "cpu", torch.float64)
    model.save_pretrained(tmp_path / "source")
    plan = make_plan(read_checkpoint(tmp_path / "source"), [parse_trick("flashnorm")])
    left = [place.where for place in plan.places if not place.fits]
    assert left == ["norm" if architecture == "LlamaModel" else "model.norm"]
