"""Ranking by the worst case: which defense loses least under the attack that hurts it most, and how sure the order is.

A defense is as good as its worst attack: w(d) = max over attacks a of the mean over seeds of harm(d, a, seed). That
the order of two defenses is right is a statement about seeds, so the seeds are resampled, the same ones for all
defenses and attacks (they are paired), and w is computed anew each time, its maximum included.

A defense's place is 1 + the number of defenses that are surely ahead of it: in at least ``confidence`` of the resamples
AND by Student's paired test, each under its own worst attack, the p values of all pairs adjusted together by Holm's
rule: the chance that any order of the ranking is false stays below 1 - ``confidence``. The bootstrap alone claims an
order too readily at few seeds, and so do many tests that nobody adjusts. The list is in the order of w; a place counts
who is surely ahead and nothing else, so that a defense that strays may have a smaller place than one before it. With
one seed all places are 1. The maximum over noisy means lies above the maximum of the true means: w is, if anything, too
pessimistic, more so with more attacks and fewer seeds.

The interval of w is Student's over seeds, of the attack that hurts most; the percentile interval of the resampled w is
there on request, for ten seeds and more: below, it is too short (docs/statistics.md).

Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 6; the percentile interval, chapter 13. Holm, "A
simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsim.analysis.statistics import holm, paired_p_value, t_interval
from fedsim.errors import FedsimError


@dataclass(frozen=True)
class Ranked:
    """A defense's place.

    Args:
        name: the defense.
        place: 1 + the number of defenses that are surely ahead of it.
        worst: mean over seeds of its harm under the attack that hurts it most.
        low: of the 95 % interval of ``worst`` over seeds; NaN with one seed.
        high: of that interval.
        attack: position of that attack.
        ahead: share of the resamples in which it is ahead of the next one, equal harms counted half; NaN for the last.
    """

    name: str
    place: int
    worst: float
    low: float
    high: float
    attack: int
    ahead: float


def rank_by_worst(
    names: Sequence[str],
    harm: ArrayLike,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    interval: Literal["t", "bootstrap"] = "t",
) -> list[Ranked]:
    """The defenses, the one with the least harm under its worst attack first.

    Args:
        names: (d,) defenses.
        harm: (d, a, s) harm of each attack in each seed, high is bad; NaN where a cell is missing.
        confidence: share of resamples, and 1 - the adjusted p of the test, from which on an order counts as known.
        draws: resamples.
        seed: of the resampling.
        interval: of ``worst``: Student's, or the percentiles of the resamples.

    Raises:
        FedsimError: another shape, or a defense for which an attack was never measured.
    """
    values = np.asarray(harm, dtype=np.float64)
    if values.ndim != 3 or len(values) != len(names) or 0 in values.shape:
        raise FedsimError(f"rank_by_worst: given harms {values.shape} of {len(names)} names; accepted: (d, a, s)")
    known = ~np.isnan(values)
    measured: NDArray[np.bool_] = np.all(np.any(known, axis=2), axis=1)
    if not measured.all():
        missing = [name for name, complete in zip(names, measured, strict=True) if not complete]
        raise FedsimError(f"rank_by_worst: {', '.join(missing)}: some attack was never measured; accepted: all of them")
    means = np.nanmean(values, axis=2)
    worst, attacks = means.max(1), means.argmax(1)
    again = _resampled(values, known, draws, seed)
    adjusted = _adjusted(values, attacks)
    order = sorted(range(len(names)), key=lambda d: (worst[d], names[d]))
    found: list[Ranked] = []
    for position, d in enumerate(order):
        before = [e for e in order[:position] if _ahead(again, e, d) >= confidence]
        place = 1 + sum(bool(adjusted[e, d] <= 1 - confidence) for e in before)
        following = order[position + 1] if position + 1 < len(order) else None
        ahead = math.nan if following is None else _ahead(again, d, following)
        if interval == "t" or again is None:
            hurt = values[d, attacks[d]]
            _, low, high, _ = t_interval(hurt[~np.isnan(hurt)])
        else:
            low, high = np.quantile(again[:, d], [0.025, 0.975])
        found.append(Ranked(names[d], place, float(worst[d]), float(low), float(high), int(attacks[d]), ahead))
    return found


def _resampled(
    values: NDArray[np.float64], known: NDArray[np.bool_], draws: int, seed: int
) -> NDArray[np.float64] | None:
    """(draws, d) worst cases over resampled seeds; None with one seed."""
    seeds = values.shape[2]
    if seeds < 2:
        return None
    picks = np.random.default_rng(seed).multinomial(seeds, [1 / seeds] * seeds, size=draws).astype(np.float64)
    sums = np.tensordot(np.where(known, values, 0.0), picks, axes=(2, 1))
    counts = np.tensordot(known.astype(np.float64), picks, axes=(2, 1))
    # A resample that has none of the seeds of a cell says nothing of it: the cell's own mean stands in.
    with np.errstate(invalid="ignore"):
        means = np.where(counts > 0, sums / counts, np.nanmean(values, axis=2)[:, :, None])
    return np.asarray(means.max(1).T)


def _ahead(again: NDArray[np.float64] | None, one: int, other: int) -> float:
    if again is None:
        return 0.5
    # Rounding alone may not decide an order.
    off = again[:, other] - again[:, one]
    return float(np.mean(off > 1e-12) + 0.5 * np.mean(np.abs(off) <= 1e-12))


def _adjusted(values: NDArray[np.float64], attacks: NDArray[np.intp]) -> NDArray[np.float64]:
    """(d, d) p of each pair's test, adjusted over all pairs of the ranking."""
    pairs = list(combinations(range(len(values)), 2))
    found = np.full((len(values), len(values)), math.nan)
    for (one, other), p in zip(pairs, holm([_apart(values, attacks, *pair) for pair in pairs]), strict=True):
        found[one, other] = found[other, one] = p
    return found


def _apart(values: NDArray[np.float64], attacks: NDArray[np.intp], one: int, other: int) -> float:
    """p of the paired test, each defense under its own worst attack; NaN where too few seeds are shared."""
    theirs, ours = values[other, attacks[other]], values[one, attacks[one]]
    shared = ~(np.isnan(theirs) | np.isnan(ours))
    return paired_p_value(theirs[shared].tolist(), ours[shared].tolist()) if shared.sum() > 1 else math.nan


__all__ = ["Ranked", "rank_by_worst"]
