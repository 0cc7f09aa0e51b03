"""Modules that are given the same row many times compute it once.

An experiment moves something else in each row of a batch, and puts the rows together again behind the block
that it looks at; what the rest of the model makes of equal rows is equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map


@contextmanager
def each_row_once(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context the `modules`, called with one tensor [rows, ...] of equal rows, see the first row
    alone, and what they return is repeated for all."""
    handles = []
    for module in modules:
        once = _Once()
        handles.append(module.register_forward_pre_hook(once.enter, with_kwargs=True))
        # Before the hooks that are there already: what they see has all of its rows.
        handles.append(module.register_forward_hook(once.leave, prepend=True, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Once:
    """The hooks of one module; `_whole` is what it was called with, where it sees the first row alone."""

    def __init__(self) -> None:
        self._whole: torch.Tensor | None = None

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        self._whole = None
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        if len(tensors) != 1 or not args or args[0] is not tensors[0]:
            return None
        given: torch.Tensor = args[0]
        if given.ndim < 2 or len(given) < 2 or not torch.equal(given, given[:1].expand_as(given)):
            return None
        self._whole = given
        return (given[:1], *args[1:]), kwargs

    def leave(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        if self._whole is None:
            return out
        whole, self._whole = self._whole, None
        if any(isinstance(value, torch.Tensor) and value.shape[:1] != (1,) for value in tree_leaves(out)):
            return module.forward(whole, *args[1:], **kwargs)  # some of it is not said row by row

        def all_rows(value: Any) -> Any:
            # Laid out in memory, as views of it need.
            tensor = isinstance(value, torch.Tensor)
            return value.expand(len(whole), *value.shape[1:]).contiguous() if tensor else value

        return tree_map(all_rows, out)
