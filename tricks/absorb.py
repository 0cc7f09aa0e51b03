"""Operations that multiply a matrix into its neighbours, with nothing between them.

All in torch's layout: y = W·x + b with W [out, in]. S [d, d] is the matrix that is absorbed and s its bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tricks.errors import BadInput
from tricks.operations import Result, Value, operation, whole

WORST = 1e8
"""Condition number from which on a matrix is taken for singular."""
_ROWS = 1024


@operation("absorb.undo")
def undo(inputs: Mapping[str, Value], options: Mapping[str, Any]) -> Mapping[str, Result]:
    """W that reads S·x + s where it read x: W·inv(S), and b - W·inv(S)·s.

    Args:
        inputs: `weight` [out, d], `bias` (optional), `basis` S, `shift` s (optional).
    """
    basis, weight = whole(inputs["basis"]), whole(inputs["weight"])
    condition = float(torch.linalg.cond(basis))
    if not condition < WORST:
        raise BadInput(
            f"{inputs['basis'].name} is rank-deficient (condition number {condition:.0e}), so it cannot be "
            "absorbed; choose another with skipless:absorb=..."
        )
    solved: torch.Tensor = torch.linalg.solve(basis, weight, left=False)
    results: dict[str, Result] = {"weight": solved, "condition": torch.tensor(condition)}
    if "bias" in inputs:
        bias = whole(inputs["bias"])
        results["bias"] = bias - solved @ whole(inputs["shift"]) if "shift" in inputs else bias
    return results


@operation("absorb.after")
def after(inputs: Mapping[str, Value], options: Mapping[str, Any]) -> Mapping[str, Result]:
    """What S makes of a linear layer's output: S·W, and S·b + s.

    Args:
        inputs: `weight` [d, in], `bias` (optional), `basis` S, `shift` s (optional; at most one of several
            summands takes it).
    """
    basis = whole(inputs["basis"])
    weight = whole(inputs["weight"])

    def rows() -> Iterator[torch.Tensor]:
        for part in basis.split(_ROWS):
            yield part @ weight

    results: dict[str, Result] = {"weight": rows}
    if "bias" in inputs:
        bias = basis @ whole(inputs["bias"])
        results["bias"] = bias + whole(inputs["shift"]) if "shift" in inputs else bias
    return results


@operation("absorb.embedding")
def embedding(inputs: Mapping[str, Value], options: Mapping[str, Any]) -> Mapping[str, Result]:
    """What S makes of each embedding: E·Sᵀ + s, a few tokens at a time.

    Args:
        inputs: `weight` [vocabulary, d], `basis` S, `shift` s (optional).
    """
    basis, table = whole(inputs["basis"]), inputs["weight"]
    shift = whole(inputs["shift"]) if "shift" in inputs else torch.zeros(()).double()

    def rows() -> Iterator[torch.Tensor]:
        for first in range(0, table.shape[0], _ROWS):
            yield table.rows(first, min(first + _ROWS, table.shape[0])) @ basis.T + shift

    return {"weight": rows}


@operation("absorb.through")
def through(inputs: Mapping[str, Value], options: Mapping[str, Any]) -> Mapping[str, Result]:
    """W that reads x where it read S·x + s: W·S, and b + W·s.

    Args:
        inputs: `weight` [out, d], `bias` (optional), `basis` S, `shift` s (optional).
    """
    basis, weight = whole(inputs["basis"]), inputs["weight"]

    def rows() -> Iterator[torch.Tensor]:
        for first in range(0, weight.shape[0], _ROWS):
            yield weight.rows(first, min(first + _ROWS, weight.shape[0])) @ basis

    results: dict[str, Result] = {"weight": rows}
    if "bias" in inputs:
        bias = whole(inputs["bias"])
        results["bias"] = bias + whole(weight) @ whole(inputs["shift"]) if "shift" in inputs else bias
    return results
