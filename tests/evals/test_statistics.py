"""Paired statistics, against closed forms and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evals.statistics import dependent_mean, mcnemar, paired_mean, paired_proportion, tost


@given(gained=st.integers(0, 40), lost=st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial(gained, lost):
    flips = gained + lost
    tail = sum(math.comb(flips, k) for k in range(min(gained, lost) + 1)) / 2**flips
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_nothing_flipped_is_no_evidence_of_a_difference_nor_of_certainty():
    assert mcnemar(0, 0) == 1.0
    few, many = paired_proportion(0, 0, 10), paired_proportion(0, 0, 1000)
    assert few.mean == many.mean == 0
    assert few.low < -0.1 < 0.1 < few.high
    assert -0.01 < many.low < 0 < many.high < 0.01


def test_a_paired_mean_is_students():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30))
    estimate = paired_mean(b - a)
    low, high = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))


def test_tost_is_two_one_sided_t_tests_and_the_90_percent_interval():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.01, 0.1, size=200)
    estimate = paired_mean(differences)
    for margin in (0.005, 0.02, 0.05):
        above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
        p = tost(estimate, margin)
        assert p == pytest.approx(max(above, below))
        inner = stats.ttest_1samp(differences, 0).confidence_interval(0.90)
        assert (p < 0.05) == (-margin < inner[0] and inner[1] < margin)
    with pytest.raises(ValueError, match="no room"):
        tost(estimate, 0)


def test_a_constant_difference_is_known_exactly():
    estimate = paired_mean([0.5] * 10)
    assert (estimate.error, estimate.low, estimate.high) == (0, 0.5, 0.5)
    assert tost(estimate, 0.4) == 1.0
    assert tost(estimate, 0.6) == 0.0


def test_the_proportion_interval_covers():
    rng = np.random.default_rng(2)
    n, gain, loss, covered = 100, 0.10, 0.05, 0
    for _ in range(500):
        gained, lost, _same = rng.multinomial(n, [gain, loss, 1 - gain - loss])
        estimate = paired_proportion(int(gained), int(lost), n)
        covered += estimate.low <= gain - loss <= estimate.high
    assert covered / 500 > 0.93


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_the_block_bootstrap_covers_however_long_tokens_remember(memory):
    rng = np.random.default_rng(3)
    n, runs, covered = 4096, 200, 0
    for _ in range(runs):
        noise = rng.normal(size=n + 200)
        series = np.empty(n + 200)
        series[0] = noise[0]
        for i in range(1, n + 200):
            series[i] = memory * series[i - 1] + noise[i]
        estimate, _block = dependent_mean(series[200:])
        covered += estimate.low <= 0 <= estimate.high
    assert covered / runs > 0.92


def test_independent_items_cost_little_precision():
    differences = np.random.default_rng(4).normal(size=4096)
    estimate, _ = dependent_mean(differences)
    assert 1.0 <= estimate.error / paired_mean(differences).error < 1.5
    assert dependent_mean(differences) == dependent_mean(differences)


def test_a_difference_as_large_as_detectable_is_found_four_times_in_five():
    rng = np.random.default_rng(5)
    shift = paired_mean(rng.normal(0, 1, size=400)).detectable
    found = sum(
        not paired.low <= 0 <= paired.high
        for paired in (paired_mean(rng.normal(shift, 1, size=400)) for _ in range(400))
    )
    assert 0.72 < found / 400 < 0.88
