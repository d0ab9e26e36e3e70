"""Loss distributions of Gaussian releases, fine enough to be tight and coarse enough to take seconds.

The library composes; here it is said on how many points, and what becomes of thousands of different releases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any

from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution

from fedsim.errors import PrivacyError
from fedsim.privacy.releases import SENSITIVITY, Neighbours, Release

RELATION = {"replace_one": NeighboringRelation.REPLACE_ONE, "add_or_remove": NeighboringRelation.ADD_OR_REMOVE_ONE}

GROUPS = 64
"""Poisson releases of more kinds than this are rounded to so many, none to a cheaper one."""
POINTS = 1_000_000
"""Points on which all the loss distributions together are held, at most: a few seconds of work."""

TAIL = 1e-18
"""Probability that composing may count as a total loss: far below any delta."""


def loss_distribution(groups: Sequence[Release], neighbours: Neighbours) -> Any:
    """The library's loss distribution of all these releases together, of which one at least.

    Raises:
        PrivacyError: samples without replacement, for which the library has none.
    """
    for each in groups:
        if each.sampled and each.sampling == "without_replacement":
            raise PrivacyError("accountant: given 'pld' for samples without replacement; accepted: 'rdp'")
    unsampled = [each for each in groups if not each.sampled]
    poisson = _rounded([each for each in groups if each.sampled])
    interval = _interval(unsampled, poisson, neighbours)
    parts = [
        privacy_loss_distribution.from_gaussian_mechanism(
            1 / _mu(each, neighbours), value_discretization_interval=interval
        )
        for each in unsampled
    ]
    for each in poisson:
        once = _poisson_loss(each.noise_multiplier, each.sampling_rate, neighbours, interval)
        parts.append(once.self_compose(each.count, TAIL))
    return reduce(lambda whole, part: whole.compose(part, TAIL), parts)


def _mu(release: Release, neighbours: Neighbours) -> float:
    """Sensitivity over noise of a group of unsampled releases, or, were it not sampled, of one of a sampled group."""
    count = 1 if release.sampled else release.count
    return SENSITIVITY[neighbours] * math.sqrt(count) / release.noise_multiplier


def _interval(unsampled: Sequence[Release], poisson: Sequence[Release], neighbours: Neighbours) -> float:
    """Distance of the points: fine beside the spread of a release's loss, as coarse as their number asks."""
    mus = [_mu(each, neighbours) for each in (*unsampled, *poisson)]
    coarse = sum(one * one + 20 * one for one in mus) / POINTS
    if not poisson:
        return max(min(mus) / 1000, coarse)
    spread = min(_mu(each, neighbours) * each.sampling_rate for each in poisson)
    return max(min(max(spread / 100, 1e-4), 1e-3), coarse)


@lru_cache(maxsize=8)
def _poisson_loss(multiplier: float, rate: float, neighbours: Neighbours, interval: float) -> Any:
    return privacy_loss_distribution.from_gaussian_mechanism(
        multiplier,
        sampling_prob=rate,
        neighboring_relation=RELATION[neighbours],
        value_discretization_interval=interval,
    )


def _rounded(poisson: list[Release]) -> list[Release]:
    """At most GROUPS groups, by a grid over multiplier and rate, each cell at its smallest and largest of the two.

    Less noise and a larger rate can only tell more (the less telling release is a post-processing of the other), so
    that the bound stays one; the cells are as fine as the number of groups allows.
    """
    width = 1e-3
    rounded = poisson
    while len(rounded) > GROUPS:
        cells: dict[tuple[int, int], list[Release]] = {}
        for each in poisson:
            cell = (
                math.floor(math.log(each.noise_multiplier) / width),
                math.ceil(math.log(each.sampling_rate) / width),
            )
            cells.setdefault(cell, []).append(each)
        rounded = [
            Release(
                min(each.noise_multiplier for each in cell),
                sum(each.count for each in cell),
                max(each.sampling_rate for each in cell),
            )
            for cell in cells.values()
        ]
        width *= 1.25
    return rounded
