"""What a norm does with its gain and bias, measured on the module and not guessed from its name.

A module is a norm for our purposes when its output is `base(x) ⊙ (offset + weight) + bias` along the last
axis, with `base` independent of both: offset 0 is the plain convention, offset 1 the one-plus convention of
the Gemma family. RMSNorm, LayerNorm, gated norms and dynamic tanh all have this form.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from tricks.float64 import float64_arithmetic

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Gain:
    """A norm's gain: parameter names within the module, and the convention (`offset` 0 or 1)."""

    weight: str
    bias: str | None
    offset: float


def is_candidate(module: nn.Module) -> bool:
    """Whether `module` holds nothing but one or two vectors (and perhaps scalars): the shape of every norm."""
    own = list(module.parameters(recurse=False))
    if not own or any(True for child in module.children() for _ in child.parameters()):
        return False
    vectors = [p for p in own if p.ndim == 1 and p.numel() > 1]
    return 1 <= len(vectors) <= 2 and all(p.ndim <= 1 for p in own)


def measure_gain(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gain | None:
    """Measure the convention by perturbing the weights and looking at the output, in float64.

    Args:
        module: the norm, on any device, "meta" included.
        args, kwargs: what the model called it with; tensors give their shapes only.

    Returns:
        The gain, or None if the module is not of the form above.
    """
    generator = torch.Generator().manual_seed(0)

    def sample(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if not value.is_floating_point():
            return torch.zeros(value.shape, dtype=value.dtype)
        return torch.randn(value.shape, generator=generator, dtype=torch.float64)

    # A shallow copy with tensors of its own: the hooks that watch the original must not see these calls.
    norm = copy.copy(module)
    parameters = {
        name: torch.empty(p.shape, dtype=torch.float64) for name, p in module.named_parameters(recurse=False)
    }
    norm.__dict__["_parameters"] = parameters
    norm.__dict__["_buffers"] = {name: sample(b) for name, b in module.named_buffers(recurse=False)}
    args, kwargs = tree_map(sample, (args, kwargs))
    vectors = [name for name, p in parameters.items() if p.ndim == 1 and p.numel() > 1]

    def output(**values: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(values[name]) if name in values else p.fill_(0.5)
        out = norm.forward(*args, **kwargs)
        return out if isinstance(out, torch.Tensor) else torch.empty(0)

    def vector(name: str) -> torch.Tensor:
        return 0.5 + torch.rand(parameters[name].shape, generator=generator, dtype=torch.float64)

    with torch.no_grad(), float64_arithmetic():
        try:
            for weight in vectors:
                others = [name for name in vectors if name != weight]
                bias = others[0] if others else None
                zero = {bias: torch.zeros_like(parameters[bias], dtype=torch.float64)} if bias else {}
                w1, w2 = vector(weight), vector(weight)
                out1, out2 = output(**{weight: w1}, **zero), output(**{weight: w2}, **zero)
                if out1.ndim < 1 or out1.shape[-1] != w1.numel():
                    continue
                for offset in (0.0, 1.0):
                    error = (out1 * (offset + w2) - out2 * (offset + w1)).abs().max()
                    if error > _TOLERANCE * out1.abs().max() or not out1.abs().max() > 0:
                        continue
                    if bias is None:
                        return Gain(weight, None, offset)
                    b = vector(bias)
                    shift = output(**{weight: w1, bias: b}) - out1
                    if (shift - b).abs().max() <= _TOLERANCE * (out1.abs().max() + 1):
                        return Gain(weight, bias, offset)
        except Exception:  # noqa: BLE001 - a module we cannot run alone is simply not measured
            return None
    return None
