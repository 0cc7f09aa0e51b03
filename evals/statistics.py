"""Paired statistics: the same item measured on both models, so only the differences count.

Differences are always converted minus source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.80
FEWEST_BLOCKS = 32


@dataclass(frozen=True)
class Estimate:
    """A mean difference over `n` items with its standard error and a 95 % confidence interval.

    `freedom` are the degrees of freedom of the t distribution behind the interval (infinite for a normal).
    """

    n: int
    mean: float
    error: float
    low: float
    high: float
    freedom: float

    @property
    def detectable(self) -> float:
        """The true difference that a two-sided test at 5 % would have seen four times in five."""
        return (
            float(_quantile((1 + CONFIDENCE) / 2, self.freedom) + _quantile(POWER, self.freedom)) * self.error
        )


def _quantile(level: float, freedom: float) -> float:
    return float(stats.norm.ppf(level) if math.isinf(freedom) else stats.t.ppf(level, freedom))


def _estimate(n: int, mean: float, error: float, freedom: float) -> Estimate:
    reach = _quantile((1 + CONFIDENCE) / 2, freedom) * error if n > 1 else math.nan
    return Estimate(n, mean, error, mean - reach, mean + reach, freedom)


def paired_mean(differences: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of independent paired differences, with Student's t interval.

    With a single item the error is NaN: nothing is known of the spread.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return _estimate(n, float(values.mean()) if n else math.nan, error, max(n - 1, 1))


def paired_proportion(gained: int, lost: int, n: int) -> Estimate:
    """The difference of two shares measured on the same `n` items, of which `gained` and `lost` changed.

    Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data" (2012): one success is added to either kind of change, so that no change at all among few
    items is not taken for certainty. `mean` is the difference as observed, the interval is around the
    adjusted one.
    """
    p_gained, p_lost = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    shifted = p_gained - p_lost
    error = math.sqrt((p_gained + p_lost - shifted**2) / (n + 2))
    reach = _quantile((1 + CONFIDENCE) / 2, math.inf) * error
    low, high = max(-1.0, shifted - reach), min(1.0, shifted + reach)
    return Estimate(n, (gained - lost) / n if n else math.nan, error, low, high, math.inf)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: the binomial probability of a split of the flips at least this uneven.

    1.0 where nothing flipped.
    """
    flips = gained + lost
    return float(stats.binomtest(gained, flips, 0.5).pvalue) if flips else 1.0


def tost(estimate: Estimate, margin: float, centre: float | None = None) -> float:
    """Two one-sided tests: the p value of "the true difference lies outside of ±margin".

    Schuirmann (1987). Below 0.05 the difference is shown to be smaller than the margin, which is the same as
    the 90 % confidence interval lying inside of it. `centre` is what the error belongs to where that is not
    the mean (see `paired_proportion`).
    """
    if margin <= 0:
        raise ValueError(f"a margin of {margin} leaves no room for equivalence")
    mean = estimate.mean if centre is None else centre
    if estimate.error == 0:
        return 0.0 if abs(mean) < margin else 1.0
    below, above = (mean + margin) / estimate.error, (mean - margin) / estimate.error
    if math.isinf(estimate.freedom):
        return float(max(stats.norm.sf(below), stats.norm.cdf(above)))
    return float(max(stats.t.sf(below, estimate.freedom), stats.t.cdf(above, estimate.freedom)))


def dependent_mean(differences: Sequence[float] | np.ndarray) -> tuple[Estimate, int]:
    """The mean of a series whose neighbours depend on each other, and the block length behind its error.

    The circular block bootstrap (Politis and Romano, 1992) redraws whole blocks, so that what is dependent
    stays together. Its variance needs no drawing: it is that of the means of all n circular blocks, divided
    by the number of blocks in a series. Blocks of 1, 2, 4, ... items are tried while at least 32 fit, and the
    largest error found counts: too short a block understates it, and which length is too short nobody knows
    beforehand.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    if n < 2:
        return paired_mean(values), 1
    mean = float(values.mean())
    sums = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values]) - mean)])
    best, block = -1.0, 1
    length = 1
    while length == 1 or n // length >= FEWEST_BLOCKS:
        means = (sums[length : length + n] - sums[:n]) / length
        blocks = n / length
        error = math.sqrt(float(np.square(means).mean()) / (blocks - 1))
        if error > best:
            best, block = error, length
        length *= 2
    return _estimate(n, mean, best, max(n // block - 1, 1)), block
