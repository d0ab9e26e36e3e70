"""The statistics against scipy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from fedsim.analysis.statistics import auc, bootstrap_interval, paired_difference, rates, t_interval, wilson
from fedsim.errors import FedsimError


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (6, 196), (1, 2), (500, 1000), (3, 1_000_000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_is_scipys(successes: int, n: int, confidence: float) -> None:
    theirs = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_of_the_papers_headline() -> None:
    low, high = wilson(6, 196)
    assert (round(low, 3), round(high, 3)) == (0.014, 0.065)


def test_wilson_knows_nothing_of_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(-1, 10, 0.95), (11, 10, 0.95), (1, 10, 1.0), (1, 10, 0.0)])
def test_wilson_refuses(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(FedsimError, match="given"):
        wilson(successes, n, confidence)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.sampled_from([0.9, 0.95]))
@settings(max_examples=50, deadline=None)
def test_t_interval_is_scipys(values: list[float], confidence: float) -> None:
    ours = t_interval(values, confidence)
    spread = stats.sem(values)
    assert ours.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert ours.n == len(values)
    if spread > 1e-9:
        theirs = stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=spread)
        assert (ours.low, ours.high) == pytest.approx(theirs, rel=1e-9, abs=1e-9)


def test_one_value_has_no_interval() -> None:
    interval = t_interval([0.25])
    assert interval.mean == 0.25
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [math.inf]])
def test_t_interval_refuses(values: list[float]) -> None:
    with pytest.raises(FedsimError, match="t_interval"):
        t_interval(values)


def test_paired_difference_is_scipys_paired_test() -> None:
    a, b = [0.91, 0.84, 0.88, 0.95, 0.79], [0.71, 0.80, 0.66, 0.93, 0.70]
    ours = paired_difference(a, b)
    theirs = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    with pytest.raises(FedsimError, match="pairs"):
        paired_difference(a, b[1:])


def test_bootstrap_agrees_with_scipys() -> None:
    values = np.random.default_rng(3).normal(size=40)
    ours = bootstrap_interval(values, seed=1)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert bootstrap_interval(values, seed=1) == ours


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
@settings(max_examples=100, deadline=None)
def test_auc_is_scikit_learns_with_ties(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = [float(score) for score, _ in pairs], [malicious for _, malicious in pairs]
    if len(set(truth)) < 2:
        assert math.isnan(auc(scores, truth))
    else:
        assert auc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def test_auc_leaves_out_what_has_no_score() -> None:
    assert auc([1.0, math.nan, 2.0, 3.0], [False, True, False, True]) == 1.0
    assert math.isnan(auc([1.0, math.nan], [False, True]))
    assert auc([1.0, math.inf], [False, True]) == 1.0
    with pytest.raises(FedsimError, match="same shape"):
        auc([1.0], [True, False])


def test_rates_by_hand() -> None:
    found = rates([True, False, True, False, False], [True, True, False, False, False])
    assert found == (0.5, pytest.approx(1 / 3))
    assert math.isnan(rates([True], [False]).true_positive_rate)
    with pytest.raises(FedsimError, match="same shape"):
        rates([True], [True, False])
