"""The tricks measured whole, at tiny sizes without a card: planned, built with random weights, decoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.gpu.geometry import GEMMA_7B, LLAMA_7B, PHI3_MINI, converted, planned, skipless, source
from benchmarks.gpu.other import CASES, approximate, both, case, live

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 64,
}
LLAMA = ("llama", SIZES)
TINY = {
    id(LLAMA_7B): LLAMA,
    id(PHI3_MINI): ("phi3", {**PHI3_MINI[1], **SIZES}),
    id(GEMMA_7B): ("gemma", {**SIZES, "head_dim": 16}),
}
POINTS = [(1, 16), (3, 16)]


@pytest.mark.parametrize(("name", "geometry", "trick"), {case[2]: case for case in CASES}.values())
def test_each_case_is_measured_before_and_after(name: str, geometry: Any, trick: str) -> None:
    rows = list(case(name, TINY[id(geometry)], trick, POINTS))
    assert [(row.get("refused"), row["batch"], row["context"]) for row in rows] == [
        (None, *p) for p in POINTS
    ]
    assert all(row["before_ms"] > 0 and row["after_ms"] > 0 for row in rows)


def test_models_with_a_cache_of_their_own_are_measured_after_a_prompt() -> None:
    whole, merged = (lambda: skipless(None, SIZES)), (lambda: skipless("q", SIZES))
    stock, state = (lambda: source(*LLAMA)), (lambda: approximate(LLAMA))
    for models in ((whole, merged), (stock, state)):
        assert all("speedup" in row for row in both("", "", models, POINTS, live))


@pytest.mark.parametrize("trick", ["matshrink", "precompute", "slim:residual=4"])
def test_few_layers_planned_are_as_many_planned(trick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deeper = ("llama", {**SIZES, "num_hidden_layers": 3})
    few = planned(*deeper, trick).config["tricksmith"]
    monkeypatch.setattr("benchmarks.gpu.geometry._FEW", {})
    whole = planned(*deeper, trick).config["tricksmith"]
    for layer in whole.get("slim", {}).get("layers", []):
        layer["feedback"] = True  # conversions fit it, and there is nothing to fit to here
    assert few == whole


def test_each_head_keeps_channels_of_its_own() -> None:
    model, plan = converted(*LLAMA, "matshrink")
    index = model.model.layers[1].self_attn.v_proj.index_0
    assert plan.fits
    assert all(len(set(row.tolist())) == len(row) for row in index)
    assert not torch.equal(index[0], index[1])
