"""Operations that make tensors from tensors, registered by name so that a plan in JSON can ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch


class Value(Protocol):
    """A tensor that may be larger than memory; everything comes in float64, unrounded."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str:
        """The safetensors dtype it is stored in."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows `first` to `last` (along axis 0) [last - first, *shape[1:]]."""


def whole(value: Value) -> torch.Tensor:
    """All of a value, in its shape."""
    return value.rows(0, value.shape[0] if value.shape else 1).view(value.shape)


Result = torch.Tensor | Callable[[], Iterator[torch.Tensor]]
"""A whole tensor, or a function that gives its rows block by block from the first to the last."""

Operation = Callable[[Mapping[str, Value], Mapping[str, Any]], Mapping[str, Result]]
"""(inputs by role, options) -> results by role, in float64."""

OPERATIONS: dict[str, Operation] = {}


def operation(name: str) -> Callable[[Operation], Operation]:
    """Register a function as the operation `name`."""

    def register(function: Operation) -> Operation:
        assert name not in OPERATIONS
        OPERATIONS[name] = function
        return function

    return register
