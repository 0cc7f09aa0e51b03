"""Tensors as edits leave them, computed a few rows at a time (each class is an `operations.Value`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tricks.arithmetic import contract, factor
from tricks.edits import New
from tricks.operations import OPERATIONS, Result, Value

_ROWS_BYTES = 16 << 20
"""Bytes of float64 that are in memory for one block of rows."""


class Edited:
    """A tensor with the name, dtype and shape of `base`."""

    def __init__(self, base: Value) -> None:
        self.base = base
        self.name, self.dtype, self.shape = base.name, base.dtype, base.shape

    def rows(self, first: int, last: int) -> torch.Tensor:
        raise NotImplementedError


class Scaled(Edited):
    """base ⊙ (offset + gain) along `axis`; `gain` is a vector."""

    def __init__(self, base: Value, axis: int, gain: torch.Tensor, offset: float) -> None:
        super().__init__(base)
        self.axis = axis
        self.factor = factor(gain, offset)

    def rows(self, first: int, last: int) -> torch.Tensor:
        values = self.base.rows(first, last)
        along = self.factor.double()
        if self.axis == 0:
            along = along[first:last]
        shape = [1] * values.ndim
        shape[self.axis] = -1
        return values * along.view(shape)


class Shifted(Edited):
    """base + W·β, with W contracted along `axis`; computed once, for a bias is small."""

    def __init__(self, base: Value, weight: Value, axis: int, by: torch.Tensor) -> None:
        super().__init__(base)
        self._weight, self._axis, self._by = weight, axis, by
        self._product: torch.Tensor | None = None

    def rows(self, first: int, last: int) -> torch.Tensor:
        if self._product is None:
            parts = []
            for begin, part in blocks(self._weight):
                along = self._by[begin : begin + len(part)] if self._axis == 0 else self._by
                parts.append(contract(part, along, self._axis))
            product = torch.stack(parts).sum(0) if self._axis == 0 else torch.cat(parts)
            self._product = product.view(self.shape or (1,))
        return self.base.rows(first, last) + self._product[first:last]


class Filled(Edited):
    """`value` everywhere."""

    def __init__(self, base: Value, value: float) -> None:
        super().__init__(base)
        self._value = value

    def rows(self, first: int, last: int) -> torch.Tensor:
        return torch.full((last - first, *self.shape[1:]), self._value, dtype=torch.float64)


class Centred(Edited):
    """base without its mean along `axis`."""

    def __init__(self, base: Value, axis: int) -> None:
        super().__init__(base)
        self._axis = axis
        self._mean: torch.Tensor | None = None

    def rows(self, first: int, last: int) -> torch.Tensor:
        values = self.base.rows(first, last)
        if self._axis != 0:
            return values - values.mean(self._axis, keepdim=True)
        if self._mean is None:
            sums = [part.sum(0, keepdim=True) for _, part in blocks(self.base)]
            self._mean = torch.cat(sums).sum(0, keepdim=True) / self.shape[0]
        return values - self._mean


class Call:
    """One `Make`: its results are computed when the first of them is read, and kept until `forget`.

    An operation that inverts something gives the worst condition number as the result `condition`; it stays.
    """

    def __init__(self, operation: str, inputs: Mapping[str, Value], options: Mapping[str, Any]) -> None:
        self.operation, self._inputs, self._options = operation, inputs, options
        self.condition: float | None = None
        self._results: Mapping[str, Result] | None = None

    def result(self, role: str) -> Result:
        if self._results is None:
            self._results = OPERATIONS[self.operation](self._inputs, self._options)
            condition = self._results.get("condition")
            self.condition = condition.item() if isinstance(condition, torch.Tensor) else None
        return self._results[role]

    def forget(self) -> None:
        """Let go of the results; they can be computed again."""
        self._results = None


class Made:
    """One result of a `Call`."""

    def __init__(self, call: Call, role: str, new: New) -> None:
        self.call = call
        self._role = role
        self.name, self.dtype, self.shape = new.name, new.dtype, new.shape

    def rows(self, first: int, last: int) -> torch.Tensor:
        result = self.call.result(self._role)
        if isinstance(result, torch.Tensor):
            assert tuple(result.shape) == self.shape, (self.name, tuple(result.shape), self.shape)
            return result.view(self.shape or (1,))[first:last]
        place, found = 0, []
        for part in result():
            low, high = max(first - place, 0), max(last - place, 0)
            found.append(part[low:high])
            place += len(part)
            if place >= last:
                break
        return torch.cat(found)

    def streamed(self) -> Iterator[torch.Tensor] | None:
        """Its rows in the operation's own blocks, if that is how it makes them."""
        result = self.call.result(self._role)
        return None if isinstance(result, torch.Tensor) else result()


def blocks(value: Value) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, rows in float64) from the first to the last."""
    streamed = value.streamed() if isinstance(value, Made) else None
    if streamed is not None:
        place = 0
        for part in streamed:
            yield place, part
            place += len(part)
        return
    count = value.shape[0] if value.shape else 1
    step = max(_ROWS_BYTES // max(8 * math.prod(value.shape[1:]), 1), 1)
    for first in range(0, count, step):
        yield first, value.rows(first, min(first + step, count))
