"""Edits carried out on tensors, with one rounding: that of storing the result."""

from __future__ import annotations

import torch

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "I16": torch.int16,
}
"""safetensors dtype -> torch dtype, for the dtypes that can be written (indices are I32, digits I16)."""


def factor(gain: torch.Tensor, offset: float) -> torch.Tensor:
    """`offset + gain` in the narrowest dtype in which it is exact, float64 at the widest."""
    exact = offset + gain.double()
    narrow = exact.float()
    return narrow if torch.equal(narrow.double(), exact) else exact


def working_dtype(stored: torch.dtype, along: torch.Tensor) -> torch.dtype:
    """The dtype in which the product of a stored weight and a factor is exact before its final rounding.

    A product of two 8-bit (bfloat16) or 11-bit (float16) significands fits float32's 24 bits; any other is
    computed in float64.
    """
    narrow = stored in (torch.bfloat16, torch.float16)
    return torch.float32 if narrow and _is_half(along) else torch.float64


def _is_half(values: torch.Tensor) -> bool:
    return values.dtype is torch.float32 and any(
        torch.equal(values.to(dtype).float(), values) for dtype in (torch.bfloat16, torch.float16)
    )


def contract(weight: torch.Tensor, vector: torch.Tensor, axis: int) -> torch.Tensor:
    """Sum over `axis` of weight times vector, in float64."""
    result: torch.Tensor = torch.tensordot(weight.double(), vector.double(), dims=([axis], [0]))
    return result
