"""Which key and query channels of each head are free: nothing but their product stands between them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tricks.heads import Attention, Head, Span, span_of
from tricks.responses import LATER, Block, probe


def add_free_keys(small: nn.Module, found: list[Attention], blocks: dict[str, Block]) -> None:
    """Add to each head the key and query channels between which nothing but their product stands."""
    pairs = {one.where: _pairs(one, blocks[one.where]) for one in found if one.heads}
    most = max((pair[0].size for of in pairs.values() for pair in of), default=0)

    def move(block: Block, path: str, out: torch.Tensor, begin: int) -> None:
        """Row i: to channel i of every key the next is added, from channel i + 1 of its queries channel i
        taken. Products of free channels stay; a factor or a norm on either channel shows."""
        for key, queries in pairs.get(block.where, ()):
            row = torch.arange(1, max(1, min(len(out), key.size - begin)))
            at = begin + row - 1
            if key.path == path:
                out[row, :, key.start + at] += out[row, :, key.start + at + 1]
            for query in queries:
                if query.path == path:
                    out[row, :, query.start + at + 1] -= out[row, :, query.start + at]

    responses = probe(small, [blocks[where] for where in pairs], most - 1, move) if most > 1 else {}
    for one in found:
        if not pairs.get(one.where):
            one.key_reason = _why_none(blocks[one.where], one)
            continue
        size = pairs[one.where][0][0].size
        moved = responses[one.where][: size - 1].flatten(1).abs().amax(1) if size > 1 else torch.ones(1)
        span = _longest((moved <= 1e-9).tolist())
        if span.size < 2:
            one.key_reason = "position or a norm comes between its queries and keys"
            continue
        one.heads = [
            Head(
                head.value,
                head.outputs,
                Span(key.path, key.start + span.start, span.size),
                tuple(Span(query.path, query.start + span.start, span.size) for query in queries),
            )
            for head, (key, queries) in zip(one.heads, pairs[one.where], strict=True)
        ]


def _longest(joined: list[bool]) -> Span:
    """The longest run of channels of which each is joined to the next."""
    best, start = Span("", 0, 1), 0
    for at, free in enumerate(joined):
        start = start if free else at + 1
        best = max(best, Span("", start, at + 2 - start), key=lambda span: span.size)
    return best


def _pairs(one: Attention, block: Block) -> list[tuple[Span, tuple[Span, ...]]]:
    """For each head its key channels and, of equal size, the channels of its queries."""
    moved = block.once.abs() > 1e-12
    values = {index for head in one.heads for index in _rows_of(block, head.value)}
    outputs = [output for head in one.heads for output in head.outputs]
    anywhere = moved.any(1)  # [channels, inputs of the output projection]
    later = moved[:, LATER].flatten(1).any(1).tolist()
    reached = torch.stack([anywhere[:, output.channels].any(1) for output in outputs], 1).tolist()
    roles: dict[tuple[bool, frozenset[int]], dict[str, list[int]]] = {}
    for index, any_moved in enumerate(anywhere.any(1).tolist()):
        if index in values or not any_moved:
            continue
        where = frozenset(number for number, there in enumerate(reached[index]) if there)
        path, channel = block.place(index)
        roles.setdefault((later[index], where), {}).setdefault(path, []).append(channel)
    result: list[tuple[Span, tuple[Span, ...]]] = []
    number = 0
    for head in one.heads:
        mine = range(number, number + len(head.outputs))
        number += len(head.outputs)
        key = _last(block, roles.get((True, frozenset(mine)), {}))
        queries = [_last(block, roles.get((False, frozenset([query])), {})) for query in mine]
        if key is None or any(query is None for query in queries):
            return []
        size = min(span.size for span in (key, *queries) if span is not None)
        result.append(
            (
                Span(key.path, key.start, size),
                tuple(Span(query.path, query.start, size) for query in queries if query is not None),
            )
        )
    return result


def _rows_of(block: Block, span: Span) -> Iterator[int]:
    first = block.first(span.path) + span.start
    yield from range(first, first + span.size)


def _last(block: Block, by_path: dict[str, list[int]]) -> Span | None:
    """The run of channels in the linear layer that runs last: the ones before it feed it."""
    path = next((path for path in reversed(block.lefts) if path in by_path), None)
    return None if path is None else span_of(path, by_path[path])


def _why_none(block: Block, one: Attention) -> str:
    """Why no head has keys and queries of its own."""
    values = {index for head in one.heads for index in _rows_of(block, head.value)}
    others = [index for index in range(len(block.once)) if index not in values]
    moved = block.once[others].abs().amax(1) > 1e-12 if others else torch.zeros(0, 1, dtype=torch.bool)
    if len(one.heads) > 1 and moved.all(1).any():
        return "what stands between its queries and keys (a norm over all heads, say) mixes their heads"
    return "its queries and keys could not be told apart"
