"""Who writes to a residual stream, and who reads it.

Every product with a weight, every lookup in an embedding and every norm's output is labelled with the
parameter (or norm) that wrote it, sums with all of theirs. What ends in nothing but sums and norms that take
the mean off is a residual stream, whose writers may lose their mean along the channels.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from tricks.labels import REARRANGE, Param, carry
from tricks.normaliser import Normaliser
from tricks.watch import Watch

_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm.default: (0, 1, None),
    _aten.bmm.default: (0, 1, None),
    _aten.addmm.default: (1, 2, 0),
    _aten.baddbmm.default: (1, 2, 0),
}
"""Matrix products: positions of the two factors and of what is added."""

_SUMS = {_aten.add.Tensor, _aten.add_.Tensor, _aten.sub.Tensor}
_SCALES = {_aten.mul.Tensor, _aten.mul_.Tensor, _aten.div.Tensor, _aten.div_.Tensor, _aten.neg.default}


@dataclass(frozen=True)
class Writer:
    """What writes: a parameter, along `axis` of it, or (axis None) the output of the module `name`."""

    name: str
    axis: int | None


@dataclass(frozen=True)
class Stream:
    """A tensor that is a sum of what `writers` wrote, its channels along `axis`; `also`: of what else."""

    writers: frozenset[Writer]
    axis: int
    also: str | None = None


class Streams(Watch):
    """What one pass shows: the stream that each norm `reads`, writers that something else reads (`blocked`),
    the embedding modules that look writers up (`lookups`), and all `uses` of each parameter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.reads: dict[str, list[Stream | None]] = defaultdict(list)
        self.blocked: dict[Writer, str] = {}
        self.lookups: dict[Writer, str] = {}
        self.uses: dict[str, set[int | None]] = defaultdict(set)
        """Parameter -> the axes along which it writes; None for any other use."""
        self._labels: dict[int, Stream | Param] = {}
        self._alive: list[torch.Tensor] = []
        for name, parameter in model.named_parameters():
            self._note(parameter, Param(name, tuple(range(parameter.ndim))))
        for module in self.names:
            if isinstance(module, nn.Embedding):
                self.handles.append(module.register_forward_hook(self._looked_up))
            elif isinstance(module, PreTrainedModel) and module is not model:
                self.handles.append(module.register_forward_hook(lambda m, a, out: self.returns(out)))

    def _note(self, tensor: torch.Tensor, label: Stream | Param) -> None:
        self._labels[id(tensor)] = label
        self._alive.append(tensor)  # labels go by identity, so what is labelled must live on

    def _label(self, value: Any) -> Stream | Param | None:
        return self._labels.get(id(value)) if isinstance(value, torch.Tensor) else None

    # --- modules -----------------------------------------------------------------------------------

    def _looked_up(self, module: nn.Module, args: Any, output: Any) -> None:
        label = self._label(output)
        if isinstance(label, Stream) and len(label.writers) == 1:
            self.lookups[next(iter(label.writers))] = self.names[module]

    def enters(self, name: str, normaliser: Normaliser, x: torch.Tensor) -> None:
        label = self._stream(x)
        if normaliser.centres:
            self.reads[name].append(label)
        elif label is not None:
            self._block(label, f"{name} reads it with its mean")

    def leaves(self, name: str, normaliser: Normaliser, out: torch.Tensor) -> None:
        self._note(out, Stream(frozenset({Writer(name, None)}), out.ndim - 1))

    def returns(self, output: Any) -> None:
        for leaf in tree_leaves(output):
            label = self._label(leaf)
            if isinstance(label, Stream):
                self._block(label, "the model returns it")

    # --- operations --------------------------------------------------------------------------------

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if not any(self._label(x) is not None for x in tree_leaves((args, kwargs))):
            return
        if func is _aten.embedding.default and isinstance(self._label(args[0]), Param):
            self._write(args[0], 1, out, out.ndim - 1)
        elif func in _PRODUCTS:
            self._product(*_PRODUCTS[func], args, out)
        elif func in REARRANGE and self._label(args[0]) is not None:
            self._rearrange(func, args, kwargs, out)
        elif func in _SUMS:
            self._add(args, out)
        elif func in _SCALES:
            self._scale(func, args, out)
        elif func is _aten.sum.dim_IntList:
            self._sum(args, out)
        else:
            self._other(func, args, kwargs)

    def _write(self, weight: torch.Tensor, axis: int, out: torch.Tensor, channels: int) -> None:
        """`weight`, a parameter, writes `out`: axis `axis` of it becomes the axis `channels`."""
        label = self._label(weight)
        assert isinstance(label, Param)
        along = label.axes[axis]
        self.uses[label.name].add(along)
        if along is not None:
            self._note(out, Stream(frozenset({Writer(label.name, along)}), channels))

    def _product(self, first: int, second: int, added: int | None, args: Any, out: torch.Tensor) -> None:
        x, weight = args[first], args[second]
        left, right = self._label(x), self._label(weight)
        for label in (left, right):
            if isinstance(label, Stream):
                self._block(label, "a linear layer or another product reads it")
            elif label is not None and isinstance(left, Param) and isinstance(right, Param):
                self.uses[label.name].add(None)
        if isinstance(right, Param) and not isinstance(left, Param):
            self._write(weight, weight.ndim - 1, out, out.ndim - 1)
        elif isinstance(left, Param) and not isinstance(right, Param):
            self._write(x, x.ndim - 2, out, out.ndim - 2)
        if added is None:
            return
        bias, product = self._stream(args[added]), self._label(out)
        if bias is not None and isinstance(product, Stream):
            self._note(out, replace(product, writers=product.writers | bias.writers, also=bias.also))
        elif isinstance(product, Stream):
            self._note(out, replace(product, also="something that no parameter writes"))
        elif bias is not None:
            self._block(bias, "a product of activations is added to it")

    def _rearrange(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        label = self._label(args[0])
        given = {key: value for key, value in kwargs.items() if key == "value"}
        axis_map = REARRANGE[func](*args, **given)
        for part in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(label, Param) and axis_map is not None:
                moved = carry(label, axis_map)
                assert isinstance(moved, Param)
                self._note(part, moved)
            elif isinstance(label, Stream) and axis_map is not None and label.axis in axis_map:
                self._note(part, replace(label, axis=list(axis_map).index(label.axis)))
            elif isinstance(label, Stream):
                self._block(label, "its channels are taken apart")
            elif label is not None:
                self.uses[label.name].add(None)

    def _stream(self, x: Any) -> Stream | None:
        """`x` as a stream with its channels last; a parameter that is added as it is writes too."""
        label = self._label(x)
        if isinstance(label, Stream):
            if label.axis == x.ndim - 1:
                return label
            self._block(label, "its channels are not the last axis")
            return None
        if isinstance(label, Param) and label.axes and label.axes[-1] is not None:
            self.uses[label.name].add(label.axes[-1])
            return Stream(frozenset({Writer(label.name, label.axes[-1])}), x.ndim - 1)
        return None

    def _add(self, args: Any, out: torch.Tensor) -> None:
        found = [self._stream(x) for x in args[:2]]
        whole = all(isinstance(x, torch.Tensor) and x.shape[-1:] == out.shape[-1:] for x in args[:2])
        streams = [stream for stream in found if stream is not None]
        if not streams:
            return
        complete = whole and len(streams) == 2
        also = next((s.also for s in streams if s.also), None)
        also = also or (None if complete else "something that no parameter writes")
        self._note(out, Stream(frozenset().union(*(s.writers for s in streams)), out.ndim - 1, also))

    def _scale(self, func: Any, args: Any, out: torch.Tensor) -> None:
        x, *rest = args
        symmetric = func in (_aten.mul.Tensor, _aten.mul_.Tensor)
        if symmetric and isinstance(self._label(rest[0]), Stream) and not isinstance(self._label(x), Stream):
            x, rest = rest[0], [x]
        label = self._label(x)
        by = rest[0] if rest else 1.0
        per_token = not isinstance(by, torch.Tensor) or by.ndim == 0 or by.shape[-1] == 1
        if isinstance(label, Stream) and label.axis == x.ndim - 1 and per_token and x.shape == out.shape:
            self._note(out, label)
            args = rest
        self._other(func, args, {})

    def _sum(self, args: Any, out: torch.Tensor) -> None:
        label = self._label(args[0])
        dims = {dim % args[0].ndim for dim in args[1] or ()}
        if isinstance(label, Stream) and dims and label.axis not in dims and out.ndim != args[0].ndim:
            self._note(out, replace(label, axis=label.axis - sum(dim < label.axis for dim in dims)))
        else:
            self._other(_aten.sum.dim_IntList, args, {})

    def _other(self, func: Any, args: Any, kwargs: Any) -> None:
        for x in tree_leaves((args, kwargs)):
            label = self._label(x)
            if isinstance(label, Param):
                self.uses[label.name].add(None)
            elif label is not None:
                self._block(label, f"{func.overloadpacket.__name__.strip('_')} reads it")

    def _block(self, label: Stream, reason: str) -> None:
        for writer in label.writers:
            self.blocked.setdefault(writer, reason)
