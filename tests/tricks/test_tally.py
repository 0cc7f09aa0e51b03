"""Checkpoints that do not hold what their config.json calls for, each refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tricks.small_models import save_model
from tricks import BadInput, Plan, make_plan, parse_trick, read_checkpoint

Tensors = dict[str, torch.Tensor]


def change(source: Path, edit: Callable[[Tensors], Any]) -> None:
    """Gather a model into one file and edit its tensors."""
    tensors = {k: v for file in source.glob("*.safetensors") for k, v in load_file(file).items()}
    for file in source.glob("model*"):
        file.unlink()
    edit(tensors)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})


def plan(source: Path) -> Plan:
    return make_plan(read_checkpoint(source), [parse_trick("flashnorm")])


def reconfigure(source: Path, **fields: Any) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    "name", ["model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.o_proj.weight"]
)
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    change(source, lambda tensors: tensors.pop(name))
    with pytest.raises(BadInput, match=f"no tensor {name}") as error:
        plan(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(47,), (1, 48)])
def test_a_gain_of_the_wrong_shape_is_named(shape: tuple[int, ...], tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    name = "model.layers.1.input_layernorm.weight"
    change(source, lambda tensors: tensors.update({name: torch.ones(shape, dtype=torch.float64)}))
    with pytest.raises(BadInput, match=rf"{name} has the shape .* where config.json calls for \[48\]"):
        plan(source)


@pytest.mark.parametrize("fields", [{"hidden_size": 96}, {"num_hidden_layers": 4}, {"intermediate_size": 81}])
def test_a_config_of_another_model_is_refused(fields: dict[str, int], tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    reconfigure(source, **fields)
    with pytest.raises(BadInput, match="different models"):
        plan(source)


def test_a_head_that_transformers_does_not_load_keeps_the_final_gain(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    extra = {"mtp.layers.0.norm.weight": torch.ones(48, dtype=torch.float64)}
    change(source, lambda tensors: tensors.update(extra))
    left = {place.where: place.detail for place in plan(source).places if not place.fits}
    assert list(left) == ["model.norm"]
    assert "mtp.layers.0.norm.weight" in left["model.norm"]


def test_values_that_old_versions_stored_are_no_heads(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6, dtype=torch.float64)}
    change(source, lambda tensors: tensors.update(extra))
    assert all(place.fits for place in plan(source).places)


def test_a_head_left_out_of_an_untied_model_is_missed(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama", tie_word_embeddings=True)
    assert plan(source).fits
    reconfigure(source, tie_word_embeddings=False)
    with pytest.raises(BadInput, match="no tensor lm_head"):
        plan(source)
