"""The operation that gives projections an identity block and moves what that takes into their partners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tricks.errors import BadInput
from tricks.operations import Result, Value, operation, whole
from tricks.pivots import pivots

WORST = 1e8
"""Condition number from which on a block is taken for rank-deficient."""


@operation("matshrink.block")
def block(inputs: Mapping[str, Value], options: Mapping[str, Any]) -> Mapping[str, Result]:
    """Proposition 1 of MatShrink in dual form, for all heads and latents of one attention block.

    With a block of rows W [n, in] of one projection and A = W[:, J] for n well-chosen input channels J, W
    becomes inv(A)·W, which is the identity in J; what reads it takes A: an output projection's columns
    become O·A, the rows of queries inv-transposed Aᵀ·Q, as only q·k enters.

    Args:
        inputs: `<path>.weight` and `<path>.bias` of the linear layers.
        options: `transposed` (paths that store [in, out]), `merges` (each with `left`, `rights` and `kind`:
            latents, values or keys), `pivot` (qr or first) and, for the stored form, `groups` by path.
    """
    transposed = set(options["transposed"])
    weights: dict[str, torch.Tensor] = {}
    biases: dict[str, torch.Tensor] = {}
    for role, value in inputs.items():
        path, _, kind = role.rpartition(".")
        values = whole(value)
        if kind == "bias":
            biases[path] = values.clone()
        else:
            weights[path] = (values.T if path in transposed else values).clone()
    index: dict[tuple[str, int], list[int]] = {}
    worst = 0.0
    for merge in options["merges"]:
        left, start, size = merge["left"]
        rows = weights[left][start : start + size]
        chosen = list(range(size)) if options["pivot"] == "first" else pivots(rows)
        basis = rows[:, chosen].clone()
        condition = float(torch.linalg.cond(basis))
        if not condition < WORST:
            raise BadInput(
                f"{left}: the {merge['kind']} in channels {start} to {start + size - 1} are rank-deficient "
                f"(condition number {condition:.0e}) and have no such basis; leave matshrink out"
            )
        worst = max(worst, condition)
        solved = torch.linalg.solve(basis, rows)
        solved[:, chosen] = torch.eye(size, dtype=torch.float64)
        weights[left][start : start + size] = solved
        if left in biases:
            biases[left][start : start + size] = torch.linalg.solve(basis, biases[left][start : start + size])
        for right, begin, count in merge["rights"]:
            span = slice(begin, begin + count)
            if merge["kind"] != "keys":
                weights[right][:, span] = weights[right][:, span] @ basis
                continue
            weights[right][span] = basis.T @ weights[right][span]
            if right in biases:
                biases[right][span] = basis.T @ biases[right][span]
        index[left, start] = chosen
    results: dict[str, Result] = {f"{path}.bias": bias for path, bias in biases.items()}
    for path, weight in weights.items():
        groups = options["groups"].get(path)
        if groups:
            results |= {f"{path}.{name}": part for name, part in _parts(path, weight, groups, index).items()}
        else:
            results[f"{path}.weight"] = weight.T if path in transposed else weight
    return {**results, "condition": torch.tensor(worst)}


def _parts(
    path: str,
    weight: torch.Tensor,
    groups: list[dict[str, int]],
    index: dict[tuple[str, int], list[int]],
) -> dict[str, torch.Tensor]:
    """What is stored of a shrunk projection [out, in]; see `shipped.modeling_matshrink`."""
    result: dict[str, torch.Tensor] = {}
    dense = torch.ones(len(weight), dtype=torch.bool)
    for number, group in enumerate(groups):
        rests, chosen = [], []
        for count in range(group["count"]):
            start = group["first"] + count * group["step"]
            span = slice(start, start + group["size"])
            kept = torch.ones(weight.shape[1], dtype=torch.bool)
            kept[index[path, start]] = False
            rests.append(weight[span][:, kept])
            chosen.append(index[path, start])
            dense[span] = False
        result[f"shrunk_{number}"] = torch.stack(rests)
        result[f"index_{number}"] = torch.tensor(chosen, dtype=torch.float64)
    if dense.any():
        result["dense"] = weight[dense]
    return result
