"""The forms `defer` and `cancel`: a norm's scale after the linear layers that read it, or not at all.

Source: Graef et al., "FlashNorm", propositions 2 and 3, sections 3.2, 3.3 and 4.3.
With s = 1/√(mean(x²) + ε₁):

- defer: (s·x)·W = s·(x·W), exactly. Norm and product need not wait for each other.
- cancel: where a second norm reads (s·x)·W, it divides s out again, but for its own ε₂. With
  ε₂·(mean(x²) + ε₁) in its place that is exact: y·s/√(s²·mean(y²) + ε₂) = y/√(mean(y²) + ε₂/s²).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tricks.flow import End, Flow
from tricks.subject import Subject


@dataclass(frozen=True)
class Reader:
    """A linear layer behind a norm: the columns that keep its scale, and the norms that read the rest."""

    name: str
    columns: tuple[tuple[int, int], ...]
    width: int
    behind: tuple[End, ...]


class Unfit(Exception):
    """Why a norm does not take the form."""


def deferrable(name: str, flow: Flow, subject: Subject) -> tuple[str, ...]:
    """The linear layers behind the norm `name`, all of which can apply its scale.

    Raises:
        Unfit: it centres, or something else reads it.
    """
    normaliser = flow.normalisers.get(name)
    if normaliser is None:
        raise Unfit("what it does is no plain normalisation")
    if normaliser.centres:
        raise Unfit("it takes the mean off, which no scale after the product can do")
    if normaliser.gain is not None and normaliser.gain.bias is not None:
        raise Unfit("it adds a bias, which its scale must not reach")
    if name in flow.strays:
        raise Unfit(flow.strays[name])
    readers = tuple(sorted(flow.readers[name]))
    if not readers:
        raise Unfit("no linear layer reads its output")
    for reader in readers:
        if flow.inputs[reader] != {name}:
            raise Unfit(f"{reader} also reads something that is not this norm's output")
    for path in (name, *readers):
        if (trick := subject.claimed(path)) is not None:
            raise Unfit(f"{path} is part of {trick}")
    return readers


def cancelled(name: str, flow: Flow, subject: Subject) -> tuple[Reader, ...]:
    """The linear layers behind the norm `name`, whose scale norms behind them divide out.

    A layer that a norm reads in part keeps the scale for the rest of its columns, and then whole layers may
    keep it too: so it is with the rotary part of latent attention.

    Raises:
        Unfit: the scale of a whole layer reaches no norm.
    """
    readers = tuple(_reader(reader, name, flow) for reader in deferrable(name, flow, subject))
    partial = any(reader.behind and reader.columns for reader in readers)
    bare = [reader.name for reader in readers if not reader.behind]
    if len(bare) == len(readers):
        raise Unfit("no norm reads the linear layers behind it")
    if bare and not partial:
        raise Unfit(f"its scale reaches no norm behind {_short(bare, name)} and would be missed there")
    return readers


def _reader(reader: str, norm: str, flow: Flow) -> Reader:
    module: Any = flow.model.get_submodule(reader)
    width = int(module.weight.shape[0] if isinstance(module, nn.Linear) else module.weight.shape[1])
    ends = flow.ends[reader]
    good = {
        end
        for end in ends
        if end.norm is not None and flow.inputs[end.norm] == {norm} and module.bias is None
    }
    # A norm may stay behind the removed one only if nothing else reads what it reads.
    while spoilt := {end for end in good if any(_overlap(end, other) for other in ends - good)}:
        good -= spoilt
    return Reader(reader, _without(width, good), width, tuple(sorted(good, key=lambda end: end.first)))


def _overlap(one: End, other: End) -> bool:
    return one.first < other.last and other.first < one.last


def _without(width: int, ends: Iterable[End]) -> tuple[tuple[int, int], ...]:
    """What is left of columns 0 to `width`."""
    left, done = [], 0
    for end in sorted(ends, key=lambda end: end.first):
        if end.first > done:
            left.append((done, end.first))
        done = max(done, end.last)
    return tuple([*left, (done, width)] if done < width else left)


def corrections(readers: Iterable[Reader]) -> dict[str, End]:
    """The norms that read what is not scaled any more."""
    return {end.norm: end for reader in readers for end in reader.behind if end.norm is not None}


def describe(name: str, readers: tuple[Reader, ...]) -> str:
    """What `cancel` does at the norm `name`, in words."""
    norms = _short(sorted(corrections(readers)), name)
    kept = [_short([reader.name], name) + _columns(reader) for reader in readers if reader.columns]
    rest = f"; its scale stays for {', '.join(kept)}" if kept else ""
    return f"gone, as norms follow ({norms}); its ε is made good there{rest}"


def _columns(reader: Reader) -> str:
    if not reader.behind:
        return ""
    return f" ({sum(last - first for first, last in reader.columns)} of {reader.width} columns)"


def _short(names: Iterable[str], norm: str) -> str:
    stem = norm.rpartition(".")[0] + "."
    return ", ".join(name.removeprefix(stem) for name in names)


def linear_row(reader: str, norm: str, columns: tuple[tuple[int, int], ...] | None) -> dict[str, Any]:
    """A row under `linears` of the shipped code."""
    row: dict[str, Any] = {"at": reader, "norm": norm}
    return row if columns is None else row | {"columns": [list(pair) for pair in columns]}
