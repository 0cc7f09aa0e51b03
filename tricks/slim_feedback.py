"""Where rounding errors are moved to: the matrices W of `shipped.slim_rounding`, and the noise they leave.

An error e of P costs ½·e·H·eᵀ nats with H = [1 A]·F·[1 A]ᵀ, F the Fisher information of P and D together: A
passes it on to D. With a block's error e₁ given, the cost is least where the channels to come are moved by
−e₁·W, W = H₁₂·H₂₂⁻¹, and what remains is that of the Schur complement H₁₁ − H₁₂·H₂₂⁻¹·H₂₁. The large
eigenvalues of H, which are few, so meet the errors of the last, small blocks alone. In lattice words: Babai's
nearest plane, by blocks (GPTQ does the same to weights, with the Hessian of inputs; arXiv:2210.17323).
"""

from __future__ import annotations

import torch

from tricks.shipped.slim_rounding import blocks


def shape_noise(
    cost: torch.Tensor, variance: torch.Tensor, order: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The W of all blocks, channels in `order`; and the noise's covariance [e, e], channels as they stand.

    Args:
        cost: H [e, e], positive semidefinite.
        variance: of rounding each channel to the nearest [e].
        order: the channels as they are rounded [e].
    """
    cost = (cost + cost.T)[order][:, order] / 2
    cost = cost + 1e-7 * cost.diagonal().mean() * torch.eye(len(cost)).to(cost)
    spread = torch.eye(len(cost)).to(cost)
    weights = []
    for first, last in blocks(len(cost))[:-1]:
        weight = torch.linalg.solve(cost[last:, last:], cost[last:, first:last]).T
        weights.append(weight)
        spread[first:last, last:] = -weight
    back = order.argsort()
    noise = spread.T @ (variance[order][:, None] * spread)
    return weights, noise[back][:, back]


def packed(weights: list[torch.Tensor], order: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """All W one after the other [feedback_size(e)], for channels that are divided by `scales` [e]."""
    parts = []
    for (first, last), weight in zip(blocks(len(order)), weights, strict=False):
        if scales is not None:
            weight = scales[order[first:last]][:, None] * weight / scales[order[last:]]
        parts.append(weight.flatten())
    return torch.cat(parts)
