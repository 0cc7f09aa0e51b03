"""How slim attention rounds what it caches: 8-bit rows, and rounding whose error is fed back.

Rounding K to the nearest number spreads its error evenly over all directions, those included that A, which
makes V of K, amplifies a thousandfold. So channels are rounded in blocks, the coarsest first, and what a
block lost is made good, as far as it weighs, by the channels that are still to come: they are moved by e·W
before they are rounded in their turn. (Noise shaping, per token; W comes of the conversion.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch

SCALE_BYTES = 2
LEAST_SHARE = 128
"""The last blocks are this part of the channels."""


def blocks(count: int) -> list[tuple[int, int]]:
    """Blocks [(first, last)] of `count` channels: each is half of what is left."""
    found: list[tuple[int, int]] = []
    first, least = 0, max(1, count // LEAST_SHARE)
    while count - first > least:
        last = first + (count - first + 1) // 2
        found.append((first, last))
        first = last
    return [*found, (first, count)]


def feedback_size(count: int) -> int:
    """Numbers in the W of all blocks: about a third of count²."""
    return sum((last - first) * (count - last) for first, last in blocks(count))


def fed_back(
    values: torch.Tensor,
    order: torch.Tensor,
    weights: torch.Tensor,
    rounded: Callable[[torch.Tensor], torch.Tensor],
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Values [..., e] rounded block by block.

    Args:
        order: [e] the channels as they are rounded.
        weights: [feedback_size(e)] the W [block, channels to come] of all blocks, one after the other.
        rounded: what is kept of a block [..., m].
        product: e [..., m] times W [m, k].
    """
    left, kept, at = values[..., order], [], 0
    for first, last in blocks(values.shape[-1]):
        size, rest = last - first, values.shape[-1] - last
        piece, left = left.split([size, rest], -1)
        kept.append(rounded(piece))
        if rest:
            error = kept[-1].to(piece.dtype) - piece
            left = left - product(error, weights[at : at + size * rest].view(size, rest))
            at += size * rest
    return torch.cat(kept, -1)[..., order.argsort()]


def row_scale(values: torch.Tensor) -> torch.Tensor:
    """The bfloat16 scales of 8-bit rows [..., 1] of numbers [..., r]."""
    most = values.abs().amax(-1, keepdim=True).float()
    return (most / 126).clamp_min(1e-30).to(torch.bfloat16)  # 126: the scale may be rounded down


def whole_numbers(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Numbers as multiples of their row's scale: int8."""
    return (values / scale.float()).round().clamp(-127, 127).to(torch.int8)


def with_scale(whole: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """8-bit rows and their scales in one tensor: int8 [..., r + 2]."""
    bits = scale.view(torch.int16)  # taken apart by arithmetic: compiled code has no views of another width
    low = ((bits & 255) ^ 128) - 128
    return torch.cat([whole, low.to(torch.int8), (bits >> 8).to(torch.int8)], -1)


def to_bytes(values: torch.Tensor) -> torch.Tensor:
    """Numbers [..., r] as 8-bit integers with one bfloat16 scale for each row: int8 [..., r + 2]."""
    scale = row_scale(values)
    return with_scale(whole_numbers(values, scale), scale)


def from_bytes(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `to_bytes`."""
    low, high = stored[..., -2:-1].to(torch.int16) & 255, stored[..., -1:].to(torch.int16)
    scale = (high << 8 | low).view(torch.bfloat16)
    return (stored[..., :-SCALE_BYTES].float() * scale.float()).to(dtype)
