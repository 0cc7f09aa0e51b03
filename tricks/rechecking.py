"""Whether a converted checkpoint holds what its plan makes of the source: every number, computed again.

A plan has proved itself in float64 before any weight was touched (see `proof`); this shows that the files are
that plan carried out, and nothing else. It does not run the model, so it sees what no text happens to touch:
the row of a token that never comes up, a NaN in it, damage far below the noise of running the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tricks.arithmetic import TORCH
from tricks.checkpoint import read_checkpoint
from tricks.editor import Editor
from tricks.operations import Value
from tricks.plan import Plan
from tricks.progress import Report, silent
from tricks.slim_algebra import OPERATION as SETTLED
from tricks.stored import Reader, Stored
from tricks.values import Call, Edited, Made, blocks

UNITS = 1.0
"""How many units in the last place a stored number may lie from the exact one: the half of rounding once,
and as much again for another machine's order of summation."""
SUMMED = 1e-9
"""Of a tensor's largest number: what float64 may lose where matrices are multiplied or inverted."""
_FORMATS = {
    torch.bfloat16: (7, -126),
    torch.float16: (10, -14),
    torch.float32: (23, -126),
    torch.float64: (52, -1022),
}


@dataclass(frozen=True)
class CarriedOut:
    """What came of the check: `wrong` names each tensor that is not the plan's, in words.

    `tensors` and `values` count what was held against the plan; `exact` of the values were equal to the
    plan's, rounded once. `left` tensors follow from activations (slim), and are not computed again.
    """

    tensors: int
    values: int
    exact: int
    left: int
    wrong: tuple[str, ...]


def carried_out(plan: Plan, source: Path, converted: Path, report: Report = silent) -> CarriedOut:
    """Hold the weights in `converted` against `plan` applied to those in `source`, a few rows at a time.

    Raises:
        BadInput: one of the two is no intact checkpoint, or the plan is for another source.
    """
    work = Editor(source, read_checkpoint(source), plan.edits)
    checkpoint = read_checkpoint(converted)
    reader = Reader(converted, checkpoint)
    wrong: list[str] = []
    expected = {value.name: value for file in work.files for value in work.tensors(file)}
    settled = {name for name, value in expected.items() if _is_settled(value)}
    if not settled:
        wrong += [f"{name} is not in the plan" for name in sorted(set(checkpoint.tensors) - set(expected))]
    tensors = values = exact = left = done = 0
    total = sum(math.prod(value.shape) for value in expected.values())
    call: Call | None = None
    for value in expected.values():
        found = checkpoint.tensors.get(value.name)
        if value.name in settled or (settled and not _alike(found, value)):
            left += 1  # where activations had a say, a place may have been left as it was
            continue
        if found is None:
            wrong.append(f"{value.name} is missing")
            continue
        if not _alike(found, value):
            wrong.append(
                f"{value.name} is {found.dtype} {list(found.shape)}, not {value.dtype} {list(value.shape)}"
            )
            continue
        tally = _Tally(value)
        there = Stored(reader, found)
        if isinstance(value, Made) and value.call is not call:
            if call is not None:
                call.forget()
            call = value.call
        for first, part in blocks(value):
            tally.add(part, there.rows(first, first + len(part)) if value.shape else there.rows(0, 1))
            done += part.numel()
            report("weights", done, total)
        tensors, values, exact = tensors + 1, values + tally.values, exact + tally.exact
        if tally.off:
            wrong.append(tally.words)
    return CarriedOut(tensors, values, exact, left, tuple(wrong))


class _Tally:
    """Counts how a tensor's numbers, exact and stored, lie to one another."""

    def __init__(self, value: Value) -> None:
        self._name, self._dtype = value.name, TORCH[value.dtype]
        self._slack = SUMMED if not isinstance(value, Stored) else 0.0
        self.values = self.exact = self.off = 0
        self._worst = 0.0

    def add(self, exact: torch.Tensor, there: torch.Tensor) -> None:
        self.values += exact.numel()
        rounded = exact.to(self._dtype).double()
        same = (rounded == there) | (rounded.isnan() & there.isnan())
        agreeing = int(same.sum())
        self.exact += agreeing
        if agreeing == same.numel():
            return
        if not self._dtype.is_floating_point:
            self.off += same.numel() - agreeing
            self._worst = math.inf
            return
        distance = (there - exact).abs()
        # What needs no rounding, a gain of one say, has one way to be stored.
        units = torch.where(rounded == exact, 0.0, UNITS * unit_in_the_last_place(exact, self._dtype))
        allowed = units + self._slack * exact.abs().nan_to_num().max()
        off = ~same & ~(distance <= allowed)  # a NaN where none should be is off
        self.off += int(off.sum())
        if off.any():
            units = (distance / unit_in_the_last_place(exact, self._dtype))[off]
            self._worst = max(self._worst, float(units.nan_to_num(nan=math.inf).max()))

    @property
    def words(self) -> str:
        how = "not finite" if math.isinf(self._worst) else f"{self._worst:.3g} units in the last place away"
        return f"{self._name}: {self.off:,} of {self.values:,} numbers are not the plan's, the worst {how}"


def unit_in_the_last_place(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance between neighbours in `dtype` at each value, float64; at 0 that of the least numbers."""
    digits, least = _FORMATS[dtype]
    exponent = (torch.frexp(values).exponent - 1).clamp(min=least)
    return torch.ldexp(torch.ones_like(values), exponent - digits)


def _is_settled(value: Value) -> bool:
    while isinstance(value, Edited):
        value = value.base
    return isinstance(value, Made) and value.call.operation == SETTLED


def _alike(found: Any, value: Value) -> bool:
    return found is not None and (found.dtype, tuple(found.shape)) == (value.dtype, tuple(value.shape))
