"""What reaches an attention block's output projection when single channels of its projections are moved."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tricks.equal_rows import each_row_once
from tricks.specimen import TOKENS, Hook, run

MOVED = 1
"""The token at which channels are moved."""
LATER = slice(MOVED + 1, None)
_ROWS = 192
"""Sequences of one run; each moves one channel of every attention block at once."""

Move = Callable[["Block", str, torch.Tensor, int], None]
"""(block, path, out, begin): changes the output [1 + count, TOKENS, width] of the linear layer `path` in
place; row 0 stays, row 1 is the moved row number `begin`."""


@dataclass
class Block:
    """One group of linear layers: `lefts`, and the one that their results meet in.

    `once` and `twice` are the responses to a step of one channel and to twice that step
    [channels of all lefts, TOKENS, inputs of the output projection].
    """

    where: str
    lefts: list[str]
    output: str
    widths: dict[str, int] = field(default_factory=dict)
    once: torch.Tensor = field(default_factory=lambda: torch.zeros(0, TOKENS, 0))
    twice: torch.Tensor = field(default_factory=lambda: torch.zeros(0, TOKENS, 0))

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

    @property
    def mixes(self) -> bool:
        """Whether later tokens see what was moved."""
        return bool((self.once[:, LATER].abs() > 1e-12).any())


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by one matrix."""
    return isinstance(module, (nn.Linear, Conv1D))


def blocks_of(small: nn.Module) -> list[Block]:
    """Linear layers of the specimen `small` with one parent, in the order in which they run, and the
    responses of those that mix tokens. The last of them is the output projection, unless it reads what the
    others read: then it is the layer that runs next (BERT keeps it in a module of its own)."""
    order: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    given: dict[str, torch.Tensor] = {}

    def note(path: str) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if path not in shapes:
                order.append(path)
                shapes[path], given[path] = tuple(out.shape), args[0]

        return hook

    linear = [path for path, module in small.named_modules() if is_linear(module)]
    run(small, _ids(), {path: note(path) for path in linear})
    siblings: dict[str, list[str]] = {}
    for path in order:
        siblings.setdefault(path.rpartition(".")[0], []).append(path)
    blocks = []
    output: str | None
    for parent, paths in siblings.items():
        *lefts, output = paths
        if any(torch.equal(given[left], given[output]) for left in lefts):
            lefts, output = paths, _apart(parent, order[order.index(output) + 1 :], siblings)
            if output is None:
                continue
        lefts = [path for path in lefts if by_token(shapes[path])]
        if lefts and by_token(shapes[output]):
            blocks.append(Block(parent, lefts, output, {path: shapes[path][-1] for path in lefts}))
    _respond(small, _mixing(small, blocks))
    return blocks


def _apart(parent: str, following: list[str], siblings: dict[str, list[str]]) -> str | None:
    """The linear layer that runs next, if it stands alone in a module beside `parent`."""
    around = parent.rpartition(".")[0] + "."
    path = next(iter(following), "")
    beside = path.startswith(around) and len(siblings[path.rpartition(".")[0]]) == 1
    return path if beside else None


def _ids() -> torch.Tensor:
    return torch.arange(3, 3 + TOKENS).unsqueeze(0)


def by_token(shape: tuple[int, ...]) -> bool:
    """Whether a result for one sequence is [TOKENS, width], whatever axes of length 1 there are."""
    return len(shape) > 2 and shape[-2] == TOKENS and all(size == 1 for size in shape[:-2])


def probe(small: nn.Module, blocks: list[Block], rows: int, move: Move) -> dict[str, torch.Tensor]:
    """What reaches the output projections, less the same with nothing moved: [rows, TOKENS, inputs] each."""
    found: dict[str, list[torch.Tensor]] = {block.where: [] for block in blocks}
    for begin in range(0, rows, _ROWS):
        count = min(_ROWS, rows - begin)
        hooks: dict[str, Hook] = {}
        for block in blocks:
            hooks |= {path: _mover(block, path, begin, move) for path in block.lefts}
        for block in blocks:
            hooks[block.output] = _catch(found[block.where])
        hooks |= dict.fromkeys(_layers(small), _unmoved)
        with each_row_once(_beside(small, blocks)):
            run(small, _ids().expand(1 + count, -1), hooks)
    return {where: torch.cat(parts) for where, parts in found.items()}


def _beside(small: nn.Module, blocks: list[Block]) -> Iterator[nn.Module]:
    """The outermost modules with parameters that hold no linear layer of any block."""
    held = {path for block in blocks for path in (*block.lefts, block.output)}
    around = {path[:end] for path in held for end, char in enumerate(path) if char == "."} | held | {""}
    for path, module in small.named_modules():
        parent = path.rpartition(".")[0]
        if path not in around and parent in around and parent not in held and list(module.parameters()):
            yield module


def _mover(block: Block, path: str, begin: int, move: Move) -> Hook:
    def hook(module: nn.Module, args: Any, kwargs: Any, out: torch.Tensor) -> torch.Tensor:
        moved = out.clone()
        move(block, path, moved.view(len(moved), TOKENS, -1), begin)
        return moved

    return hook


def _catch(into: list[torch.Tensor]) -> Hook:
    def hook(module: nn.Module, args: Any, kwargs: Any, out: torch.Tensor) -> torch.Tensor:
        given = args[0]
        into.append((given[1:] - given[:1]).reshape(len(given) - 1, TOKENS, -1))
        return out[:1].expand_as(out).clone()  # the layers after this one see nothing of it

    return hook


def _layers(small: nn.Module) -> list[str]:
    """The outermost modules that are numbered."""
    return [path for path, _ in small.named_modules() if re.fullmatch(r"[^\d]+\.\d+", path)]


def _unmoved(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
    """A layer's results for the unmoved row, in place of all: what went around its output projection ends."""

    def first(value: Any) -> Any:
        same = isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 2
        return value[:1].expand_as(value).clone() if same else value

    return tuple(map(first, out)) if type(out) is tuple else first(out)


def _mixing(small: nn.Module, blocks: list[Block]) -> list[Block]:
    """Those of `blocks` in which later tokens see anything when all channels are moved at once."""
    generator = torch.Generator().manual_seed(2)

    def move(block: Block, path: str, out: torch.Tensor, begin: int) -> None:
        step = torch.rand(out[1:, MOVED].shape, generator=generator, dtype=out.dtype)
        out[1:, MOVED] += 0.5 + step

    moved = probe(small, blocks, 2, move)
    return [block for block in blocks if moved[block.where][:, LATER].any()]


def _respond(small: nn.Module, blocks: list[Block]) -> None:
    rows = max((sum(block.widths.values()) for block in blocks), default=0)

    def by(step: float) -> dict[str, torch.Tensor]:
        def move(block: Block, path: str, out: torch.Tensor, begin: int) -> None:
            first = block.first(path)
            low, high = max(begin, first), min(begin + len(out) - 1, first + block.widths[path])
            if low < high:
                number = torch.arange(low, high)
                out[number - begin + 1, MOVED, number - first] += step

        return probe(small, blocks, rows, move)

    once, twice = by(0.5), by(1.0)
    for block in blocks:
        count = sum(block.widths.values())
        block.once, block.twice = once[block.where][:count], twice[block.where][:count]
