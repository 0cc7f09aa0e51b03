"""Run modelling code in float64 throughout, also where it asks for float32.

Most norms and softmaxes cast to float32 whatever the model's dtype. For a proof to 1e-9 that cast is noise:
it rounds to 6e-8. Here every cast to a narrower float, and every factory of one, gives float64 instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_NARROW = {torch.float32, torch.float16, torch.bfloat16}


class _Float64(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in _NARROW:
            kwargs["dtype"] = torch.float64
        args = tuple(torch.float64 if isinstance(a, torch.dtype) and a in _NARROW else a for a in args)
        if func is torch.ops.aten.bmm.default:  # of a narrow buffer and what was widened above
            args = tuple(a.double() if a.dtype in _NARROW else a for a in args)
        return func(*args, **kwargs)


@contextmanager
def float64_arithmetic() -> Iterator[None]:
    """Within this context casts to a float narrower than float64 give float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(default)
