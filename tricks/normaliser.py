"""What a norm does to its input before its gain, measured on the module: the mean it takes off, and its ε.

A normaliser is x/√(mean(x²) + ε) along the last axis, or the same of x − mean(x). RMSNorm and LayerNorm in
all their spellings have this form, with or without a gain; dynamic tanh and gated norms have not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tricks.float64 import float64_arithmetic
from tricks.gains import Gain, Replica, measure_gain

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Normaliser:
    """`centres`: whether the mean is taken off first. `gain`: None where the module has no parameters."""

    centres: bool
    eps: float
    gain: Gain | None


def measure_normaliser(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Normaliser | None:
    """Run the norm's code on float64 numbers of our own and see which of the two forms it has.

    Args:
        module: a module without children, on any device, "meta" included.
        args, kwargs: what the model called it with; tensors give their shapes only.

    Returns:
        None where it has neither form, or reads more than one tensor.
    """
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
    if len(tensors) != 1 or not tensors[0].is_floating_point() or tensors[0].ndim < 2:
        return None
    gain = None
    if next(module.parameters(), None) is not None:
        gain = measure_gain(module, args, kwargs)
        if gain is None:
            return None
    with torch.no_grad(), float64_arithmetic():
        try:
            # At a variance near ε, ε shows; at a large one, that nothing else does.
            eps, centres = _eps(module, args, kwargs, gain, 1e-3)
            again, _ = _eps(module, args, kwargs, gain, 1.0)
        except Exception:  # noqa: BLE001 - a module that we cannot run alone is simply not measured
            return None
    short = float(f"{eps:.6g}")
    exact = abs(short - eps) <= 1e-6 * eps + 1e-18 and abs(again - eps) <= 1e-6 * eps + 1e-12
    return Normaliser(centres, short, gain) if exact and short >= 0 else None


def _eps(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], gain: Gain | None, scale: float
) -> tuple[float, bool]:
    replica = Replica(module, args, kwargs, scale)
    x = replica.inputs[0]
    values = {}
    if gain is not None:
        values[gain.weight] = torch.full_like(replica.vector(gain.weight), 1.0 - gain.offset)
        if gain.bias is not None:
            values[gain.bias] = torch.zeros_like(values[gain.weight])
    out = replica.call(values)
    if not isinstance(out, torch.Tensor) or out.shape != x.shape:
        raise ValueError("its output has another shape")
    for centres in (False, True):
        y = x - x.mean(-1, keepdim=True) if centres else x
        square = (y * y).sum(-1, keepdim=True) / (out * out).sum(-1, keepdim=True)
        if (out * square.sqrt() - y).abs().max() <= _TOLERANCE * y.abs().max():
            return float((square - (y * y).mean(-1, keepdim=True)).median()), centres
    raise ValueError("it is no normaliser")
