"""Where a tensor came from, followed through the operations of one forward pass.

Two kinds of tensors are followed: those that are a norm's output, up to operations that commute with the
gain (`Scaled`), and those that are a parameter, up to a rearrangement of its axes (`Param`). `axis_map` says
for an operation that only rearranges, which axis of the result is which axis of its input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

AxisMap = Sequence[int | None]
"""For each axis of the result, the axis of the input that it is the whole of (or a part with nothing lost
but length), else None."""


@dataclass(frozen=True)
class Scaled:
    """`gain` (along `axis`, counted from the front) times something that does not depend on the gain.

    `pure`: only rearranged since it left the norm, so that the norm's bias is still simply added.
    """

    gain: str
    axis: int
    pure: bool = True


@dataclass(frozen=True)
class Param:
    """The parameter `name`; `axes[i]` is the parameter's axis that axis i of this tensor is, or None."""

    name: str
    axes: tuple[int | None, ...]


Label = Scaled | Param


def carry(label: Label, axis_map: AxisMap) -> Label | None:
    """The label after a rearrangement; None where the channels of a `Scaled` did not stay one whole axis."""
    if isinstance(label, Param):
        return Param(label.name, tuple(None if i is None else label.axes[i] for i in axis_map))
    if label.axis not in axis_map:
        return None
    return replace(label, axis=axis_map.index(label.axis))


def reshape_map(before: Sequence[int], after: Sequence[int]) -> AxisMap:
    """Axes that a reshape leaves whole, found by walking both shapes in groups of equal products."""
    result: list[int | None] = [None] * len(after)
    i = j = 0
    while i < len(before) and j < len(after):
        if before[i] == after[j]:
            result[j] = i
            i, j = i + 1, j + 1
        elif before[i] == 1:
            i += 1
        elif after[j] == 1:
            j += 1
        else:
            left, right = before[i], after[j]
            i, j = i + 1, j + 1
            while left != right:
                if left < right:
                    if i == len(before):
                        return result
                    left, i = left * before[i], i + 1
                else:
                    if j == len(after):
                        return result
                    right, j = right * after[j], j + 1
    return result


def _same(x: torch.Tensor, *_: Any, **__: Any) -> AxisMap:
    return list(range(x.ndim))


def _permute(x: torch.Tensor, dims: Sequence[int]) -> AxisMap:
    return [d % x.ndim for d in dims]


def _transpose(x: torch.Tensor, a: int, b: int) -> AxisMap:
    order = list(range(x.ndim))
    order[a], order[b] = order[b], order[a]
    return [*order]


def _t(x: torch.Tensor) -> AxisMap:
    return list(range(x.ndim))[::-1]


def _unsqueeze(x: torch.Tensor, dim: int) -> AxisMap:
    result: list[int | None] = list(range(x.ndim))
    result.insert(dim % (x.ndim + 1), None)
    return result


def _squeeze(x: torch.Tensor, dim: int | Sequence[int] | None = None) -> AxisMap:
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % x.ndim for d in dims if x.shape[d] == 1}
    return [i for i in range(x.ndim) if i not in gone]


def _expand(x: torch.Tensor, size: Sequence[int], **_: Any) -> AxisMap:
    return [None] * (len(size) - x.ndim) + [
        i if x.shape[i] == size[i - x.ndim] or size[i - x.ndim] == -1 else None for i in range(x.ndim)
    ]


def _view(x: torch.Tensor, size: Sequence[int], *_: Any, **__: Any) -> AxisMap:
    known = 1
    for s in size:
        known *= s if s != -1 else 1
    return reshape_map(x.shape, [s if s != -1 else x.numel() // max(known, 1) for s in size])


def _select(x: torch.Tensor, dim: int, _index: int) -> AxisMap:
    return [i for i in range(x.ndim) if i != dim % x.ndim]


def _part(x: torch.Tensor, dim: int) -> AxisMap:
    return [None if i == dim % x.ndim else i for i in range(x.ndim)]


def _slice(
    x: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> AxisMap:
    whole = (start is None or start == 0) and (end is None or end >= x.shape[dim]) and step == 1
    return _same(x) if whole else _part(x, dim)


def _split(x: torch.Tensor, _size: Any, dim: int = 0) -> AxisMap:
    return _part(x, dim)


def _index(x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> AxisMap | None:
    used = [i for i, index in enumerate(indices) if index is not None]
    if used != list(range(used[0], used[-1] + 1)):
        return None
    shape = torch.broadcast_shapes(*(indices[i].shape for i in used))  # type: ignore[union-attr]
    return [*range(used[0]), *[None] * len(shape), *range(used[-1] + 1, x.ndim)]


def _along(x: torch.Tensor, dim: int, *_: Any, **__: Any) -> AxisMap:
    return _part(x, dim)


def _roll(x: torch.Tensor, _shifts: Any, dims: Sequence[int] = ()) -> AxisMap:
    moved = {d % x.ndim for d in dims} if dims else set(range(x.ndim))
    return [None if i in moved else i for i in range(x.ndim)]


def _pad(x: torch.Tensor, pad: Sequence[int], value: float = 0.0) -> AxisMap | None:
    if value != 0:
        return None
    moved = {x.ndim - 1 - k // 2 for k, p in enumerate(pad) if p}
    return [None if i in moved else i for i in range(x.ndim)]


def _repeat(x: torch.Tensor, repeats: Sequence[int]) -> AxisMap:
    extra = len(repeats) - x.ndim
    return [None] * extra + [i if repeats[extra + i] == 1 else None for i in range(x.ndim)]


_aten = torch.ops.aten
REARRANGE: dict[Any, Callable[..., AxisMap | None]] = {
    _aten.alias.default: _same,
    _aten.detach.default: _same,
    _aten.clone.default: _same,
    _aten.contiguous.default: _same,
    _aten._to_copy.default: _same,
    _aten.lift_fresh.default: _same,
    _aten.t.default: _t,
    _aten.transpose.int: _transpose,
    _aten.permute.default: _permute,
    _aten.unsqueeze.default: _unsqueeze,
    _aten.squeeze.default: _squeeze,
    _aten.squeeze.dim: _squeeze,
    _aten.squeeze.dims: _squeeze,
    _aten.expand.default: _expand,
    _aten.view.default: _view,
    _aten._unsafe_view.default: _view,
    _aten.reshape.default: _view,
    _aten._reshape_alias.default: _view,
    _aten.select.int: _select,
    _aten.slice.Tensor: _slice,
    _aten.split.Tensor: _split,
    _aten.split_with_sizes.default: _split,
    _aten.unbind.int: lambda x, dim=0: _select(x, dim, 0),
    _aten.index.Tensor: _index,
    _aten.index_select.default: _along,
    _aten.roll.default: _roll,
    _aten.flip.default: lambda x, dims: _roll(x, None, dims),
    _aten.constant_pad_nd.default: _pad,
    _aten.repeat.default: _repeat,
}
"""Operations whose result is a rearrangement of their first argument."""

COMMUTES_UNARY = {_aten.neg.default, _aten.mul.Scalar, _aten.div.Scalar}
COMMUTES_BINARY = {_aten.mul.Tensor, _aten.div.Tensor, _aten.mul_.Tensor, _aten.div_.Tensor}
"""Multiplying by what does not depend on the gain commutes with the gain."""

SHAPE_ONLY = {
    _aten.empty_like.default,
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.new_zeros.default,
    _aten.new_empty.default,
    _aten.new_ones.default,
    _aten.new_full.default,
    _aten.full_like.default,
    _aten.sym_size.int,
}
"""Operations that look at their argument's shape and not at its values."""
