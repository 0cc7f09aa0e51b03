"""Layers of one kind are followed once, and what is said of the others is what following them says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from tests.tricks.small_models import COMMON, MLA, OMIT
from tricks import repeats
from tricks.families import classes
from tricks.model import Blueprint, build, read_wiring
from tricks.wiring import Wiring, trace

_TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 80, "head_dim": OMIT},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 4},
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": MLA,
    "bert": {"is_decoder": True},
    "t5": {"num_layers": 6, "d_model": 48, "d_kv": 12},
}


def _model(model_type: str) -> nn.Module:
    given = {**COMMON, "num_hidden_layers": 6, **_TYPES[model_type]}
    config = AutoConfig.for_model(model_type, **{k: v for k, v in given.items() if v is not OMIT})
    return build(Blueprint(next(iter(classes(model_type))), config), "meta", torch.float32)


def _one_by_one(monkeypatch: pytest.MonkeyPatch, model: nn.Module, inputs: dict[str, Any] | None) -> Wiring:
    with monkeypatch.context() as patch:
        patch.setattr(repeats, "_layers", lambda model: iter(()))
        return read_wiring(model) if inputs is None else trace(model, inputs)


@pytest.mark.parametrize("model_type", _TYPES)
def test_a_models_wiring_is_what_following_each_layer_shows(
    monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    model = _model(model_type)
    wiring = read_wiring(model)
    assert wiring.norms
    assert wiring == _one_by_one(monkeypatch, model, None)


def test_a_deep_model_runs_one_of_its_layers() -> None:
    model = _model("llama")
    ran: list[nn.Module] = []
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.self_attn.register_forward_hook(lambda module, args, out: ran.append(module))  # type: ignore[union-attr]
    read_wiring(model)
    assert len(ran) == 1
    assert all("forward" not in vars(layer) for layer in model.modules())


class _Layer(nn.Module):
    """A pre-norm layer, of which one may be odd in one way."""

    def __init__(self, number: int, oddity: str) -> None:
        super().__init__()
        self.layer_idx = number
        self.oddity = oddity
        self.scale = 2.0 if oddity == "setting" and number == 2 else 1.0
        self.norm, self.mlp = nn.RMSNorm(6), nn.Sequential(nn.Linear(6, 10, False), nn.Linear(10, 6, False))
        self.seen: list[int] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        if self.oddity == "number" and self.layer_idx == 2:
            h = torch.relu(h)
        if self.oddity == "remembers":
            self.seen = [1]
        if self.scale == 2.0:
            h = h.sin()
        return x + self.mlp(h)


class _Deep(nn.Module):
    def __init__(self, oddity: str = "") -> None:
        super().__init__()
        self.oddity = oddity
        self.layers = nn.ModuleList(_Layer(number, oddity) for number in range(5))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        for number, layer in enumerate(self.layers):
            given = x.transpose(0, 1) if self.oddity == "shape" and number == 2 else x
            x = layer(given)
            if self.oddity == "reads inside" and number == 3:
                x = x @ layer.mlp[0].weight.T @ layer.mlp[1].weight.T  # type: ignore[union-attr, index, operator]
        if self.oddity == "again":
            x = self.layers[3](x.relu())
        return {"logits": x}


@pytest.mark.parametrize("oddity", ["", "number", "setting", "remembers", "shape", "reads inside", "again"])
def test_an_odd_layer_is_followed_itself(monkeypatch: pytest.MonkeyPatch, oddity: str) -> None:
    with torch.device("meta"):
        model = _Deep(oddity)
        inputs = {"x": torch.zeros(3, 3, 6)}
    found = trace(model, inputs)
    assert found == _one_by_one(monkeypatch, model, inputs)
    odd = found.norms[2].blocks if oddity in ("number", "setting") else found.norms[3].blocks
    assert bool(odd) == (oddity in ("number", "setting", "reads inside"))
