"""Sliding windows over a row of tokens: every token is scored once, and with context before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Window:
    """One forward pass: feed `inputs` `(length,)`; its last `len(targets)` positions predict `targets`."""

    inputs: torch.Tensor
    targets: torch.Tensor


def windows(ids: torch.Tensor, length: int, stride: int, bos: int | None = None) -> Iterator[Window]:
    """Windows of at most `length` inputs that score every token of `ids` once.

    Each window but the first scores at most `stride` new tokens and sees at least `length - stride` tokens
    before them. The first token of all is scored only when a `bos` stands before it; `bos` leads every
    window.

    Args:
        ids: token ids, `(tokens,)`.
    """
    if not 0 < stride < length:
        raise ValueError(f"a stride of {stride} does not fit a window of {length}")
    lead = ids.new_tensor([] if bos is None else [bos])
    room = length - len(lead)
    if room < 1:
        raise ValueError(f"a window of {length} has no room behind the leading token")
    scored = 0 if bos is not None else 1
    while scored < len(ids):
        new = min(stride if scored > 1 else room, len(ids) - scored)
        end = scored + new  # one past the last target
        begin = max(0, end - 1 - room)
        inputs = torch.cat([lead, ids[begin : end - 1]])
        yield Window(inputs, ids[scored:end])
        scored = end


def scored_tokens(ids: torch.Tensor, bos: int | None = None) -> int:
    """How many targets `windows` yields in all."""
    return len(ids) if bos is not None else len(ids) - 1
