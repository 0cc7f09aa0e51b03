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
from torch.utils._pytree import tree_leaves, tree_map

from tricks.float64 import float64_arithmetic

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Gain:
    """A norm's gain: parameter names within the module, and the convention (`offset` 0 or 1)."""

    weight: str
    bias: str | None
    offset: float


def is_candidate(module: nn.Module) -> bool:
    """Whether `module` holds nothing but one or two vectors (and perhaps scalars), as every norm does."""
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
    with torch.no_grad(), float64_arithmetic():
        try:
            replica = Replica(module, args, kwargs)
            for weight in replica.vectors:
                gain = _convention(replica, weight)
                if gain is not None:
                    return gain
        except Exception:  # noqa: BLE001 - a module we cannot run alone is simply not measured
            return None
    return None


class Replica:
    """A norm's code with float64 values of our own, called as the model called it."""

    def __init__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], scale: float = 1.0
    ) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._scale = scale
        # A shallow copy with tensors of its own: the hooks that watch the original must not see these calls.
        self._norm = copy.copy(module)
        self._parameters = {
            name: torch.empty(p.shape, dtype=torch.float64)
            for name, p in module.named_parameters(recurse=False)
        }
        absent = {name: None for name, p in module._parameters.items() if p is None}
        self._norm.__dict__["_parameters"] = self._parameters | absent
        buffers = {name: self._sample(b) for name, b in module.named_buffers(recurse=False)}
        self._norm.__dict__["_buffers"] = buffers
        self._args, self._kwargs = tree_map(self._sample, (args, kwargs))
        self.inputs = [x for x in tree_leaves((self._args, self._kwargs)) if isinstance(x, torch.Tensor)]
        self.vectors = [name for name, p in self._parameters.items() if p.ndim == 1 and p.numel() > 1]

    def _sample(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if not value.is_floating_point():
            return torch.zeros(value.shape, dtype=value.dtype)
        noise = torch.randn(value.shape, generator=self._generator, dtype=torch.float64)
        return self._scale * noise

    def vector(self, name: str) -> torch.Tensor:
        """Random values in [0.5, 1.5) for one of the vectors."""
        noise = torch.rand(self._parameters[name].shape, generator=self._generator, dtype=torch.float64)
        return 0.5 + noise

    def output(self, values: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """The output with these vectors, every other parameter at 0.5; None if it is not channel-last."""
        out = self.call(values)
        channels = max(v.numel() for v in values.values())
        usable = isinstance(out, torch.Tensor) and out.ndim > 0 and out.shape[-1] == channels
        return out if usable else None

    def call(self, values: dict[str, torch.Tensor]) -> Any:
        """Whatever the module returns with these vectors, every other parameter at 0.5."""
        for name, p in self._parameters.items():
            if name in values:
                p.copy_(values[name])
            else:
                p.fill_(0.5)
        return self._norm.forward(*self._args, **self._kwargs)


def _convention(replica: Replica, weight: str) -> Gain | None:
    others = [name for name in replica.vectors if name != weight]
    bias = others[0] if others else None
    zero = {bias: torch.zeros_like(replica.vector(bias))} if bias else {}
    w1, w2 = replica.vector(weight), replica.vector(weight)
    out1, out2 = replica.output({weight: w1, **zero}), replica.output({weight: w2, **zero})
    if out1 is None or out2 is None or not out1.abs().max() > 0:
        return None
    for offset in (0.0, 1.0):
        if (out1 * (offset + w2) - out2 * (offset + w1)).abs().max() > _TOLERANCE * out1.abs().max():
            continue
        if bias is None:
            return Gain(weight, None, offset)
        b = replica.vector(bias)
        shifted = replica.output({weight: w1, bias: b})
        if shifted is not None and (shifted - out1 - b).abs().max() <= _TOLERANCE * (out1.abs().max() + 1):
            return Gain(weight, bias, offset)
    return None
