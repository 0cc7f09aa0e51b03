"""Norm biases that need a bias slot which only the architecture's configuration has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.tricks.small_models import OMIT, logits, save_model
from tricks import convert, make_plan, parse_trick, read_checkpoint

STABLELM = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 24}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "stablelm": (STABLELM, {"use_qkv_bias": True}, 3),
    "nemotron": ({}, {"attention_bias": True, "mlp_bias": True}, 6),
    "falcon": ({"head_dim": OMIT}, {"bias": True}, 3),
}
"""Model type -> its configuration, the switches that the plan turns on, and how many norms fold then."""


@pytest.mark.parametrize("model_type", CASES)
def test_a_bias_is_given_a_slot_where_the_architecture_has_one(model_type: str, tmp_path: Path) -> None:
    fields, switches, folded = CASES[model_type]
    source, out = save_model(tmp_path / "source", model_type, **fields), tmp_path / "out"
    plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
    assert sum(place.fits for place in plan.places) >= folded
    convert(plan, source, out)
    config = json.loads((out / "config.json").read_text())
    assert {key: config[key] for key in switches} == switches
    before, after = logits(source), logits(out)
    assert ((before - after).abs().max() / before.abs().max()).item() <= 1e-9


def test_no_switch_is_touched_that_helps_no_norm(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "stablelm", use_qkv_bias=True, **STABLELM)
    plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
    assert plan.savings["bias_elements_added"] == 0
    convert(plan, source, tmp_path / "out")
    names: set[str] = set()
    for folder in (source, tmp_path / "out"):
        found = {key for file in folder.glob("*.safetensors") for key in load_file(file)}
        assert not names or found == names
        names = found


def test_a_llama_gets_no_bias(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    plan = make_plan(read_checkpoint(source), [parse_trick("flashnorm")])
    assert "attention_bias" not in plan.config
    assert plan.savings["bias_elements_added"] == 0
