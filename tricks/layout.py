"""From a model's parameters to the tensors of its checkpoint: names, and which axis is which.

A checkpoint need not look like the module: experts are stored one by one, projections fused or apart, names
prefixed. transformers knows how to save each model back into its checkpoint's layout. We run that conversion
on shapes alone, after giving each axis we care about a length of its own that nothing else in the model has:
wherever that length turns up, there the axis went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from tricks.checkpoint import Checkpoint

_MARK = 10_000_019
"""Longer than any axis of any model."""

FLOATS = ("F64", "F32", "BF16", "F16")
"""safetensors dtypes of weights that can be computed with."""


@dataclass(frozen=True)
class Axis:
    """One axis of one checkpoint tensor."""

    tensor: str
    axis: int


def locate(
    model: nn.Module, checkpoint: Checkpoint, axes: Mapping[str, tuple[int, int]]
) -> dict[int, tuple[Axis, ...]]:
    """Where the marked axes of parameters are in the checkpoint.

    Args:
        model: the model on the meta device.
        checkpoint: its headers.
        axes: parameter name -> (axis, mark); several parameters may share a mark, a small number.

    Returns:
        mark -> the checkpoint's axes. A mark is missing if one of its parameters could not be found there.
    """
    state = {name: p.detach() for name, p in model.state_dict(keep_vars=True).items()}
    wanted = _shapes(state, axes)
    try:
        saved = revert_weight_conversion(model, wanted)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - parameters of different marks were to be fused: none of it can be placed
        return {}
    prefix: str = getattr(model, "base_model_prefix", "")
    found: dict[int, list[Axis]] = {}
    lost: set[int] = set()
    for name, tensor in saved.items():
        for axis, size in enumerate(tensor.shape):
            if size < _MARK:
                continue
            mark = size - _MARK
            key = key_of(name, prefix, checkpoint)
            if key is None or not _fits(checkpoint.tensors[key].shape, tensor.shape, axis):
                lost.add(mark)
            else:
                found.setdefault(mark, []).append(Axis(key, axis))
    marks = {mark for _, mark in axes.values()}
    placed = {mark for mark in marks - lost if mark in found}
    return {mark: tuple(sorted(set(found[mark]), key=lambda a: a.tensor)) for mark in placed}


def stored_whole(model: nn.Module, checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, str | None]:
    """For each parameter of `names` the checkpoint tensor that is the whole of it, or None.

    None where the checkpoint splits, joins or rearranges the parameter, or does not hold it.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    found = locate(model, checkpoint, {name: (0, mark) for mark, name in enumerate(names)})
    result: dict[str, str | None] = {}
    for mark, name in enumerate(names):
        axes = found.get(mark, ())
        whole = len(axes) == 1 and axes[0].axis == 0
        same = whole and len(checkpoint.tensors[axes[0].tensor].shape) == len(shapes[name])
        result[name] = axes[0].tensor if same else None
    return result


def saved_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Tensor name -> shape, for all that transformers saves of a model on the meta device."""
    stock: Any = model
    tied = set(getattr(stock, "all_tied_weights_keys", {}))
    state = {
        name: p.detach() for name, p in model.named_parameters(remove_duplicate=False) if name not in tied
    }
    return {name: tensor.shape for name, tensor in revert_weight_conversion(stock, state).items()}


def _shapes(
    state: Mapping[str, torch.Tensor], axes: Mapping[str, tuple[int, int]]
) -> dict[str, torch.Tensor]:
    result = dict(state)
    for name, (axis, mark) in axes.items():
        if name in state:
            shape = list(state[name].shape)
            shape[axis] = _MARK + mark
            result[name] = torch.empty(shape, device="meta")
    return result


def key_of(name: str, prefix: str, checkpoint: Checkpoint) -> str | None:
    """The checkpoint's key of a name that transformers saves, with or without the base model's prefix."""
    for candidate in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
        if candidate in checkpoint.tensors:
            return candidate
    return None


def _fits(stored: tuple[int, ...], shape: torch.Size, marked: int) -> bool:
    return len(stored) == len(shape) and all(
        s == t for i, (s, t) in enumerate(zip(stored, shape, strict=True)) if i != marked
    )
