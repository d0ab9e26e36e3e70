"""LiRA's arithmetic against scipy, and its rates by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from fedsim.analysis.statistics import auc, wilson
from fedsim.errors import FedsimError
from fedsim.observers.likelihood_ratio import bound, confidences, curve, likelihood_ratios, operating_point

draw = np.random.default_rng(3)


def test_confidences_are_the_logit_of_the_labels_probability() -> None:
    logits, labels = draw.normal(0, 3, (40, 5)), draw.integers(0, 5, 40)
    probability = special.softmax(logits, axis=1)[np.arange(40), labels]
    np.testing.assert_allclose(confidences(logits, labels), special.logit(probability), rtol=1e-9)


def test_confidences_stay_exact_where_the_softmax_is_one() -> None:
    assert confidences(np.array([[200.0, 0.0, 0.0]]), np.array([0]))[0] == pytest.approx(200 - np.log(2), rel=1e-12)


@pytest.mark.parametrize("pooled", [False, True])
def test_ratios_are_those_of_scipys_normals(pooled: bool) -> None:
    k, n = 8, 30
    shadows, target = draw.normal(1, 2, (k, n)), draw.normal(1, 2, n)
    inside = np.stack([draw.permutation(np.arange(k) % 2 == 0) for _ in range(n)], axis=1)
    means, spreads = {}, {}
    for side in (True, False):
        rows = [shadows[inside[:, i] == side, i] for i in range(n)]
        means[side] = np.array([row.mean() for row in rows])
        own = np.array([row.std(ddof=1) for row in rows])
        together = np.sqrt(sum(((row - row.mean()) ** 2).sum() for row in rows) / sum(len(row) - 1 for row in rows))
        spreads[side] = np.full(n, together) if pooled else own
    expected = stats.norm.logpdf(target, means[True], spreads[True])
    expected -= stats.norm.logpdf(target, means[False], spreads[False])
    np.testing.assert_allclose(likelihood_ratios(target, shadows, inside, "online", pooled), expected, rtol=1e-9)
    offline = likelihood_ratios(target, shadows, inside, "offline", pooled)
    np.testing.assert_allclose(stats.norm.cdf(offline), stats.norm.cdf(target, means[False], spreads[False]))


def test_an_example_needs_two_shadow_models_on_each_side() -> None:
    inside = np.array([[True], [True], [True], [False]])
    with pytest.raises(FedsimError, match="fewer than 2"):
        likelihood_ratios(np.zeros(1), np.zeros((4, 1)), inside)


def test_a_rate_is_told_with_wilsons_interval_and_never_exceeded() -> None:
    scores = np.array([9.0, 8, 7, 3, 2, 6, 5, 4, 1, 0])
    members = np.array([True] * 5 + [False] * 5)
    strict = operating_point(scores, members, 0.1)
    assert (strict.fpr, strict.tpr) == (0.0, 0.6)
    assert (strict.tpr_low, strict.tpr_high) == wilson(3, 5)
    assert strict.fpr_high == wilson(0, 5)[1]
    loose = operating_point(scores, members, 0.4)
    assert (loose.fpr, loose.tpr) == (0.4, 0.6)
    assert operating_point(scores, members, 0.6).tpr == 1.0
    assert operating_point(scores, members, 0.8).tpr == 1.0
    assert operating_point(np.zeros(10), members, 0.5).tpr == 0.0


def test_the_area_under_the_curve_is_the_rank_statistic() -> None:
    scores, members = np.round(draw.normal(0, 1, 200), 1), draw.random(200) < 0.4
    wrong, hits = curve(scores, members)
    assert np.trapezoid(hits, wrong) == pytest.approx(auc(scores, members), abs=1e-12)
    assert (wrong[-1], hits[-1]) == (1.0, 1.0)


def test_the_bound_holds_for_the_gaussian_mechanism_and_is_tight_where_it_is_known() -> None:
    assert bound(0.3, 0.0, 0.0) == pytest.approx(0.3)
    assert bound(0.01, np.log(3), 0.02) == pytest.approx(0.05)
    assert bound(0.5, np.log(3), 0.0) == pytest.approx(1 - 0.5 / 3)
    assert bound(0.2, 1000.0, 0.0) == 1.0
    mu = 1.0
    for epsilon in (0.5, 1.0, 2.0):
        delta = stats.norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
        for fpr in (1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9):
            assert stats.norm.cdf(stats.norm.ppf(fpr) + mu) <= bound(fpr, epsilon, delta) + 1e-12
