"""Answers for code that asks tensors without data for their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_aten = torch.ops.aten


class Answers:
    """Answers to the questions that only values could answer: masks and expert dispatch ask them.

    The first pass answers low (no, the first row), a second one high (yes, the last row), so that a branch
    that only some values take, an expert that passes its input through, say, is seen too.
    """

    def __init__(self, high: bool) -> None:
        self.asked = False
        self._high = high
        # The row that was answered last.
        self.last = 0
        self._table: dict[Any, Callable[[torch.Tensor], Any]] = {
            _aten._local_scalar_dense.default: self._scalar,
            _aten.nonzero.default: self._rows,
            _aten.is_nonzero.default: lambda x: self._high,
        }

    def to(self, func: Any, args: Any) -> Callable[[torch.Tensor], Any] | None:
        """The function that answers `func`, if it asks for a value of a tensor that has none."""
        answer = self._table.get(func)
        if answer is None or not args[0].is_meta:
            return None
        # A yes or no may hide parameters, which is seen by their not running; a row may hide what has none.
        self.asked |= func is _aten.nonzero.default or args[0].dtype is not torch.bool
        return answer

    def _scalar(self, x: torch.Tensor) -> bool | int:
        return self._high if x.dtype is torch.bool else self.last if self._high else 0

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        self.last = max(x.shape[0] - 1, 0) if x.ndim else 0
        return x.new_zeros((1, x.ndim), dtype=torch.long)
