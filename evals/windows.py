"""Windows over a row of tokens, in the conventions in which perplexity is measured.

All score every token once, with what stands before it; they differ in how much that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Window:
    """One row of a forward pass: `inputs` `(length,)`, whose last `len(targets)` positions predict `targets`.

    `encoder` is what an encoder reads beside it: token ids `(m,)`, or the features of one sound clip.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    encoder: torch.Tensor | None = None


def windows(
    ids: torch.Tensor, length: int, stride: int, first: int | None = None, lead: int | None = None
) -> Iterator[Window]:
    """Sliding windows of at most `length` inputs.

    Each window but the first scores at most `stride` new tokens behind at least `length - stride` others.
    With `stride == length` and no `lead` these are the windows of lm-evaluation-harness's rolling
    log-likelihood.

    Args:
        ids: token ids, `(tokens,)`.
        first: the token before the first one; without it the first token of all is not scored.
        lead: the token in front of every later window, for models that expect one.
    """
    if not 0 < stride <= length - (lead is not None):
        raise ValueError(f"a stride of {stride} does not fit a window of {length}")
    row = ids if first is None else torch.cat([ids.new_tensor([first]), ids])
    scored = 1
    while scored < len(row):
        end = min(scored + (length if scored == 1 else stride), len(row))  # one past the last target
        begin = max(0, end - 1 - length)
        inputs = row[begin : end - 1]
        if begin > 0 and lead is not None:
            inputs = torch.cat([row.new_tensor([lead]), row[begin + 1 : end - 1]])
        yield Window(inputs, row[scored:end])
        scored = end


def chunks(ids: torch.Tensor, length: int) -> Iterator[Window]:
    """Stretches of `length` tokens that know nothing of each other; the first token of each is not scored.

    What `perplexity` of the PyPI package transformer-tricks cuts, after the example in the transformers
    manual with a stride of the whole window.
    """
    for begin in range(0, len(ids) - 1, length):
        part = ids[begin : begin + length]
        yield Window(part[:-1], part[1:])


def pairs(ids: torch.Tensor, encoder: int, decoder: int, start: int) -> Iterator[Window]:
    """For an encoder-decoder: `encoder` tokens to read, then the next `decoder` tokens to predict.

    `start` is the token with which the decoder begins.
    """
    for begin in range(0, len(ids) - encoder, encoder + decoder):
        targets = ids[begin + encoder : begin + encoder + decoder]
        inputs = torch.cat([ids.new_tensor([start]), targets[:-1]])
        yield Window(inputs, targets, ids[begin : begin + encoder])


def scored_tokens(cut: list[Window]) -> int:
    """How many targets the windows have in all."""
    return sum(len(window.targets) for window in cut)
