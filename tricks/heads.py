"""How an attention block's channels form heads, found by trying.

Single channels of the projections are moved at one token, and what then arrives at the block's last linear
layer (the output projection) tells what they are. A *value* channel moves it in proportion, at later tokens
too; channels of one head arrive with the same attention weights. A *key* channel moves it out of proportion
at later tokens, a *query* channel at its own token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tricks.specimen import Hook, NoSpecimen, run, specimen
from tricks.subject import Subject

TOKENS, MOVED = 5, 1
"""Length of the sequences, and the token at which channels are moved."""
_ROWS = 96
"""Sequences of one run; each moves one channel of every attention block at once."""
_EQUAL = 1e-8
LEAST_HEAD = 4
"""Smallest head of a specimen: with fewer channels, chance agreement could pass for structure."""


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


@dataclass
class _Block:
    """What was recorded of one group of linear layers: responses [channels, TOKENS, inputs of the last]."""

    where: str
    lefts: list[str]
    output: str
    widths: dict[str, int] = field(default_factory=dict)
    once: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    twice: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def place(self, index: int) -> tuple[str, int]:
        """The linear layer and channel that row `index` of a response moved."""
        for path in self.lefts:
            if index < self.widths[path]:
                return path, index
            index -= self.widths[path]
        raise IndexError(index)

    def first(self, path: str) -> int:
        """The first row of the channels of `path`."""
        return sum(self.widths[other] for other in self.lefts[: self.lefts.index(path)])


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by one matrix."""
    return isinstance(module, (nn.Linear, Conv1D))


def attention_of(subject: Subject) -> tuple[nn.Module, list[Attention]]:
    """A specimen as deep as the subject whose heads are large enough to tell, and its attention blocks.

    Raises:
        NoSpecimen: there is none.
    """
    small = specimen(subject, whole_depth=True)
    found = attentions(small)
    for number in range(1, 4):
        # Heads of one channel look like channels that are weighted one by one.
        if min((head.value.size for one in found for head in one.heads), default=1) >= LEAST_HEAD:
            break
        try:
            small = specimen(subject, whole_depth=True, number=number)
        except NoSpecimen:
            break
        found = attentions(small)
    return small, found


def attentions(small: nn.Module) -> list[Attention]:
    """All attention blocks of the specimen `small`, with spans of the specimen's sizes."""
    blocks = _blocks(small)
    _respond(small, blocks)
    found = [_read(block) for block in blocks if _mixes(block)]
    _free_keys(small, found, {block.where: block for block in blocks})
    return found


def _blocks(small: nn.Module) -> list[_Block]:
    """Linear layers with one parent, in the order in which they run."""
    order: dict[str, list[str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            siblings = order.setdefault(path.rpartition(".")[0], [])
            if path not in siblings:
                siblings.append(path)
                shapes[path] = tuple(out.shape)

        return hook

    linear = [path for path, module in small.named_modules() if is_linear(module)]
    run(small, torch.arange(3, 3 + TOKENS).unsqueeze(0), {path: note(path) for path in linear})
    blocks = []
    for parent, paths in order.items():
        *lefts, output = paths
        lefts = [path for path in lefts if _by_token(shapes[path])]
        if lefts and _by_token(shapes[output]):
            blocks.append(_Block(parent, lefts, output, {path: shapes[path][-1] for path in lefts}))
    return blocks


def _by_token(shape: tuple[int, ...]) -> bool:
    """Whether a result for one sequence is [TOKENS, width], whatever axes of length 1 there are."""
    return len(shape) > 2 and shape[-2] == TOKENS and all(size == 1 for size in shape[:-2])


def _probe(
    small: nn.Module, blocks: list[_Block], rows: int, move: Callable[[_Block, str, torch.Tensor, int], None]
) -> dict[str, torch.Tensor]:
    """What reaches the output projections, less the same with nothing moved: [rows, TOKENS, inputs] each.

    Args:
        move: changes the output [1 + count, TOKENS, width] of a linear layer in place; its last argument is
            the number of the first moved row, that of row 0 being none.
    """
    found: dict[str, list[torch.Tensor]] = {block.where: [] for block in blocks}
    ids = torch.arange(3, 3 + TOKENS).unsqueeze(0)
    for begin in range(0, rows, _ROWS):
        count = min(_ROWS, rows - begin)
        hooks: dict[str, Hook] = {}
        for block in blocks:
            hooks |= {path: _mover(block, path, begin, move) for path in block.lefts}
            hooks[block.output] = _catch(found[block.where])
        run(small, ids.expand(1 + count, -1), hooks)
    return {where: torch.cat(parts) for where, parts in found.items()}


def _mover(
    block: _Block, path: str, begin: int, move: Callable[[_Block, str, torch.Tensor, int], None]
) -> Hook:
    def hook(module: nn.Module, args: Any, kwargs: Any, out: torch.Tensor) -> torch.Tensor:
        moved = out.clone()
        move(block, path, moved.view(len(moved), TOKENS, -1), begin)
        return moved

    return hook


def _catch(into: list[torch.Tensor]) -> Hook:
    def hook(module: nn.Module, args: Any, kwargs: Any, out: torch.Tensor) -> torch.Tensor:
        given = args[0]
        into.append((given[1:] - given[:1]).reshape(len(given) - 1, TOKENS, -1))
        return out[:1].expand_as(out)  # the layers after this one see nothing of it

    return hook


def _respond(small: nn.Module, blocks: list[_Block]) -> None:
    rows = max((sum(block.widths.values()) for block in blocks), default=0)

    def by(step: float) -> dict[str, torch.Tensor]:
        def move(block: _Block, path: str, out: torch.Tensor, begin: int) -> None:
            first = block.first(path)
            for row in range(1, len(out)):
                channel = begin + row - 1 - first
                if 0 <= channel < block.widths[path]:
                    out[row, MOVED, channel] += step

        return _probe(small, blocks, rows, move)

    once, twice = by(0.5), by(1.0)
    for block in blocks:
        count = sum(block.widths.values())
        block.once, block.twice = once[block.where][:count], twice[block.where][:count]


def _mixes(block: _Block) -> bool:
    """Whether later tokens see what was moved."""
    return bool((block.once[:, MOVED + 1 :].abs() > 1e-12).any())


# --- values ------------------------------------------------------------------------------------------


def _read(block: _Block) -> Attention:
    result = Attention(block.where, block.output)
    size = block.once.flatten(1).abs().amax(1)
    wrong = (block.twice - 2 * block.once).flatten(1).abs().amax(1)
    later = block.once[:, MOVED + 1 :].flatten(1).abs().amax(1)
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
        value = _span(path, channels)
        reading = [_span(block.output, list(column)) for column in zip(*outputs, strict=True)]
        if value is None or any(one is None for one in reading):
            result.heads, result.value_reason = [], "the channels of its heads are interleaved"
            return result
        result.heads.append(Head(value, tuple(one for one in reading if one is not None)))
    if max(head.value.size for head in result.heads) == 1:
        result.heads = []
        result.value_reason = "each value channel is weighted on its own (a gate comes before the output)"
    elif len({head.value.size for head in result.heads}) > 1:
        result.heads, result.value_reason = [], "its heads have different sizes"
    return result


def _span(path: str, channels: list[int]) -> Span | None:
    if channels != list(range(channels[0], channels[0] + len(channels))):
        return None
    return Span(path, channels[0], len(channels))


# --- queries and keys --------------------------------------------------------------------------------


def _free_keys(small: nn.Module, found: list[Attention], blocks: dict[str, _Block]) -> None:
    """Add to each head the key and query channels between which nothing but their product stands."""
    pairs = {one.where: _pairs(one, blocks[one.where]) for one in found if one.heads}
    most = max((pair[0].size for of in pairs.values() for pair in of), default=0)
    if most == 0:
        for one in found:
            one.key_reason = one.key_reason or "its queries and keys could not be told apart"
        return

    def move(block: _Block, path: str, out: torch.Tensor, begin: int) -> None:
        """Row i: channel i of every key twice as large, and of its queries half as large."""
        for key, queries in pairs.get(block.where, ()):
            for row in range(1, min(len(out), key.size - begin + 1)):
                channel = begin + row - 1
                for span, factor in ((key, 2.0), *((query, 0.5) for query in queries)):
                    if span.path == path:
                        out[row, :, span.start + channel] *= factor

    responses = _probe(small, [blocks[where] for where in pairs], most, move)
    for one in found:
        if not pairs.get(one.where):
            one.key_reason = "its queries and keys could not be told apart"
            continue
        size = pairs[one.where][0][0].size
        moved = responses[one.where][:size].flatten(1).abs().amax(1) > 1e-9
        free = (~moved).nonzero().flatten().tolist()
        span = _span("", free) if free else None
        if span is None or span.size < 2:
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


def _pairs(one: Attention, block: _Block) -> list[tuple[Span, tuple[Span, ...]]]:
    """For each head its key channels and, of equal size, the channels of its queries."""
    moved = block.once.abs() > 1e-12
    values = {index for head in one.heads for index in _rows_of(block, head.value)}
    blocks = [output for head in one.heads for output in head.outputs]
    roles: dict[tuple[bool, frozenset[int]], dict[str, list[int]]] = {}
    for index in range(len(moved)):
        if index in values or not moved[index].any():
            continue
        later = bool(moved[index, MOVED + 1 :].any())
        reached = frozenset(
            number for number, output in enumerate(blocks) if moved[index, :, output.channels].any()
        )
        path, channel = block.place(index)
        roles.setdefault((later, reached), {}).setdefault(path, []).append(channel)
    result, number = [], 0
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


def _rows_of(block: _Block, span: Span) -> Iterator[int]:
    first = block.first(span.path) + span.start
    yield from range(first, first + span.size)


def _last(block: _Block, by_path: dict[str, list[int]]) -> Span | None:
    """The run of channels in the linear layer that runs last: the ones before it feed it."""
    path = next((path for path in reversed(block.lefts) if path in by_path), None)
    return None if path is None else _span(path, by_path[path])
