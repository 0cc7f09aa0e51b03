"""Remember what shapes an operation gives on tensors without data.

The meta kernels of many operations are written in Python and take most of the time of a traced pass; a model
of many layers asks them the same thing in each layer.
"""

from __future__ import annotations

from typing import Any

import torch


class ShapeMemory:
    """Runs operations on meta tensors, each distinct question once."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[tuple[int, ...], tuple[int, ...], torch.dtype]] = {}
        self._fresh: dict[Any, bool] = {}

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`func(*args, **kwargs)`; of a result only shape, strides and dtype are kept."""
        key = self._key(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        known = self._known.get(key)
        if known is not None:
            shape, stride, dtype = known
            return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        out = func(*args, **kwargs)
        if type(out) is torch.Tensor and out.is_meta:
            self._known[key] = (tuple(out.shape), out.stride(), out.dtype)
        return out

    def _key(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the answer depends on; None where the result shares memory with an argument or has data."""
        fresh = self._fresh.get(func)
        if fresh is None:
            schema = func._schema
            fresh = self._fresh[func] = all(
                x.alias_info is None for x in (*schema.arguments, *schema.returns)
            )
        if not fresh:
            return None
        try:
            parts = tuple(map(_part, args))
            named = tuple((name, _part(value)) for name, value in kwargs.items()) if kwargs else ()
            key = (func, parts, named)
            hash(key)
        except (_HasData, TypeError):
            return None
        return key


class _HasData(Exception):
    """A tensor with data among the arguments."""


def _part(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            raise _HasData
        return (value.dtype, value.shape, value.stride())
    if isinstance(value, (list, tuple)):
        return tuple(map(_part, value))
    # True, 1 and 1.0 are equal, and do not give equal dtypes.
    return (type(value), value)
