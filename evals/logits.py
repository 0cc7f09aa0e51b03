"""How far two models' logits lie apart on the same tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

ROWS = 64  # rows worked on at once: 64 x 128k vocabulary x float64 is 64 MiB a temporary
MASKED = (
    -1e30
)  # models that forbid tokens write the dtype's least number there; no difference is taken of those


@dataclass(frozen=True)
class LogitDifference:
    """Two models' next-token logits over the same scored positions, reference first.

    Figures over all positions and the whole vocabulary: `largest`, `mean` and `rms` of the absolute
    difference of the raw logits; `divergence` and `largest_divergence`, mean and maximum over positions of
    the Kullback-Leibler divergence in nats from the reference to the other; `top1`, the share of positions
    with the same best token. `not_finite` counts NaN and Inf in either model's logits; the other figures are
    NaN where it is not 0. `identical` says that all logits agree bit for bit.
    """

    reference: str
    other: str
    positions: int
    largest: float
    mean: float
    rms: float
    divergence: float
    largest_divergence: float
    top1: float
    not_finite: int
    identical: bool


class LogitComparison:
    """Adds up a `LogitDifference` window by window; nothing is kept but sums."""

    def __init__(self, reference: str, other: str) -> None:
        self.reference, self.other = reference, other
        self._positions = self._values = self._same = self._not_finite = 0
        self._absolute = self._squares = self._divergence = 0.0
        self._largest = self._largest_divergence = 0.0
        self._identical = True

    def add(self, reference: torch.Tensor, other: torch.Tensor) -> None:
        """Take in logits of more positions, both `(positions, vocabulary)` of any float type."""
        for a, b in zip(reference.split(ROWS), other.split(ROWS), strict=True):
            self._add(a.double(), b.double())

    def _add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self._positions += len(a)
        bad = int((~torch.isfinite(a)).sum() + (~torch.isfinite(b)).sum())
        self._not_finite += bad
        if bad:
            return
        self._identical = self._identical and torch.equal(a, b)
        kept = (a > MASKED) | (b > MASKED)
        difference = torch.where(kept, (a - b).abs(), 0.0)
        self._values += int(kept.sum())
        self._absolute += float(difference.sum())
        self._squares += float(difference.square().sum())
        self._largest = max(self._largest, float(difference.max()))
        divergence = kl_divergence(a, b)
        self._divergence += float(divergence.sum())
        self._largest_divergence = max(self._largest_divergence, float(divergence.max()))
        self._same += int((a.argmax(-1) == b.argmax(-1)).sum())

    def result(self) -> LogitDifference:
        """The figures over everything taken in."""
        finite = self._not_finite == 0 and self._positions > 0
        nan = math.nan

        def over(total: float, count: int) -> float:
            return total / count if finite and count else nan

        return LogitDifference(
            reference=self.reference,
            other=self.other,
            positions=self._positions,
            largest=self._largest if finite else nan,
            mean=over(self._absolute, self._values),
            rms=math.sqrt(over(self._squares, self._values)) if finite else nan,
            divergence=over(self._divergence, self._positions),
            largest_divergence=self._largest_divergence if finite else nan,
            top1=over(self._same, self._positions),
            not_finite=self._not_finite,
            identical=self._identical and finite,
        )


def kl_divergence(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """KL(softmax a || softmax b) in nats for each row, from float64 logits `(rows, vocabulary)` -> `(rows,)`.

    Written as the sum of p (e^d - 1 - d) with d = log q - log p: the same number, as q sums to one, but every
    term is at least 0, so that divergences far below float64's epsilon (nearly equal models) do not drown in
    cancellation.
    """
    log_p = a.log_softmax(-1)
    d = b.log_softmax(-1) - log_p
    # For small d the terms of e^d - 1 - d cancel; its series does not.
    excess = torch.where(d.abs() < 1e-3, d.square() * (0.5 + d / 6 + d.square() / 24), torch.expm1(d) - d)
    p = log_p.exp()
    return torch.where(p > 0, p * excess, 0.0).sum(-1)
