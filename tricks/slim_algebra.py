"""The matrices of slim attention: the cached side P, the derived side D = P·A + C·B, in float64.

Row convention in the prose, torch's layout [out, in] in the code: P = X·W_P, D = X·W_D, and

    D ≈ P·A + C·L  with  C = (D − P·A)·R,  L·R = 1:

the error that A leaves is itself what is cached, in the few directions R where it weighs most, so C is small
and needs few bits. C comes of the token's input and of P as it is cached, rounding included.

Unsettled, A = W_P⁺·W_D (the paper's K-only is that with no residual) and R spans, first, what A cannot make
(W_P singular or narrower than the input) and then the directions in which the rounding of P is amplified
most: the left singular vectors of Aᵀ·diag(row norms of W_P). That is exact in exact arithmetic for every W_P.
Settled (see `slim_settle`), A and R are fitted to activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open

from tricks.errors import BadInput
from tricks.operations import Result, Value, operation, whole

OPERATION = "slim.derive"
_ROUNDING = 2.0**-9
"""Half a unit in the last place of bfloat16, relative."""


def channels(weight: torch.Tensor, slot: list[int]) -> torch.Tensor:
    """The rows [e, d] of one side in a projection's weight [N, d]."""
    groups, width, offset, size = slot
    rows: torch.Tensor = weight.unflatten(0, (groups, width))
    return rows[:, offset : offset + size].flatten(0, 1)


def without(weight: torch.Tensor, slot: list[int]) -> torch.Tensor:
    """The rows of a projection's weight that are not one side's."""
    groups, width, offset, size = slot
    rows: torch.Tensor = weight.unflatten(0, (groups, width))
    return torch.cat([rows[:, :offset], rows[:, offset + size :]], 1).flatten(0, 1)


def exact(primary: torch.Tensor, derived: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Aᵀ [e_out, e_in], and every direction [e_out, e_out] in the order in which a residual should take it.

    Args:
        primary: W_P [e_in, d].
        derived: W_D [e_out, d].

    Raises:
        BadInput: a weight is not finite.
    """
    if not torch.isfinite(primary).all() or not torch.isfinite(derived).all():
        raise BadInput("a key or value projection holds NaN or Inf, so the model is broken; repair it first")
    matrix = derived @ torch.linalg.pinv(primary, rtol=1e-12)
    lost = derived - matrix @ primary
    amplified = matrix * (_ROUNDING * primary.norm(dim=1))
    made, sizes, _ = torch.linalg.svd(lost, full_matrices=True)
    first = int((sizes > 1e-10 * derived.norm()).sum())
    rest = made[:, first:]
    rest = rest @ torch.linalg.svd(rest.T @ amplified, full_matrices=True)[0]
    return matrix, torch.cat([made[:, :first], rest], 1)


def condition(primary: torch.Tensor) -> float:
    """The condition number of W_P."""
    values = torch.linalg.svdvals(primary)
    return float(values[0] / values[-1]) if values[-1] > 0 else float("inf")


def as_integers(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix as 16-bit integers and powers of two for its rows and columns: the three in float64."""

    def power(values: torch.Tensor) -> torch.Tensor:
        return torch.exp2(torch.ceil(torch.log2(values.clamp_min(1e-30)))).clamp(2.0**-14, 2.0**14)

    columns = power(matrix.abs().amax(0))
    rows = power((matrix / columns).abs().amax(1) / 32767)
    whole_numbers = (matrix / columns / rows[:, None]).round()
    if whole_numbers.abs().max() > 32767:
        raise BadInput(
            "a key projection is too near to singular for slim attention; use mode=x or leave it out"
        )
    return whole_numbers, rows, columns


def two_parts(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values [...] as two numbers of `dtype` that sum to nearly them [2, ...]."""
    high = values.to(dtype).double()
    return torch.stack([high, values - high])


_TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@operation(OPERATION)
def derive(inputs: Mapping[str, Value], options: Mapping[str, Any]) -> Mapping[str, Result]:
    """The tensors of `modeling_slim.Derived`, and what is left of a fused projection.

    Inputs: `primary` and `derived`, the weights of the two projections (one and the same where they are
    fused). Options: `primary` and `derived` (slots), `transposed`, `residual`, `integers`, `dtype`, and
    `settled`: {file, layer} where A and R were fitted.
    """
    weights = {side: whole(inputs[side]) for side in ("primary", "derived")}
    if options["transposed"]:
        weights = {side: weight.T for side, weight in weights.items()}
    primary, derived = (channels(weights[side], options[side]) for side in ("primary", "derived"))
    rank = options["residual"]
    read: dict[str, torch.Tensor] = {}
    if options.get("settled"):
        number = f"{options['settled']['layer']}."
        with safe_open(options["settled"]["file"], "pt") as file:
            read = {
                key.removeprefix(number): file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118 - it is no mapping
                if key.startswith(number)
            }
        matrix, right, left = read["A"], read["R"], read["L"]
        scales = read.get("scales", primary.new_ones(len(primary)))
    else:
        # As it will be stored: another trick may have changed it, and A amplifies what rounding loses.
        primary = primary.to(_TORCH[options["dtype"]]).double()
        matrix, directions = exact(primary, derived)
        right, left = directions[:, :rank], directions[:, :rank].T
        scales = primary.norm(dim=1) / primary.shape[1] ** 0.5
    results: dict[str, Result] = {}
    if options["integers"]:
        numbers, rows, columns = as_integers(matrix)
        matrix = numbers * rows[:, None] * columns
        results |= {"values": numbers, "row_scales": rows, "column_scales": columns}
    else:
        matrix = matrix.to(_TORCH[options["dtype"]]).double()
        results["values"] = matrix
    dtype = _TORCH[options["dtype"]]
    if options["cached_bits"] == 8 and options["integers"]:
        results["cached_scales"] = scales
    if "order" in read:
        results |= {"order": read["order"].double(), "feedback": read["W"]}
    if rank:
        reads = torch.cat([right.T @ derived, -right.T @ matrix], 1)
        results["residual_in"] = two_parts(reads, dtype)
        results["residual_out"] = two_parts(left.T, dtype)
    if options["fused"]:
        rest = without(weights["derived"], options["derived"])
        results["rest"] = rest.T.contiguous() if options["transposed"] else rest
    return results
