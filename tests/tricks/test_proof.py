"""The small model that shows a plan's places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tricks import Checkpoint, Trick, make_plan, proof
from tricks.checkpoint import TensorInfo
from tricks.layout import saved_shapes
from tricks.model import Blueprint, build


def test_a_norm_that_every_layer_reads_is_shown_by_a_model_of_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model("t5", num_layers=6, num_decoder_layers=6, d_model=64, d_kv=8, d_ff=64)
    tried: list[Any] = []
    first_tried = proof._try

    def counted(plan: Any, blueprint: Blueprint) -> tuple[float, bool]:
        tried.append(blueprint.config.num_decoder_layers)
        return first_tried(plan, blueprint)

    monkeypatch.setattr(proof, "_try", counted)
    plan = make_plan(headers(config), [Trick("flashnorm")])
    assert any("EncDecAttention" in place.detail for place in plan.places if place.fits)
    assert len(tried) == 1, tried
    assert tried[0] < 6


def headers(config: Any) -> Checkpoint:
    architecture = "T5ForConditionalGeneration"
    tensors, place = {}, 0
    shapes = saved_shapes(build(Blueprint(architecture, config), "meta", torch.float32))
    for name, shape in shapes.items():
        size = 4 * shape.numel()
        tensors[name] = TensorInfo(name, "model.safetensors", "F32", tuple(shape), place, place + size)
        place += size
    stored = {**config.to_dict(), "architectures": [architecture]}
    return Checkpoint("t5", stored, tensors, ("model.safetensors",))
