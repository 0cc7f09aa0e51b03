"""Where the cos and sin come from that an attention turns its keys by.

They are handed to it as a pair, and then a rotary embedding made them of positions; or the module holds a
table of sines and cosines and is handed the positions (GPT-J, CodeGen). Whether positions alone say them is
tried: what was made of some tokens' positions must come out again, bit for bit, for a part of them and beside
a position far beyond any length. Frequencies that change with the length of the text do not pass.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from tricks.float64 import float64_arithmetic
from tricks.shipped.slim_turns import Buffered, Call, Pair, called, is_positions

_FAR = 2**22
"""A position beyond the length that any model was made for."""


class Turn(NamedTuple):
    """cos and sin [B or 1, S, width], the tensor that they have in common with those of other attentions, and
    how the shipped code makes them of positions (None: it does not, they are kept)."""

    pair: Pair
    common: torch.Tensor
    source: dict[str, Any] | None


def is_pair(x: Any) -> bool:
    """Whether this may be cos and sin."""
    return isinstance(x, tuple) and len(x) == 2 and all(isinstance(one, torch.Tensor) for one in x)


def find_turns(
    model: nn.Module,
    name: str,
    given: list[Any],
    made: list[tuple[str, Pair, Call]],
    keys: torch.Tensor,
) -> list[Turn]:
    """What the attention at the path `name` may turn its keys [B, h, S, d_h] by, the likeliest first.

    Args:
        given: its arguments.
        made: pairs that modules made so far: their paths, what they made, of what.
    """
    found = [Turn(pair, pair[0], _rotary(model, pair, made)) for pair in given if is_pair(pair)]
    if found:
        return found
    positions = [x for x in given if is_positions(x) and x.shape[-1] == keys.shape[-2]]
    return [turn for one in positions[:1] for turn in _buffers(model.get_submodule(name), one)]


def _rotary(model: nn.Module, pair: Pair, made: list[tuple[str, Pair, Call]]) -> dict[str, Any] | None:
    """The module that made a pair of positions and of nothing else."""
    for path, other, call in made:
        # A path with a number in it is another one in every layer, and few layers are seen here.
        if other[0] is pair[0] and not re.search(r"\d", path) and _by_position(model, path, pair, call):
            return {"module": path}
    return None


def _by_position(model: nn.Module, path: str, pair: Pair, call: Call) -> bool:
    args, kwargs = call
    positions = [x for x in (*args, *kwargs.values()) if is_positions(x)]
    if len(positions) != 1:
        return False
    where = positions[0]
    far = torch.cat([where, torch.full_like(where[:, :1], _FAR)], 1)
    module = copy.deepcopy(model.get_submodule(path))
    try:
        with torch.no_grad(), float64_arithmetic():
            part = called(module, call, where[:, 2:5])
            longer = called(module, call, far)
            again = called(module, call, where)
    except Exception:  # noqa: BLE001 - modelling code can fail in any way where a part is missing
        return False
    tries = ((part, slice(2, 5)), (longer, slice(None)), (again, slice(None)))
    return all(
        torch.equal(side[:, : old[:, at].shape[1]], old[:, at])
        for sides, at in tries
        for side, old in zip(sides, pair, strict=True)
    )


def _buffers(module: nn.Module, positions: torch.Tensor) -> Iterator[Turn]:
    """Tables of sines and cosines that a module holds, at some positions."""
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.ndim != 2 or not buffer.is_floating_point() or len(buffer) <= int(positions.max()):
            continue
        for sines_first in (True, False):
            pair = Buffered(module, name, sines_first).pair(((), {}), positions)
            yield Turn(pair, positions, {"buffer": name, "sines_first": sines_first})
