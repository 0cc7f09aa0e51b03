"""Rows out of line: where there is no plan to hold the weights against, what the text does not touch.

A text uses some thousands of a vocabulary's tokens; the rows of the others are never run. But whatever an
exact trick does to an embedding or a head, it does to all rows alike: leaves them, or scales their columns.
So where nine rows in ten agree with the source's up to one factor for each column, the tenth has to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tricks import Checkpoint, TensorInfo, read_checkpoint
from tricks.arithmetic import TORCH
from tricks.rechecking import unit_in_the_last_place
from tricks.stored import Reader, Stored

IN_LINE = 0.9
SAMPLE = 1024  # rows from which the columns' factors are taken
UNITS = 2.5  # in the last place: factors are known to one, and a number is rounded to half of one
BLOCK = 2**21  # numbers at a time
MOST_NAMED = 5


def rows_out_of_line(source: Path, converted: Path, vocabulary: int) -> list[str]:
    """What is wrong with single rows of matrices with one row a token, and with numbers that are not finite.

    Raises:
        BadInput: one of the folders is no intact checkpoint.
    """
    before, after = read_checkpoint(source), read_checkpoint(converted)
    there, here = Reader(source, before), Reader(converted, after)
    reasons = []
    for name, info in after.tensors.items():
        if not TORCH[info.dtype].is_floating_point:
            continue
        b, a = Stored(here, info), _same(there, before, info)
        if not _finite(b) and (a is None or _finite(a)):
            reasons.append(f"{name} holds NaN or infinite numbers where the source's does not")
        elif a is not None and len(info.shape) == 2 and info.shape[0] == vocabulary:
            rows = _out_of_line(a, b, TORCH[info.dtype])
            if rows:
                shown = ", ".join(map(str, rows[:MOST_NAMED])) + (", ..." if len(rows) > MOST_NAMED else "")
                reasons.append(
                    f"{len(rows)} of {vocabulary:,} rows of {name} are not the source's, "
                    f"though all others are: tokens {shown}"
                )
    return reasons


def unread_weights(source: Path, converted: Path, pattern: re.Pattern[str]) -> list[str]:
    """What is wrong with the tensors of these names, which no text reaches: they have to be the source's.

    Raises:
        BadInput: one of the folders is no intact checkpoint.
    """
    before, after = read_checkpoint(source), read_checkpoint(converted)
    there, here = Reader(source, before), Reader(converted, after)
    names = [name for name in after.tensors if pattern.search(name)]
    # A model of sound reads it: there such names prove nothing.
    if len(names) == len(after.tensors):
        return []
    wrong = []
    for name in names:
        a, b = _same(there, before, after.tensors[name]), Stored(here, after.tensors[name])
        if a is None or any(
            not torch.equal(x, y) for (_, x), (_, y) in zip(_blocks(a), _blocks(b), strict=True)
        ):
            wrong.append(name)
    more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
    shown = ", ".join(wrong[:MOST_NAMED])
    return [f"{shown}{more}: not the source's, and no text shows what that does"] if wrong else []


def _same(reader: Reader, checkpoint: Checkpoint, info: TensorInfo) -> Stored | None:
    found = checkpoint.tensors.get(info.name)
    return None if found is None or found.shape != info.shape else Stored(reader, found)


def _blocks(tensor: Stored) -> Iterator[tuple[int, torch.Tensor]]:
    rows = tensor.shape[0] if tensor.shape else 1
    width = max(1, (tensor.info.end - tensor.info.begin) // max(1, rows))
    step = max(1, BLOCK // width)
    for first in range(0, rows, step):
        yield first, tensor.rows(first, min(first + step, rows))


def _finite(tensor: Stored) -> bool:
    return all(bool(torch.isfinite(part).all()) for _, part in _blocks(tensor))


def _out_of_line(a: Stored, b: Stored, dtype: torch.dtype) -> list[int]:
    """The rows of `b` that are not those of `a` times one factor for each column; none where most are not."""
    count = a.shape[0]
    step = max(1, count // SAMPLE)
    sample = [(a.rows(row, row + 1), b.rows(row, row + 1)) for row in range(0, count, step)]
    x, y = (torch.cat(rows) for rows in zip(*sample, strict=True))
    equal = (x == y).all(1).double().mean() >= IN_LINE
    factors = torch.ones(x.shape[1], dtype=torch.float64) if equal else _factors(x, y)
    out: list[int] = []
    for first, part in _blocks(a):
        wanted, got = part * factors, b.rows(first, first + len(part))
        allowed: Any = 0.0 if equal else UNITS * unit_in_the_last_place(wanted, dtype)
        off = ((got - wanted).abs() > allowed).any(1).nonzero().flatten()
        out += (first + off).tolist()
        if len(out) > (1 - IN_LINE) * count:
            return []
    return out


def _factors(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The median ratio of each column."""
    ratios = torch.where(x != 0, y / x, torch.nan)
    return ratios.nanmedian(0).values.nan_to_num(nan=1.0)
