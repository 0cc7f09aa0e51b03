"""Wiring: which norm feeds which linears, found by running the model's own modelling code without weights.

The model is built on the "meta" device and run once on two sequences of token ids. Every operation passes
through a dispatch mode that follows the outputs of the norms and the parameters (see `labels`), and notes

- each matrix product that contracts a norm's output with a parameter, and along which of its axes, and
- every other operation that reads a norm's output: a reason why its gain cannot move there.

No table of names is involved, so an architecture that transformers learns tomorrow is read the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from tricks.answers import Answers
from tricks.gains import Gain, is_candidate, measure_gain
from tricks.labels import (
    COMMUTES_BINARY,
    COMMUTES_UNARY,
    REARRANGE,
    SHAPE_ONLY,
    AxisMap,
    Label,
    Param,
    Scaled,
    carry,
)
from tricks.noted import Consumer, Norm, Noted
from tricks.repeats import Repeats
from tricks.shapes import ShapeMemory

_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm.default: (0, 1),
    _aten.bmm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.baddbmm.default: (1, 2),
    torch.ops.aten._grouped_mm.default: (0, 1),
}
"""Matrix products: positions of the two factors."""

_VIEWS = (_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default)
_SUMS = (_aten.add.Tensor, _aten.add_.Tensor, _aten.sub.Tensor, _aten.sub_.Tensor)


@dataclass
class Wiring:
    """What one forward pass showed of a model.

    `bias_slots` maps a weight parameter to the bias parameter that is added to its product.
    """

    norms: list[Norm]
    unmeasured: list[str]
    bias_slots: dict[str, str]

    def foldable(self, norm: Norm) -> str | None:
        """None if the norm's gain can move into its consumers, else the reason why not, in words."""
        if norm.blocks:
            return "; ".join(norm.blocks)
        if not norm.consumers:
            return "no linear layer reads its output"
        if norm.bias is not None:
            if norm.scaled_between:
                return "its output is rescaled before the linear layers, so its bias cannot move"
            without = sorted(c.param for c in norm.consumers if c.param not in self.bias_slots)
            if without:
                return f"its bias has nowhere to go: {_listed(without)} has no bias"
        return None


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class Tracer(TorchDispatchMode):
    """Follows norms' outputs and parameters through everything that runs within it."""

    def __init__(self, model: nn.Module, high: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.answers = Answers(high)
        self._shapes = ShapeMemory()
        self.noted = Noted()
        # Every parameter and gain that an operation has met.
        self.met: set[str] = set()
        self._labels: dict[int, Label] = {}
        # Labels are kept by identity, so no labelled tensor may be freed and its id used again.
        self._alive: list[torch.Tensor] = []
        # Products of a norm's output and a weight, to which that weight's bias may still be added.
        self._products: dict[int, str] = {}
        self._model = model
        self._inside: nn.Module | None = None
        self._measured: dict[Any, Gain | None] = {}
        self._handles: list[Any] = []
        for name, p in model.named_parameters():
            self._note(p, Param(name, tuple(range(p.ndim))))
        self._modules = {id(m): name for name, m in model.named_modules()}
        for module in model.modules():
            if is_candidate(module):
                self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._leave, with_kwargs=True))

    def run(self, inputs: Mapping[str, Any]) -> None:
        """Run the model once on `inputs`, following everything."""
        try:
            with torch.no_grad(), self, Repeats(self, self._model):
                output = self._model(**inputs)
        finally:
            for handle in self._handles:
                handle.remove()
        for name, value in output.items():
            # What the encoder returned is passed along for a next call, and means nothing by itself.
            label = self._label(value)
            if isinstance(label, Scaled) and not name.startswith("encoder_"):
                self.noted.norms[label.gain].block(f"its output is what the model returns as {name}")

    def follows(self, tensor: torch.Tensor) -> bool:
        """Whether anything is known of where `tensor` came from."""
        return id(tensor) in self._labels or id(tensor) in self._products

    # --- norms -----------------------------------------------------------------------------------

    @property
    def outside_norms(self) -> bool:
        return self._inside is None

    def leave_norms(self) -> None:
        """Forget the norm that an exception has ended."""
        self._inside = None

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._inside is None:
            self._inside = module
            for leaf in tree_leaves((args, kwargs)):
                label = self._label(leaf)
                if isinstance(label, Scaled):
                    self.met.add(label.gain)
                    self.noted.norms[label.gain].block(f"{self._modules[id(module)]} reads its output")

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._inside is not module:
            return
        self._inside = None
        name = self._modules[id(module)]
        self.noted.reached.update(self._name(p) for p in module.parameters())
        gain = self._measure(module, args, kwargs)
        if gain is None or not isinstance(output, torch.Tensor):
            if name not in self.noted.unmeasured:
                self.noted.unmeasured.append(name)
            return
        weight = getattr(module, gain.weight)
        key = self._name(weight)
        if key not in self.noted.norms:
            bias = self._name(getattr(module, gain.bias)) if gain.bias else None
            self.noted.norms[key] = Norm(name, key, bias, gain.offset, weight.numel())
        self._note(output, Scaled(key, output.ndim - 1))

    def _measure(self, module: nn.Module, args: Any, kwargs: Any) -> Gain | None:
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, bool, tuple))}
        shapes = [tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in tree_leaves((args, kwargs))]
        key = (
            type(module),
            repr(plain),
            repr(shapes),
            repr([(n, tuple(p.shape)) for n, p in module.named_parameters()]),
        )
        if key not in self._measured:
            with torch.utils._python_dispatch._disable_current_modes():
                self._measured[key] = measure_gain(module, args, kwargs)
        return self._measured[key]

    # --- labels ----------------------------------------------------------------------------------

    def _note(self, tensor: torch.Tensor, label: Label) -> None:
        self._labels[id(tensor)] = label
        self._alive.append(tensor)

    def _label(self, value: Any) -> Label | None:
        return self._labels.get(id(value)) if isinstance(value, torch.Tensor) else None

    def _name(self, parameter: torch.Tensor) -> str:
        label = self._labels[id(parameter)]
        assert isinstance(label, Param)
        return label.name

    # --- operations ------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = self.answers.to(func, args)
        if answer is not None:
            return answer(args[0])
        out = self._shapes.run(func, args, kwargs)
        if self._inside is not None or func in SHAPE_ONLY:
            return out
        labels: dict[int, Label] = {}
        self._collect(args, labels)
        self._collect(kwargs.values(), labels)
        if args and id(args[0]) in self._products and func in _VIEWS:
            self._product_of(out, self._products[id(args[0])])
        if labels:
            params = [label.name for label in labels.values() if isinstance(label, Param)]
            self.noted.reached.update(params)
            self.met.update(params)
            self.met.update(label.gain for label in labels.values() if isinstance(label, Scaled))
            self._follow(func, args, kwargs, out, labels)
        return out

    def _collect(self, values: Iterable[Any], labels: dict[int, Label]) -> None:
        for value in values:
            if isinstance(value, torch.Tensor):
                if (label := self._labels.get(id(value))) is not None:
                    labels[id(value)] = label
            elif isinstance(value, (list, tuple)):
                self._collect(value, labels)

    def _follow(self, func: Any, args: Any, kwargs: Any, out: Any, labels: dict[int, Label]) -> None:
        if func in _PRODUCTS:
            self._product(func, args, out)
        elif func is _aten.convolution.default and not args[6]:
            self._convolution(args, out)
        elif func in REARRANGE and isinstance(args[0], torch.Tensor) and id(args[0]) in labels:
            self._rearrange(func, args, kwargs, out, labels)
        elif func in COMMUTES_UNARY and id(args[0]) in labels:
            self._commute(args[0], out, labels[id(args[0])], func)
        elif func in COMMUTES_BINARY:
            self._multiply(func, args, out)
        elif self._is_bias(func, args):
            pass
        elif func in _SUMS or func is _aten.cat.default:
            self._combine(func, args, out, labels)
        else:
            self._block(func, labels)

    def _block(self, func: Any, labels: dict[int, Label], what: str | None = None) -> None:
        name = func.overloadpacket.__name__
        operation = what or f"its output goes into {name.strip('_')}, not a linear layer"
        for label in labels.values():
            if isinstance(label, Scaled):
                self.noted.norms[label.gain].block(operation)
            else:
                self.noted.others.setdefault(label.name, name)

    def _rearrange(self, func: Any, args: Any, kwargs: Any, out: Any, labels: dict[int, Label]) -> None:
        label = labels[id(args[0])]
        axis_map: AxisMap | None = REARRANGE[func](*args, **{k: v for k, v in kwargs.items() if k == "value"})
        results = out if isinstance(out, (list, tuple)) else [out]
        carried = None if axis_map is None else carry(label, axis_map)
        if carried is None:
            self._block(func, {0: label}, "its channels are taken apart before any linear layer reads them")
            return
        for result in results:
            self._note(result, carried)

    def _commute(self, x: torch.Tensor, out: torch.Tensor, label: Label, func: Any) -> None:
        if isinstance(label, Scaled):
            self.noted.norms[label.gain].scaled_between = True
            self._note(out, replace(label, axis=label.axis + out.ndim - x.ndim, pure=False))
        else:
            self._block(func, {0: label})

    def _multiply(self, func: Any, args: Any, out: torch.Tensor) -> None:
        pairs = ((args[0], args[1]), (args[1], args[0]))
        scaled = [(x, y) for x, y in pairs if isinstance(self._label(x), Scaled)]
        divides = func in (_aten.div.Tensor, _aten.div_.Tensor)
        if len(scaled) == 1 and not (divides and scaled[0][0] is args[1]):
            x, other = scaled[0]
            label = self._label(x)
            assert isinstance(label, Scaled)
            self._commute(x, out, label, func)
            rest = self._label(other)
            if rest is not None:
                self._block(func, {0: rest})
            return
        self._block(func, {id(x): label for x in args[:2] if (label := self._label(x)) is not None})

    def _product_of(self, out: torch.Tensor, weight: str) -> None:
        self._products[id(out)] = weight
        self._alive.append(out)

    def _is_bias(self, func: Any, args: Any) -> bool:
        """Whether this adds a vector to the product with a weight: its bias, in an operation of its own."""
        if func not in _SUMS[:2] or len(args) < 2 or not isinstance(args[1], torch.Tensor):
            return False
        weight, label = self._products.get(id(args[0])), self._label(args[1])
        if weight is None or not isinstance(label, Param) or label.axes != (0,):
            return False
        if self.noted.bias_slots.setdefault(weight, label.name) != label.name:
            self.noted.others.setdefault(label.name, "add")
        return True

    def _combine(self, func: Any, args: Any, out: torch.Tensor, labels: dict[int, Label]) -> None:
        """Sums and concatenations of values that all carry the same gain still carry it."""
        joined = func is _aten.cat.default
        operands = list(args[0]) if joined else list(args[:2])
        found = [self._label(x) for x in operands]
        both = zip(found, operands, strict=True)
        gains = {(f.gain, f.axis - x.ndim) for f, x in both if isinstance(f, Scaled)}
        if all(isinstance(f, Scaled) for f in found) and len(gains) == 1:
            gain, axis = gains.pop()
            dim = (args[1] if len(args) > 1 else 0) % out.ndim if joined else None
            if dim != axis + out.ndim:
                pure = joined and all(isinstance(f, Scaled) and f.pure for f in found)
                self.noted.norms[gain].scaled_between |= not pure
                self._note(out, Scaled(gain, axis + out.ndim, pure))
                return
        what = "its output is added to the residual stream or another tensor" if not joined else None
        self._block(func, labels, what)

    def _product(self, func: Any, args: Any, out: torch.Tensor) -> None:
        first, second = (args[i] for i in _PRODUCTS[func])
        self._contract(func, first, first.ndim - 1, second, second.ndim - 2, out)
        if func in (_aten.addmm.default, _aten.baddbmm.default):
            self._bias(args[0], first, second)

    def _bias(self, bias: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
        label = self._label(bias)
        weights = [w for w in (self._label(first), self._label(second)) if isinstance(w, Param)]
        if isinstance(label, Param) and len(weights) == 1 and None not in label.axes:
            self.noted.bias_slots[weights[0].name] = label.name
        elif label is not None:
            self._block(_aten.add.Tensor, {0: label})

    def _convolution(self, args: Any, out: torch.Tensor) -> None:
        x, weight, bias, groups = args[0], args[1], args[2], args[8]
        if groups == 1:
            self._contract(_aten.convolution.default, x, 1, weight, 1, out)
            if bias is not None:
                self._bias(bias, x, weight)
            return
        found = {id(t): label for t in (x, weight, bias) if (label := self._label(t)) is not None}
        self._block(_aten.convolution.default, found)

    def _contract(
        self, func: Any, a: torch.Tensor, a_axis: int, b: torch.Tensor, b_axis: int, out: torch.Tensor
    ) -> None:
        for x, x_axis, y, y_axis in ((a, a_axis, b, b_axis), (b, b_axis, a, a_axis)):
            label, other = self._label(x), self._label(y)
            if isinstance(label, Param):
                contracted = isinstance(other, Scaled) and other.axis == y_axis
                gain = other.gain if isinstance(other, Scaled) and contracted else None
                self.noted.products[label.name].add((label.axes[x_axis], gain))
            elif isinstance(label, Scaled):
                norm = self.noted.norms[label.gain]
                if label.axis != x_axis:
                    norm.block("its tokens, not its channels, are mixed by a matrix product")
                elif not isinstance(other, Param):
                    norm.block("its output is multiplied with activations, not with a weight")
                elif (axis := other.axes[y_axis]) is None:
                    norm.block(f"{other.name} is rearranged before the product")
                else:
                    norm.consumers.add(Consumer(other.name, axis))
                    self._product_of(out, other.name)

    # --- result ----------------------------------------------------------------------------------

    def wiring(self) -> Wiring:
        """Everything seen so far, with consumers that serve others too turned into reasons."""
        for norm in self.noted.norms.values():
            for consumer in sorted(norm.consumers, key=lambda c: c.param):
                if consumer.param in self.noted.others:
                    use = self.noted.others[consumer.param]
                    what = "the token embedding" if use == "embedding" else f"an operation ({use})"
                    norm.block(f"{consumer.param} is shared with {what}, which must not change")
                elif self.noted.products[consumer.param] != {(consumer.axis, norm.gain)}:
                    norm.block(f"{consumer.param} also reads something that is not this norm's output")
            for name in (norm.gain, norm.bias):
                if name is not None and (name in self.noted.others or name in self.noted.products):
                    norm.block(f"{name} is used outside the norm")
            if norm.bias is not None:
                shared = [
                    c.param for c in norm.consumers if self.noted.bias_slots.get(c.param) in self.noted.others
                ]
                for param in shared:
                    norm.block(f"the bias of {param} is used elsewhere too")
            if (idle := self._idle_beside(norm)) is not None:
                norm.block(f"{idle} beside it did not run on text alone and may read its output")
        return Wiring(list(self.noted.norms.values()), self.noted.unmeasured, self.noted.bias_slots)

    @cached_property
    def _all_reached(self) -> bool:
        return all(self._name(p) in self.noted.reached for p in self._model.parameters())

    def _idle_beside(self, norm: Norm) -> str | None:
        """A parameter under the norm's parent that no operation touched, towers of their own left aside.

        Experts for images, or a branch that only long inputs take, could read the norm's output unseen.
        """
        if self._all_reached:
            return None
        parent = self._model.get_submodule(norm.module.rpartition(".")[0])
        towers = [m for m in parent.modules() if isinstance(m, PreTrainedModel) and m is not parent]
        apart = {id(p) for tower in towers for p in tower.parameters()}
        return next(
            (
                name
                for p in parent.parameters()
                if id(p) not in apart and (name := self._name(p)) not in self.noted.reached
            ),
            None,
        )


def trace(model: nn.Module, inputs: Mapping[str, Any]) -> Wiring:
    """Run `model` on `inputs` (keyword arguments, on the model's device) and read its wiring."""
    tracer = Tracer(model)
    tracer.run(inputs)
    if tracer.answers.asked:
        other = Tracer(model, high=True)
        # The other answers may be ones that the code refuses; then there is no branch behind them.
        with suppress(Exception):
            other.run(inputs)
            tracer.noted.join(other.noted)
    return tracer.wiring()
