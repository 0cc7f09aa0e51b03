"""A model's wiring small enough to draw: one part per kind of layer, and which norm feeds it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from tricks.subject import Subject

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Part:
    """All modules whose paths differ in layer numbers only.

    `where` is their path with `*` for each number, `count` how many there are, `kind` "norm", "embedding" or
    "linear" (anything else that holds weights), `reads` the `where` of the norm that feeds it.
    """

    where: str
    kind: str
    count: int
    shape: tuple[int, ...]
    reads: str | None = None


def sketch(subject: Subject) -> tuple[Part, ...]:
    """The parts of a model in the order in which its class makes them."""
    norms = {norm.module for norm in subject.wiring.norms} | set(subject.wiring.unmeasured)
    fed = {
        consumer.param.rpartition(".")[0]: pattern(norm.module)
        for norm in subject.wiring.norms
        for consumer in norm.consumers
    }
    parts: dict[str, Part] = {}
    for path, module in subject.model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own or not path:
            continue
        where = pattern(path)
        seen = parts.get(where)
        kind = "norm" if path in norms else "embedding" if isinstance(module, nn.Embedding) else "linear"
        shape = tuple(max(own.values(), key=lambda p: p.numel()).shape)
        reads = fed.get(path) or (seen.reads if seen else None)
        parts[where] = Part(where, kind, 1 + (seen.count if seen else 0), shape, reads)
    return tuple(parts.values())


def pattern(path: str) -> str:
    """A module's path with `*` for each layer number: "model.layers.7.mlp" -> "model.layers.*.mlp"."""
    return _NUMBER.sub("*", path)
