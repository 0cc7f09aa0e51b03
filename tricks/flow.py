"""Where the scale of each RMSNorm goes: which linear layers read the norm, and what then reads them.

A norm's output is s·x with one s per token. The layers' outputs carry s as a factor until something other
than a rearrangement reads them. Two readers matter: another norm, behind which the factor is gone
(proposition 3), and anything else, for which it must be there.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from tricks.labels import REARRANGE, AxisMap
from tricks.normaliser import Normaliser
from tricks.watch import Watch, is_linear

_aten = torch.ops.aten
_SAME = {_aten.alias.default, _aten.detach.default, _aten.clone.default, _aten.contiguous.default}


@dataclass(frozen=True)
class Carried:
    """A tensor with the factor s of `norm`.

    `linear` is the layer that it went through (None: it is the norm's output itself), `first` and `last` the
    columns of that layer's output that it holds, which run along `axis` as long as that is one axis.
    `tokens` are the axes at which the norm's leading axes stand; `call` counts the calls of the norm.
    """

    norm: str
    linear: str | None
    first: int
    last: int
    axis: int | None
    tokens: tuple[int, ...]
    call: int


@dataclass(frozen=True)
class End:
    """Columns `first` to `last` of a linear layer, and what reads them: a norm (`axes`: where its input has
    the tokens), or something else (None)."""

    first: int
    last: int
    norm: str | None
    axes: tuple[int, ...] = ()


class Flow(Watch):
    """What one pass shows: `readers` of each norm, `ends` of each reader, and `strays`: why not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.readers: dict[str, set[str]] = defaultdict(set)
        self.ends: dict[str, set[End]] = defaultdict(set)
        self.strays: dict[str, str] = {}
        self.inputs: dict[str, set[str | None]] = defaultdict(set)
        """For each norm and reader, the norms whose factor its inputs carry; None for an input with none."""
        self._calls: dict[str, int] = defaultdict(int)
        self._labels: dict[int, Carried] = {}
        self._alive: list[torch.Tensor] = []
        self._reading: nn.Module | None = None
        for module in self.names:
            if is_linear(module):
                self.handles.append(module.register_forward_pre_hook(self._reads))
                self.handles.append(module.register_forward_hook(self._has_read))
            elif isinstance(module, PreTrainedModel) and module is not model:
                self.handles.append(module.register_forward_hook(lambda m, a, out: self.returns(out)))

    def _note(self, tensor: torch.Tensor, label: Carried) -> None:
        self._labels[id(tensor)] = label
        self._alive.append(tensor)  # labels go by identity, so what is labelled must live on

    def _label(self, value: Any) -> Carried | None:
        return self._labels.get(id(value)) if isinstance(value, torch.Tensor) else None

    # --- modules -----------------------------------------------------------------------------------

    def enters(self, name: str, normaliser: Normaliser, x: torch.Tensor) -> None:
        label = self._label(x)
        along_last = label is not None and x.ndim - 1 not in label.tokens
        self.inputs[name].add(label.norm if label is not None and label.linear and along_last else None)
        if label is None:
            return
        self._check_call(label)
        if label.linear is None:
            self._stray(label.norm, f"{name} reads its output")
        elif along_last:
            self.ends[label.linear].add(End(label.first, label.last, name, label.tokens))
        else:
            self.ends[label.linear].add(End(label.first, label.last, None))

    def leaves(self, name: str, normaliser: Normaliser, out: torch.Tensor) -> None:
        if not normaliser.centres:
            last = out.ndim - 1
            self._calls[name] += 1
            whole = Carried(name, None, 0, out.shape[-1], last, tuple(range(last)), self._calls[name])
            self._note(out, whole)

    def _reads(self, module: nn.Module, args: Any) -> None:
        label = self._label(args[0]) if args else None
        direct = label is not None and label.linear is None
        self.inputs[self.names[module]].add(label.norm if label is not None and direct else None)
        if label is not None and direct:
            self._check_call(label)
            self._reading = module

    def _has_read(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if self._reading is not module:
            return
        self._reading = None
        label = self._label(args[0])
        assert label is not None
        name = self.names[module]
        self.readers[label.norm].add(name)
        self._note(output, replace(label, linear=name, last=output.shape[-1]))

    def _check_call(self, label: Carried) -> None:
        if label.call != self._calls[label.norm]:
            self._stray(label.norm, "it is called again before its first output is read")

    def returns(self, output: Any) -> None:
        for leaf in tree_leaves(output):
            label = self._label(leaf)
            if label is not None:
                self._end(label, "the model returns its output")

    # --- operations --------------------------------------------------------------------------------

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if self._reading is not None:
            return
        labels = [label for x in tree_leaves((args, kwargs)) if (label := self._label(x)) is not None]
        if not labels:
            return
        label = self._label(args[0])
        if label is not None and func in _SAME:
            self._note(out, label)
        elif label is not None and label.linear is not None and func in REARRANGE:
            self._rearrange(func, args, kwargs, out, label)
        else:
            for label in labels:
                operation = func.overloadpacket.__name__.strip("_")
                self._end(label, f"its output goes into {operation}, not straight into a linear layer")

    def _rearrange(self, func: Any, args: Any, kwargs: Any, out: Any, label: Carried) -> None:
        given = {key: value for key, value in kwargs.items() if key == "value"}
        axis_map: AxisMap | None = REARRANGE[func](*args, **given)
        parts = list(out) if isinstance(out, (list, tuple)) else [out]
        split = _Split.of(func, args, label)
        done = label.first
        for part in parts:
            moved = None if axis_map is None else _moved(label, axis_map)
            if split is not None and moved is not None:
                first = label.first + split.first if split.first is not None else done
                done = first + part.shape[split.axis]
                moved = replace(moved, first=first, last=done, axis=split.axis)
            if moved is None:
                self._end(label, "")
            else:
                self._note(part, moved)

    def _end(self, label: Carried, reason: str) -> None:
        if label.linear is None:
            self._stray(label.norm, reason)
        else:
            self.ends[label.linear].add(End(label.first, label.last, None))

    def _stray(self, norm: str, reason: str) -> None:
        self.strays.setdefault(norm, reason)


def _moved(label: Carried, axis_map: AxisMap) -> Carried | None:
    """The label after a rearrangement; None where an axis of the tokens did not stay whole."""
    places = list(axis_map)
    if not all(axis in places for axis in label.tokens):
        return None
    axis = places.index(label.axis) if label.axis is not None and label.axis in places else None
    return replace(label, axis=axis, tokens=tuple(places.index(axis) for axis in label.tokens))


@dataclass(frozen=True)
class _Split:
    """A cut along the columns: their axis, and the first column where the operation names one."""

    axis: int
    first: int | None

    @staticmethod
    def of(func: Any, args: Any, label: Carried) -> _Split | None:
        if label.axis is None:
            return None

        def rest(position: int, default: int) -> int:
            value = args[position] if len(args) > position else None
            return default if value is None else int(value)

        if func is _aten.slice.Tensor and rest(1, 0) % args[0].ndim == label.axis and rest(4, 1) == 1:
            start = rest(2, 0)
            return _Split(label.axis, start if start >= 0 else start + args[0].shape[label.axis])
        cuts = func in (_aten.split.Tensor, _aten.split_with_sizes.default)
        if cuts and rest(2, 0) % args[0].ndim == label.axis:
            return _Split(label.axis, None)
        return None
