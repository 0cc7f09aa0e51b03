"""How an attention block's channels form heads, found by trying.

Single channels of the projections are moved at one token, and what then arrives at the block's last linear
layer (the output projection) tells what they are. A *value* channel moves it in proportion, at later tokens
too; channels of one head arrive with the same attention weights. A *key* channel moves it out of proportion
at later tokens, a *query* channel at its own token alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tricks.responses import LATER, Block

_EQUAL = 1e-8


@dataclass(frozen=True)
class Span:
    """`size` channels of the linear layer `path` from `start` on."""

    path: str
    start: int
    size: int

    @property
    def channels(self) -> slice:
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Head:
    """A key-value head: its value channels, and for each query head that reads it the output projection's
    input channels, in the same order; and the key and query channels whose products are summed as they
    stand (none where position or a norm comes between)."""

    value: Span
    outputs: tuple[Span, ...]
    key: Span | None = None
    queries: tuple[Span, ...] = ()


@dataclass
class Attention:
    """An attention block: its module, its heads (none where `value_reason` says why), and why its queries and
    keys are not free, if they are not."""

    where: str
    output: str
    heads: list[Head] = field(default_factory=list)
    value_reason: str | None = None
    key_reason: str | None = None


def read_heads(block: Block) -> Attention:
    """The heads of one block, as far as its values tell."""
    result = Attention(block.where, block.output)
    size = block.once.flatten(1).abs().amax(1)
    wrong = (block.twice - 2 * block.once).flatten(1).abs().amax(1)
    later = block.once[:, LATER].flatten(1).abs().amax(1)
    values = ((wrong <= _EQUAL * size) & (later > 1e-12)).nonzero().flatten().tolist()
    if not values:
        result.value_reason = "nothing reaches its output projection in proportion, so it has no plain values"
        return result
    if len({block.place(index)[0] for index in values}) > 1:
        result.value_reason = "its values come from several linear layers"
        return result
    heads: list[tuple[torch.Tensor, list[int], list[list[int]]]] = []
    for index in values:
        response = block.once[index]
        reached = (response.abs().amax(0) > _EQUAL * size[index]).nonzero().flatten()
        weights = response[:, reached]
        for known, channels, outputs in heads:
            if known.shape == weights.shape and (known - weights).abs().max() <= _EQUAL:
                channels.append(block.place(index)[1])
                outputs.append(reached.tolist())
                break
        else:
            heads.append((weights, [block.place(index)[1]], [reached.tolist()]))
    path = block.place(values[0])[0]
    for _, channels, outputs in heads:
        value = span_of(path, channels)
        reading = [span_of(block.output, list(column)) for column in zip(*outputs, strict=True)]
        if value is None or any(one is None for one in reading):
            result.heads, result.value_reason = [], "the channels of its heads are interleaved"
            return result
        result.heads.append(Head(value, tuple(one for one in reading if one is not None)))
    if max(head.value.size for head in result.heads) == 1:
        result.heads = []
        result.value_reason = "each value channel is weighted on its own, so no other basis will do"
    elif len({head.value.size for head in result.heads}) > 1:
        result.heads, result.value_reason = [], "its heads have different sizes"
    return result


def span_of(path: str, channels: list[int]) -> Span | None:
    if channels != list(range(channels[0], channels[0] + len(channels))):
        return None
    return Span(path, channels[0], len(channels))
