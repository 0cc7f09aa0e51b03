"""How far two models' logits lie apart on the same tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

ROWS = 64  # rows worked on at once: 64 x 128k vocabulary x float64 is 64 MiB a temporary
CARD_BYTES = 2**28  # of a temporary on a card, where few large steps are the fast ones
MASKED = -1e30  # models that forbid tokens write the dtype's least number there; that is no logit
TOP = 5
HIGH = 0.9  # the quantile over positions that tells of many, and is deaf to a few


@dataclass(frozen=True)
class LogitDifference:
    """Two models' next-token logits over the same positions, reference first.

    Raw logits, over all positions and the whole vocabulary: `largest`, `mean` and `rms` of the absolute
    difference; `largest_entry`, the largest RMS difference of one vocabulary entry over all positions;
    `largest_position` and `largest_token` say where `largest` is. Distributions, per position: `divergence`,
    `median_divergence` and `largest_divergence` of the Kullback-Leibler divergence in nats from the reference
    to the other; `high_divergence` and `high_rms`, the 90th percentiles over positions; `total_variation`,
    the mean total variation distance; `top1`, the share of positions with the same best token; `top5`, the
    mean share of the five best tokens that both have.

    `not_finite` counts NaN and Inf in either model's logits; the other figures are NaN where it is not 0.
    `identical` says that all logits agree bit for bit.
    """

    reference: str
    other: str
    positions: int
    largest: float
    largest_position: int
    largest_token: int
    largest_entry: float
    mean: float
    rms: float
    divergence: float
    median_divergence: float
    high_divergence: float
    high_rms: float
    largest_divergence: float
    total_variation: float
    top1: float
    top5: float
    not_finite: int
    identical: bool


class LogitComparison:
    """Adds up a `LogitDifference` window by window; kept are sums, and one divergence per position."""

    def __init__(self, reference: str, other: str) -> None:
        self.reference, self.other = reference, other
        self._positions = self._values = self._not_finite = 0
        self._top1 = self._top5 = 0
        self._absolute = self._variation = 0.0
        self._largest, self._where = 0.0, (0, 0)
        self._squares: torch.Tensor | None = None  # (vocabulary,)
        self._divergences: list[torch.Tensor] = []
        self._position_squares: list[torch.Tensor] = []  # mean over the vocabulary, (positions,)
        self._identical = True

    def add(self, reference: torch.Tensor, other: torch.Tensor) -> None:
        """Take in logits of more positions, both `(positions, vocabulary)` of any float type.

        They are compared where `other` is: on a card that is far faster than what carries them to it.
        """
        rows = ROWS
        if other.device.type != "cpu":
            rows = max(rows, CARD_BYTES // (8 * other.shape[1]))
        for a, b in zip(reference.to(other.device).split(rows), other.split(rows), strict=True):
            self._add(a.double(), b.double())

    def _add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        begin = self._positions
        self._positions += len(a)
        bad = int((~torch.isfinite(a)).sum() + (~torch.isfinite(b)).sum())
        self._not_finite += bad
        if bad:
            self._divergences.append(torch.full((len(a),), math.nan, dtype=torch.float64))
            self._position_squares.append(self._divergences[-1])
            return
        if torch.equal(a, b):
            self._take_equal(a)
            return
        self._identical = False
        kept = (a > MASKED) | (b > MASKED)
        difference = torch.where(kept, (a - b).abs(), 0.0)
        self._values += int(kept.sum())
        self._absolute += float(difference.sum())
        largest = int(difference.argmax())
        if float(difference.view(-1)[largest]) > self._largest:
            self._largest = float(difference.view(-1)[largest])
            self._where = (begin + largest // a.shape[1], largest % a.shape[1])
        self._position_squares.append(difference.square().mean(1).cpu())
        squares = difference.square().sum(0).cpu()
        self._squares = squares if self._squares is None else self._squares + squares
        log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
        self._divergences.append(_divergence(log_p, log_q).cpu())
        self._variation += float((log_p.exp() - log_q.exp()).abs().sum()) / 2
        best_a, best_b = (x.topk(min(TOP, x.shape[1]), dim=-1).indices for x in (a, b))
        self._top1 += int((a.argmax(-1) == b.argmax(-1)).sum())
        self._top5 += int((best_a[:, :, None] == best_b[:, None, :]).sum())

    def _take_equal(self, a: torch.Tensor) -> None:
        self._values += int((a > MASKED).sum())
        self._divergences.append(torch.zeros(len(a), dtype=torch.float64))
        self._position_squares.append(self._divergences[-1])
        self._top1 += len(a)
        self._top5 += len(a) * min(TOP, a.shape[1])
        if self._squares is None:
            self._squares = torch.zeros(a.shape[1], dtype=torch.float64)

    def divergences(self) -> torch.Tensor:
        """The divergence of every position taken in, `(positions,)` float64, in nats."""
        return torch.cat(self._divergences) if self._divergences else torch.zeros(0, dtype=torch.float64)

    def result(self) -> LogitDifference:
        """The figures over everything taken in."""
        finite = self._not_finite == 0 and self._positions > 0
        squares = torch.zeros(1, dtype=torch.float64) if self._squares is None else self._squares
        divergences = self.divergences()
        squares_by_position = torch.cat(self._position_squares) if self._position_squares else divergences

        def over(total: float, count: int) -> float:
            return total / count if finite and count else math.nan

        return LogitDifference(
            reference=self.reference,
            other=self.other,
            positions=self._positions,
            largest=self._largest if finite else math.nan,
            largest_position=self._where[0],
            largest_token=self._where[1],
            largest_entry=math.sqrt(over(float(squares.max()), self._positions)) if finite else math.nan,
            mean=over(self._absolute, self._values),
            rms=math.sqrt(over(float(squares.sum()), self._values)) if finite else math.nan,
            divergence=float(divergences.mean()) if finite else math.nan,
            median_divergence=float(divergences.median()) if finite else math.nan,
            high_divergence=float(divergences.quantile(HIGH)) if finite else math.nan,
            high_rms=math.sqrt(float(squares_by_position.quantile(HIGH))) if finite else math.nan,
            largest_divergence=float(divergences.max()) if finite else math.nan,
            total_variation=over(self._variation, self._positions),
            top1=over(self._top1, self._positions),
            top5=over(self._top5, self._positions * min(TOP, len(squares))),
            not_finite=self._not_finite,
            identical=self._identical and finite,
        )


def kl_divergence(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """KL(softmax a || softmax b) in nats for each row, from float64 logits `(rows, vocabulary)` -> `(rows,)`.

    Written as the sum of p (e^d - 1 - d) with d = log q - log p: the same number, as q sums to one, but every
    term is at least 0, so that divergences far below float64's epsilon (nearly equal models) do not drown in
    cancellation.
    """
    return _divergence(a.log_softmax(-1), b.log_softmax(-1))


def _divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    d = log_q - log_p
    # For small d the terms of e^d - 1 - d cancel; its series does not.
    excess = torch.where(d.abs() < 1e-3, d.square() * (0.5 + d / 6 + d.square() / 24), torch.expm1(d) - d)
    p = log_p.exp()
    return torch.where(p > 0, p * excess, 0.0).sum(-1)
