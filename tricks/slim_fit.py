"""What a residual of each width would cost in nats, and how widths are shared out among layers.

Second moments of what will be cached, rounded as the cache rounds it (P), and of the side that is derived (D)
say what the estimator A = (PᵀP)⁻¹PᵀD leaves of D: it knows the noise of P and does not amplify it. What an
error E of D does to the model's words is, to second order, KL = ½·tr(F·E[EEᵀ]) nats a token, with F = E[g·gᵀ]
of the gradients g, with respect to D, of log-probabilities of words drawn from the model itself (the Fisher
information; g gathers what a token's value does to all later ones). The residual takes the principal
directions of the error so weighed. P's own rounding is steered by the same F, taken of P and D together, to
where it costs least (see `slim_feedback`); estimator and rounding are worked out in turns.

Widths are shared out by one measure for all layers: bytes go where they save the most nats, until the sum is
at most `target` times the source's own divergence from itself in the cache's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tricks.shipped.slim_rounding import from_bytes, to_bytes
from tricks.slim_algebra import as_integers
from tricks.slim_feedback import packed, shape_noise

_TURNS = 4
"""Estimator and rounding settle in three to five; the second round of turns minds the residual."""
_STEP = (4.0 / 126) ** 2 / 12
"""What rounding to 8 bits does to a unit variance in a row whose largest is 4 spreads."""


@dataclass
class Sums:
    """The sum of XᵀX [d, d] over `count` tokens."""

    inputs: torch.Tensor | None = None
    count: int = 0

    def add(self, x: torch.Tensor) -> None:
        """Take in the inputs of tokens [T, d], float64."""
        new = x.T @ x
        self.inputs = new if self.inputs is None else self.inputs + new
        self.count += len(x)


class Seen(Protocol):
    """What `fit` reads, see `slim_observe.Watched`."""

    primary: torch.Tensor
    derived: torch.Tensor
    fitting: Sums
    held: Sums
    scales: torch.Tensor | None

    def noise(self) -> torch.Tensor:
        """The variance of the rounding of each channel of P [e_in]."""


@dataclass(frozen=True)
class Fitted:
    """A layer's estimator Aᵀ [e_out, e_in] and, by falling weight, all directions R and L [e_out, e_out].

    `nats[r]` is the divergence, in nats a token, that a residual of width r leaves. `order` [e_in] and
    `weights` are those of the feedback of rounding errors.
    """

    matrix: torch.Tensor
    right: torch.Tensor
    left: torch.Tensor
    nats: torch.Tensor
    order: torch.Tensor | None = None
    weights: torch.Tensor | None = None


class _Moments:
    """Means of PᵀP [e_in, e_in], PᵀD [e_in, e_out], DᵀD [e_out, e_out] of exact numbers."""

    def __init__(self, seen: Seen, sums: Sums) -> None:
        assert sums.inputs is not None
        to_primary, to_derived = sums.inputs @ seen.primary.T / sums.count, sums.inputs @ seen.derived.T
        self.pp, self.pd = seen.primary @ to_primary, seen.primary @ to_derived / sums.count
        self.dd = seen.derived @ to_derived / sums.count

    def error(self, estimator: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The mean of EᵀE [e_out, e_out] for E = D − (P + noise)·A; A [e_in, e_out], noise [e_in, e_in]."""
        cross = self.pd.T @ estimator
        result: torch.Tensor = self.dd - cross - cross.T + estimator.T @ (self.pp + noise) @ estimator
        return result


def fit(seen: Seen, weights: torch.Tensor | None, feedback: bool, rank: int = 0) -> Fitted:
    """Estimator, directions, divergences and feedback of one layer.

    Args:
        weights: F [e_in + e_out, e_in + e_out]; None counts errors of all derived channels alike.
        feedback: whether errors of rounding P are fed back; else it is rounded to the nearest.
        rank: the width of the residual that the feedback is worked out for.
    """
    moments, variance, inside = _Moments(seen, seen.fitting), seen.noise(), len(seen.primary)
    ridge = 1e-12 * moments.pp.diagonal().mean() * torch.eye(inside).to(moments.pp)
    if weights is None or not bool(weights.any()):
        weights = torch.block_diag(ridge.new_zeros(inside, inside), torch.eye(len(seen.derived)).to(ridge))
    own, outer = weights[:inside, :inside], weights[inside:, inside:]
    values, vectors = torch.linalg.eigh(outer)
    values = values.clamp_min(values.max() * 1e-6).sqrt()
    root, inverse = (vectors * values) @ vectors.T, (vectors / values) @ vectors.T

    def estimator(noise: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = torch.linalg.solve(moments.pp + noise + ridge, moments.pd)
        return made

    def directions(matrix: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        spread, found = torch.linalg.eigh(root @ moments.error(matrix, noise) @ root)
        spread, found = spread.flip(0).clamp_min(1e-30).sqrt(), found.flip(1)
        # Each direction is scaled to unit spread, so that one 8-bit scale for all of them wastes nothing.
        return root @ found / spread, (inverse @ found * spread).T, found

    noise, order = variance.diag(), None
    moved: list[torch.Tensor] = []
    if feedback:
        order = variance.argsort(descending=True)
        for turn in range(_TURNS + bool(rank) * _TURNS):
            matrix = estimator(noise)
            passed = matrix
            if turn >= _TURNS:
                right, left, _ = directions(matrix, noise)
                passed = matrix - matrix @ right[:, :rank] @ left[:rank]
            both = torch.cat([torch.eye(inside).to(passed), passed], 1)
            moved, noise = shape_noise(both @ weights @ both.T, variance, order)
    numbers, rows, columns = as_integers(estimator(noise).T)
    matrix = numbers * rows[:, None] * columns
    right, left, found = directions(matrix.T, noise)
    left_out = _Moments(seen, seen.held).error(matrix.T, noise)
    taken = ((found.T @ root) * (found.T @ root @ left_out)).sum(1).clamp_min(0)
    total = taken.sum()
    remaining = torch.cat([total[None], total - taken.cumsum(0)]).clamp_min(0)
    remaining[1:] += _STEP * taken.cumsum(0)
    # What rounding P to the nearest costs by itself is any cache's; what is beyond it counts.
    remaining = remaining + ((own * noise).sum() - own.diagonal() @ variance).clamp_min(0)
    if order is None:
        return Fitted(matrix, right, left, remaining / 2)
    return Fitted(matrix, right, left, remaining / 2, order, packed(moved, order, seen.scales))


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
