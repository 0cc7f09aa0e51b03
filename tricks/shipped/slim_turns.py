"""The cos and sin that cached keys are turned by, made anew of the tokens' positions.

A position takes 4 bytes; cos and sin take a number for each channel of a head. They are kept as they came
only where a position alone does not say them: frequencies that change with the length of the text (dynamic,
longrope), positions on several axes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

POSITION_BYTES = 4

Pair = tuple[torch.Tensor, torch.Tensor]
"""cos and sin as the model hands them round [B or 1, S, width]."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a rotary embedding, without what is in its float tensors."""


class Handed:
    """cos and sin that the model hands to its attention, who made them is not known."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def turn(self, given: list[Any]) -> tuple[Pair, Call | None]:
        """The pair among an attention's arguments, and the call that made it."""
        pair: Pair = next(x for x in given if isinstance(x, tuple) and torch.is_tensor(x[0]))
        return pair, None

    def forget(self, *_: Any) -> None:
        """The forward pass is over: what can be made anew goes."""
        for table in self.made:
            table.full = None
        self.made.clear()


class Rotary(Handed):
    """Those of a rotary embedding, a module that makes them of positions."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls: list[tuple[torch.Tensor, Call]] = []
        module.register_forward_hook(self.note, with_kwargs=True)

    def note(self, module: nn.Module, args: Any, kwargs: Any, pair: Pair) -> None:
        self.calls.append((pair[0], blanked(args, kwargs)))

    def turn(self, given: list[Any]) -> tuple[Pair, Call | None]:
        pair, _ = super().turn(given)
        found = [call for cos, call in self.calls if cos is pair[0]]
        # Between devices a copy is handed on.
        return pair, found[0] if found else next(call for cos, call in self.calls if same(cos, pair[0]))

    def positions(self, call: Call) -> torch.Tensor:
        """[B or 1, S]."""
        return positions_in(call)

    def pair(self, call: Call, positions: torch.Tensor) -> Pair:
        """cos and sin of the positions [B, n], as in `call`."""
        return called(self.module, call, positions)

    def forget(self, *_: Any) -> None:
        super().forget()
        self.calls.clear()


class Buffered(Handed):
    """Those of a table of sines and cosines [positions, width] that an attention module holds itself."""

    def __init__(self, module: nn.Module, name: str, sines_first: bool) -> None:
        super().__init__()
        self.module, self.name, self.sines_first = module, name, sines_first

    def turn(self, given: list[Any]) -> tuple[Pair, Call | None]:
        call: Call = tuple(x for x in given if is_positions(x)), {}
        return self.pair(call, self.positions(call)), call

    def positions(self, call: Call) -> torch.Tensor:
        return positions_in(call)

    def pair(self, call: Call, positions: torch.Tensor) -> Pair:
        table: Any = getattr(self.module, self.name)
        first, second = table.to(positions.device)[positions].chunk(2, -1)
        return (second, first) if self.sines_first else (first, second)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether one is a copy of the other."""
    return one.shape == other.shape and torch.equal(one.to(other.device), other)


def is_positions(x: Any) -> bool:
    """Whether an argument is positions of tokens [B or 1, S]."""
    return torch.is_tensor(x) and x.dtype in (torch.int64, torch.int32) and x.dim() == 2


def positions_in(call: Call) -> torch.Tensor:
    """The positions among the arguments of a call."""
    args, kwargs = call
    found: torch.Tensor = next(x for x in (*args, *kwargs.values()) if is_positions(x))
    return found


def blanked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Arguments with empty tensors in the place of float ones, of which dtype and device alone are read."""

    def blank(x: Any) -> Any:
        return x.new_empty(0) if torch.is_tensor(x) and x.is_floating_point() else x

    return tuple(blank(x) for x in args), {name: blank(x) for name, x in kwargs.items()}


def called(module: nn.Module, call: Call, positions: torch.Tensor) -> Pair:
    """What a rotary embedding makes of other positions [B, n], past its hooks."""

    def other(x: Any) -> Any:
        if is_positions(x):
            return positions
        return x.to(positions.device) if torch.is_tensor(x) else x

    args, kwargs = call
    pair: Pair = module.forward(*map(other, args), **{name: other(x) for name, x in kwargs.items()})
    return pair
