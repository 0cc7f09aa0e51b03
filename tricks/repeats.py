"""A model's layers of one kind are followed once: what was noted of the first holds of the others.

A layer stands for another only where nothing could make them run differently: they are of one kind (see
`kinds`), they are called with the same plain values and with tensors of the same shapes in which nothing is
followed, no operation in it meets a parameter or gain of elsewhere, and it runs without knowing which layer
it is. Any other layer is followed itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from tricks.gains import is_candidate
from tricks.kinds import PLAIN, AskedForNumber, kind_of, without_number
from tricks.noted import Noted

if TYPE_CHECKING:
    from tricks.wiring import Tracer

_PLAIN = (*PLAIN, torch.Size)


@dataclass(frozen=True)
class _Layer:
    """A layer that its siblings may stand for; `path` ends in a dot."""

    path: str
    number: int
    module: nn.Module
    params: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """What following one layer has shown, and what it returned."""

    layer: _Layer
    noted: Noted
    answers: int
    leaves: list[tuple[torch.Size, tuple[int, ...], torch.dtype] | None]
    spec: TreeSpec


class Repeats:
    """Stands in for the `forward` of a model's layers while a tracer follows it."""

    def __init__(self, tracer: Tracer, model: nn.Module) -> None:
        self._tracer = tracer
        self._runs: dict[Hashable, _Run | None] = {}
        self._layers = list(_layers(model))

    def __enter__(self) -> None:
        for layer in self._layers:
            forward = layer.module.forward
            stand_in = wraps(forward)(partial(self._call, layer, forward))
            layer.module.forward = stand_in

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            del layer.module.forward

    def _call(self, layer: _Layer, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tracer = self._tracer
        given = self._given(args, kwargs)
        if given is None or not tracer.outside_norms or tracer.noted.knows(layer.params):
            return forward(*args, **kwargs)
        key = (kind_of(layer.module, layer.number), given, tracer.answers.last)
        if key not in self._runs:
            self._runs[key] = None  # for this layer's own call, if it calls itself
            try:
                with without_number(layer.module, layer.number):
                    out, self._runs[key] = self._follow(layer, forward, args, kwargs)
            except AskedForNumber:
                tracer.leave_norms()
                return forward(*args, **kwargs)
            if kind_of(layer.module, layer.number) != key[0]:
                self._runs[key] = None  # it remembers something of its run
            return out
        run = self._runs[key]
        return forward(*args, **kwargs) if run is None else self._repeat(run, layer)

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        """What a layer is called with; None where it is more than plain values and tensors not followed."""
        parts: list[Hashable] = [len(args), *kwargs]
        return tuple(parts) if all(map(partial(self._add, parts), (*args, *kwargs.values()))) else None

    def _add(self, parts: list[Hashable], value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            parts.append((value.shape, value.stride(), value.dtype))
            return type(value) is torch.Tensor and value.is_meta and not self._tracer.follows(value)
        if type(value) is tuple:
            parts.append(len(value))
            return all(self._add(parts, each) for each in value)
        parts.append((type(value), value) if isinstance(value, _PLAIN) else None)
        return isinstance(value, _PLAIN)

    def _follow(
        self, layer: _Layer, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, _Run | None]:
        """What the layer returns, and its run if another may be taken for it."""
        tracer, noted = self._tracer, self._tracer.noted
        before, counts = tracer.met, (len(noted.norms), len(noted.unmeasured))
        tracer.met = set()
        try:
            out = forward(*args, **kwargs)
            alone = all(name.startswith(layer.path) for name in tracer.met)
        finally:
            tracer.met |= before
        values, spec = tree_flatten(out)
        leaves = [_leaf(value) for value in values]
        plain = all(
            value is None or (leaf is not None and not tracer.follows(value))
            for value, leaf in zip(values, leaves, strict=True)
        )
        if not alone or not plain:
            return out, None
        fresh = noted.since(*counts, layer.params).renamed(lambda text: text)
        return out, _Run(layer, fresh, tracer.answers.last, leaves, spec)

    def _repeat(self, run: _Run, layer: _Layer) -> Any:
        """What the layer returns, with all noted of it that was noted of the one that was followed."""
        theirs = re.compile(r"(?<![\w.])" + re.escape(run.layer.path))
        noted = run.noted.renamed(partial(theirs.sub, layer.path.replace("\\", "\\\\")))
        self._tracer.noted.join(noted)
        self._tracer.met.update(layer.params)
        self._tracer.answers.last = run.answers
        values = [
            None if leaf is None else torch.empty_strided(leaf[0], leaf[1], dtype=leaf[2], device="meta")
            for leaf in run.leaves
        ]
        return tree_unflatten(values, run.spec)


def _leaf(value: Any) -> tuple[torch.Size, tuple[int, ...], torch.dtype] | None:
    if type(value) is torch.Tensor and value.is_meta:
        return value.shape, value.stride(), value.dtype
    return None


def _layers(model: nn.Module) -> Iterator[_Layer]:
    """The modules in lists of several, each with its parameters under names of its own."""
    names = {id(p): name for name, p in model.named_parameters()}
    for path, modules in model.named_modules():
        if not isinstance(modules, nn.ModuleList) or len(modules) < 2:
            continue
        for number, module in enumerate(modules):
            at = f"{path}.{number}."
            if "forward" in vars(module) or is_candidate(module) or not list(module.children()):
                continue
            own = tuple(names[id(p)] for p in module.parameters())
            if all(name.startswith(at) for name in own):
                yield _Layer(at, number, module, own)
