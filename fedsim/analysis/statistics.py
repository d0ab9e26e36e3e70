"""Intervals, paired differences and detection rates: how sure a number of a run is.

Wilson's interval is the score interval for a share; intervals over seeds are Student's, differences between
defenses are paired by seed, many of them at once adjusted by Holm's rule; detection is measured by true and false
positive rate and by the area under the ROC curve, as a rank statistic (Mann-Whitney), with ties counted half.

Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927; Holm, "A simple
sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsim.errors import FedsimError

ROUNDING = 1e-12
"""Share of the values below which a difference between them is the rounding of sums and quotients."""


class Interval(NamedTuple):
    """A mean with its interval; ``low`` and ``high`` are NaN where fewer than two values were given."""

    mean: float
    low: float
    high: float
    n: int


class Rates(NamedTuple):
    """Share of the malicious that was flagged, share of the honest that was; NaN where there are none."""

    true_positive_rate: float
    false_positive_rate: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share; (0, 1) where nothing was tried.

    Raises:
        FedsimError: successes outside 0 … n, or a confidence outside (0, 1).
    """
    if not 0 <= successes <= n:
        raise FedsimError(f"wilson: given {successes} successes of {n}; accepted: 0 to n")
    if n == 0:
        return 0.0, 1.0
    z = _two_sided_normal(confidence)
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return low, high


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of independent values (one a seed) with Student's interval.

    Args:
        values: (n,) finite values.
        confidence: coverage, in (0, 1).

    Raises:
        FedsimError: no value, a value that is not finite, or a confidence outside (0, 1).
    """
    from scipy.special import stdtrit

    data = _finite(values, "t_interval")
    _check_confidence(confidence)
    n, mean = len(data), float(data.mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * float(data.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def bootstrap_interval(values: ArrayLike, confidence: float = 0.95, draws: int = 10_000, seed: int = 0) -> Interval:
    """Mean with the percentile interval of its bootstrap distribution.

    Args:
        values: (n,) finite values.
        confidence: coverage, in (0, 1).
        draws: resamples.
        seed: of the resampling.

    Raises:
        FedsimError: no value, a value that is not finite, or a confidence outside (0, 1).
    """
    data = _finite(values, "bootstrap_interval")
    _check_confidence(confidence)
    n, mean = len(data), float(data.mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    picks = np.random.default_rng(seed).integers(0, n, size=(draws, n))
    low, high = np.quantile(data[picks].mean(axis=1), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(mean, float(low), float(high), n)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of a - b with Student's interval; a[i] and b[i] belong together (the same seed).

    Raises:
        FedsimError: different lengths, no pair, or a value that is not finite.
    """
    if len(a) != len(b):
        raise FedsimError(f"paired_difference: given {len(a)} and {len(b)} values; accepted: pairs")
    return t_interval(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), confidence)


def paired_p_value(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of Student's paired test of "a and b have the same mean"; a[i] and b[i] belong together.

    Returns:
        p; NaN under two pairs; 1 where all pairs are equal. Where all differ by one amount, as shares of a small test
        set may, Student's test has no spread to go by: the sign test's 2^(1 − n) then.

    Raises:
        FedsimError: different lengths, no pair, or a value that is not finite.
    """
    from scipy.special import stdtr

    if len(a) != len(b):
        raise FedsimError(f"paired_p_value: given {len(a)} and {len(b)} values; accepted: pairs")
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    data = _finite(one - other, "paired_p_value")
    if len(data) < 2:
        return math.nan
    mean, spread = float(data.mean()), float(data.std(ddof=1))
    # .5 - .4, .4 - .3 and .3 - .2 differ by rounding: it is no spread, and would make any difference certain.
    rounding = ROUNDING * float(max(np.abs(one).max(), np.abs(other).max()))
    if spread <= rounding:
        return 1.0 if abs(mean) <= rounding else 2.0 ** (1 - len(data))
    return float(2 * stdtr(len(data) - 1, -abs(mean) / spread * math.sqrt(len(data))))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p values: rejecting those up to α keeps the chance of any false rejection at α.

    Args:
        p_values: (m,) p values of one table; NaN ones are no tests and stay NaN.

    Raises:
        FedsimError: a value outside [0, 1].
    """
    given = np.asarray(p_values, dtype=np.float64).ravel()
    tested = np.flatnonzero(~np.isnan(given))
    if ((given[tested] < 0) | (given[tested] > 1)).any():
        raise FedsimError(f"holm: given {given.tolist()[:8]}; accepted: p values from 0 to 1")
    order = tested[np.argsort(given[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted = np.full(len(given), math.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * given[order]))
    return adjusted


def auc(scores: ArrayLike, truth: ArrayLike) -> float:
    """Probability that a malicious client's score is above an honest one's, ties counted half.

    Args:
        scores: (n,) scores, high where a client looks malicious; NaN ones are left out.
        truth: (n,) True where the client is malicious.

    Returns:
        The area under the ROC curve; NaN where one of the two groups is empty.

    Raises:
        FedsimError: lengths that differ.
    """
    values, malicious = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=bool)
    if values.shape != malicious.shape:
        raise FedsimError(f"auc: given {values.shape} scores and {malicious.shape} truths; accepted: the same shape")
    known = ~np.isnan(values)
    values, malicious = values[known], malicious[known]
    positives = int(malicious.sum())
    negatives = len(values) - positives
    if positives == 0 or negatives == 0:
        return math.nan
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return float((ranks[malicious].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def rates(flagged: ArrayLike, truth: ArrayLike) -> Rates:
    """Detection against the truth.

    Args:
        flagged: (n,) True where the defense dropped the client.
        truth: (n,) True where the client is malicious.

    Raises:
        FedsimError: lengths that differ.
    """
    dropped, malicious = np.asarray(flagged, dtype=bool), np.asarray(truth, dtype=bool)
    if dropped.shape != malicious.shape:
        raise FedsimError(f"rates: given {dropped.shape} flags and {malicious.shape} truths; accepted: the same shape")
    return Rates(_share(dropped[malicious]), _share(dropped[~malicious]))


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else math.nan


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise FedsimError(f"confidence: given {confidence}; accepted: above 0 and below 1")


def _two_sided_normal(confidence: float) -> float:
    from scipy.special import ndtri

    _check_confidence(confidence)
    return float(ndtri(0.5 + confidence / 2))


def _finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64).ravel()
    if len(data) == 0 or not np.isfinite(data).all():
        raise FedsimError(f"{name}: given {data.tolist()[:8]}; accepted: at least one value, all finite")
    return data
