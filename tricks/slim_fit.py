"""What a residual of each width would cost in nats, and how widths are shared out among layers.

Second moments of what will be cached, rounded as the cache rounds it (P), and of the side that is derived (D)
say what the estimator A = (PᵀP)⁻¹PᵀD leaves of D: it knows the noise of P and does not amplify it. What an
error E of D does to the model's words is, to second order, KL = ½·tr(F·E[EEᵀ]) nats a token, with F = E[g·gᵀ]
of the gradients g, with respect to D, of log-probabilities of words drawn from the model itself (the Fisher
information; g gathers what a token's value does to all later ones). The residual takes the principal
directions of the error so weighed.

Widths are shared out by one measure for all layers: bytes go where they save the most nats, until the sum is
at most `target` times the source's own divergence from itself in the cache's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tricks.shipped.modeling_slim import from_bytes, to_bytes
from tricks.slim_algebra import as_integers

_STEP = (4.0 / 126) ** 2 / 12
"""What rounding to 8 bits does to a unit variance in a row whose largest is 4 spreads."""


@dataclass
class Sums:
    """PᵀP [e_in, e_in], PᵀD [e_in, e_out], DᵀD [e_out, e_out] over `count` tokens."""

    moments: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    count: int = 0

    def add(self, primary: torch.Tensor, derived: torch.Tensor) -> None:
        """Take in tokens: P [T, e_in] as cached and D [T, e_out], float64."""
        new = (primary.T @ primary, primary.T @ derived, derived.T @ derived)
        old = self.moments
        self.moments = new if old is None else (old[0] + new[0], old[1] + new[1], old[2] + new[2])
        self.count += len(primary)

    def error(self, estimator: torch.Tensor) -> torch.Tensor:
        """The mean of EᵀE [e_out, e_out] for E = D − P·A, A [e_in, e_out]."""
        assert self.moments is not None
        pp, pd, dd = self.moments
        cross = pd.T @ estimator
        result: torch.Tensor = (dd - cross - cross.T + estimator.T @ pp @ estimator) / self.count
        return result


@dataclass(frozen=True)
class Fitted:
    """A layer's estimator Aᵀ [e_out, e_in] and, by falling weight, all directions R and L [e_out, e_out].

    `nats[r]` is the divergence, in nats a token, that a residual of width r leaves.
    """

    matrix: torch.Tensor
    right: torch.Tensor
    left: torch.Tensor
    nats: torch.Tensor


def fit(fitting: Sums, held: Sums, weights: torch.Tensor | None = None) -> Fitted:
    """Estimator, directions and divergences of one layer.

    Args:
        fitting, held: moments of the tokens that A and R are fitted to, and of those they are judged by.
        weights: F [e_out, e_out]; None counts errors of all channels alike.
    """
    assert fitting.moments is not None
    pp, pd, _ = fitting.moments
    ridge = 1e-9 * pp.diagonal().mean() * torch.eye(len(pp), dtype=pp.dtype, device=pp.device)
    numbers, rows, columns = as_integers(torch.linalg.solve(pp + ridge, pd).T)
    matrix = numbers * rows[:, None] * columns
    error, left_out = fitting.error(matrix.T), held.error(matrix.T)
    if weights is None or not bool(weights.any()):
        weights = torch.eye(len(error), dtype=error.dtype, device=error.device)
    values, vectors = torch.linalg.eigh(weights)
    values = values.clamp_min(values.max() * 1e-6).sqrt()
    root, inverse = (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
    spread, directions = torch.linalg.eigh(root @ error @ root)
    spread, directions = spread.flip(0).clamp_min(1e-30).sqrt(), directions.flip(1)
    # Each direction is scaled to unit spread, so that one 8-bit scale for all of them wastes nothing.
    right, left = root @ directions / spread, (inverse @ directions * spread).T
    taken = ((directions.T @ root) * (directions.T @ root @ left_out)).sum(1).clamp_min(0)
    total = taken.sum()
    remaining = torch.cat([total[None], total - taken.cumsum(0)]).clamp_min(0)
    remaining[1:] += _STEP * taken.cumsum(0)
    return Fitted(matrix, right, left, remaining / 2)


@dataclass(frozen=True)
class Choice:
    """One way to cache a layer: bytes a token, nats a token, and what it stands for; None: as it was."""

    bytes: int
    nats: float
    what: Any = None


def share_out(layers: Sequence[Sequence[Choice]], limit: float) -> list[Choice]:
    """One choice for each layer, of few bytes, so that their nats sum to at most `limit`.

    Starts at the smallest choices and takes, step by step, whatever saves the most nats for a byte: the
    layers' lower convex hulls are walked down together. Where nothing saves more, the sum stays above.
    """
    chosen = [min(choices, key=lambda one: (one.bytes, one.nats)) for choices in layers]
    steps = [_step(now, choices) for now, choices in zip(chosen, layers, strict=True)]
    while sum(one.nats for one in chosen) > limit:
        place = max(range(len(layers)), key=lambda place: steps[place][0])
        if steps[place][0] <= 0:
            break
        chosen[place] = steps[place][1]
        steps[place] = _step(chosen[place], layers[place])
    return chosen


def _step(now: Choice, choices: Sequence[Choice]) -> tuple[float, Choice]:
    """The most nats for a byte that a larger choice saves, and that choice."""
    larger = [one for one in choices if one.bytes > now.bytes and one.nats < now.nats]
    return max(
        (((now.nats - one.nats) / (one.bytes - now.bytes), one) for one in larger),
        key=lambda step: step[0],
        default=(0.0, now),
    )


def as_cached(dtype: torch.dtype, scales: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """P [T, e_in] as the cache gives it back, float64.

    Args:
        scales: of the channels of an 8-bit cache [e_in]; None: it is kept in `dtype`.
    """

    def rounded(primary: torch.Tensor) -> torch.Tensor:
        if scales is None:
            return primary.to(dtype).double()
        read = from_bytes(to_bytes((primary / scales).float()), torch.float32)
        result: torch.Tensor = read.double() * scales
        return result

    return rounded
