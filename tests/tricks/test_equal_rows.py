"""A module that is given equal rows computes one, and nobody can tell."""

from __future__ import annotations

import torch
from torch import nn

from tricks.equal_rows import each_row_once


class _Flat(nn.Module):
    """Returns its rows, and something of all rows together, as routers do."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x.flatten(0, 1)


def _rows_seen(module: nn.Module, x: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    seen: list[int] = []
    with each_row_once([module]):
        counted = module.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
        out = module(x)
        counted.remove()
    return seen, out


def test_equal_rows_are_computed_once_and_others_all() -> None:
    linear, x = nn.Linear(3, 4).double(), torch.rand(1, 5, 3, dtype=torch.float64)
    same = x.expand(7, -1, -1)
    rows, out = _rows_seen(linear, same)
    assert rows == [1]
    assert torch.equal(out, linear(x).expand(7, -1, -1))
    other = same.clone()
    other[6, 4, 2] += 1e-12
    rows, out = _rows_seen(linear, other)
    assert rows == [7]
    assert torch.equal(out, linear(other))
    assert not linear._forward_hooks
    assert not linear._forward_pre_hooks


def test_what_is_not_said_row_by_row_is_computed_of_all() -> None:
    x = torch.rand(1, 2, 3).expand(4, -1, -1)
    with each_row_once([flat := _Flat()]):
        rows, together = flat(x)
    assert torch.equal(rows, x + 1)
    assert torch.equal(together, x.flatten(0, 1))
