"""The numbers behind the pictures: small enough to travel in `evidence.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from evals.logits import LogitComparison
from evals.reference import Reference

POINTS = 400  # tokens in the picture of losses
BINS = 64  # of positions in a window


def series(
    reference: Reference,
    compared: LogitComparison,
    losses: torch.Tensor | None,
    hidden: Sequence[torch.Tensor],
    floor_hidden: Sequence[torch.Tensor],
) -> dict[str, Any]:
    """Losses of evenly spaced tokens, mean divergence by position in the window, error by layer.

    - `losses`: pairs (source, converted) in nats;
    - `positions`: triples (first position of the bin, mean divergence, largest divergence) in nats;
    - `layers`: pairs of relative errors of the residual stream behind each layer, (converted in the wider
      dtype, source in its storage dtype), over the first window.
    """
    pairs: list[list[float]] = []
    if losses is not None and len(losses) == len(reference.losses):
        step = max(1, len(losses) // POINTS)
        both = torch.stack([reference.losses, losses], dim=1)[::step]
        pairs = [[round(float(x), 6) for x in row] for row in both]
    return {
        "losses": pairs,
        "positions": _positions(reference, compared.divergences()),
        "layers": _layers(reference.hidden, hidden, floor_hidden),
    }


def _positions(reference: Reference, divergences: torch.Tensor) -> list[list[float]]:
    pieces = [piece for piece in reference.pieces if piece.logits is not None]
    at = torch.cat(
        [torch.arange(len(p.window.inputs) - len(p.window.targets), len(p.window.inputs)) for p in pieces]
    )
    if len(at) != len(divergences):
        return []
    width = max(1, -(-int(at.max() + 1) // BINS))
    rows = []
    for begin in range(0, int(at.max()) + 1, width):
        inside = divergences[(at >= begin) & (at < begin + width)]
        if len(inside):
            rows.append([begin, float(inside.mean()), float(inside.max())])
    return rows


def _layers(
    source: Sequence[torch.Tensor], converted: Sequence[torch.Tensor], floor: Sequence[torch.Tensor]
) -> list[list[float]]:
    """Relative RMS errors; the last state has passed the final norm, whose gain a trick may have moved on."""
    rows = []
    for a, b, c in zip(source[:-1], converted[:-1], floor[:-1], strict=False):
        if a.shape[1:] != b.shape[1:] or a.shape[1:] != c.shape[1:]:
            return []
        rows.append([_relative(a, b), _relative(a, c)])
    return rows


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    length = min(len(a), len(b))
    x, y = a[:length].double(), b[:length].double()
    return float((x - y).norm() / x.norm().clamp(min=1e-300))
