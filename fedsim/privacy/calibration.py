"""How much noise a promise of (epsilon, delta) needs: DIFF2's two sigmas, and one multiplier for equal releases.

DIFF2 over R rounds with a restart every T releases n1 = ⌈R/T⌉ clipped gradients and R − n1 clipped gradient
differences. With alpha = 1 + ⌈2 ln(1/delta)/epsilon⌉, u = 1.25, P clients of at least n_min examples each, the paper
sets sigma1² = 4u·alpha·(R/T)/(n_min²P²·epsilon) and sigma2² = 4u/(u−1)·alpha·R/(n_min²P²·epsilon), with 4 for 4u where
T = 1. It takes T for a divisor of R; otherwise R/T counts too few releases and the promise does not hold, so that
⌈R/T⌉ stands for R/T here. 4 is the square of the sensitivity 2C of a replaced record (1 under add-or-remove).

Murata and Suzuki, "DIFF2: Differential Private Optimization via Gradient Differences for Nonconvex Distributed
Learning", ICML 2023 (arXiv:2302.03884).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import numpy as np
from scipy.optimize import brentq

from fedsim.errors import PrivacyError
from fedsim.privacy import accounting
from fedsim.privacy.releases import (
    SENSITIVITY,
    Accountant,
    Neighbours,
    Release,
    ReleaseLike,
    Sampling,
    check_choice,
    check_delta,
)

Calibration = Literal["paper", "tight"]
Trust = Literal["central", "distributed", "local"]
Unit = Literal["example", "client"]

SPLIT = 1.25
"""The paper's u: 1/u of the budget goes to the gradients, the rest to their differences."""

TOLERANCE = 1e-3
"""How far below its target a calibrated epsilon may lie (relative where the target is below 1)."""


def diff2_noise(
    epsilon: float,
    delta: float,
    rounds: int,
    restart: int,
    clients: int,
    examples_per_client: int | Sequence[int],
    calibration: Calibration = "paper",
    trust: Trust = "central",
    unit: Unit = "example",
    neighbours: Neighbours = "replace_one",
    colluding: int = 0,
    accountant: Accountant = "pld",
) -> tuple[float, float]:
    """DIFF2's (sigma1, sigma2): of the noise on clipped gradients, and on clipped gradient differences.

    C is the radius of the round's clip (C1, or C2·‖x_r − x_{r−1}‖); messages are means over a client's examples; the
    estimate is their mean over all P clients, the divisor fixed. What sigma multiplies is said by ``trust``:

    - ``central``: C·sigma·N(0, I) is added once, to the mean of the messages; a record moves it by C/(n_min·P).
    - ``distributed``: every client adds N(0, P·C²·sigma²·I) to its message, of whose sum the mean is taken, so that all
      P shares together are central's noise. Sigma is calibrated so that the P − ``colluding`` shares that are neither
      missing nor known to the reader suffice: larger than central's by √(P/(P − colluding)). Against other clients,
      who know their own share, ``colluding`` is at least 1.
    - ``local``: C·sigma·N(0, I) is added to each message, which is private by itself; a record moves it by C/n_p. One
      sigma serves all, by the smallest n_p; a client's own is that of a call with its own number of examples.

    Args:
        epsilon: the promise; infinity is no noise.
        delta: above 0 and below 1.
        rounds: R.
        restart: T, 1 to R; with 1 there are no differences, and sigma2 is 0.
        clients: P, all of which take part in every round.
        examples_per_client: n_min, or every client's number, of which the smallest counts.
        calibration: ``paper``, or ``tight``: one factor on the paper's two sigmas, so that the accounted epsilon is met
            from below to 1e-3 (relative below epsilon 1).
        trust: who adds the noise, see above.
        unit: what is protected: an ``example``, or a ``client`` with all that it holds, which moves its message by
            2C whatever n_p is.
        neighbours: ``replace_one``, or ``add_or_remove``: a record's contribution replaced by zero, sizes fixed.
        colluding: shares that may be missing or known, under ``distributed``; 0 elsewhere.
        accountant: that holds the promise, and that ``tight`` is searched on.

    Raises:
        PrivacyError: T > R, no share left, a bad value.
    """
    check_choice("calibration", calibration, get_args(Calibration))
    check_choice("neighbours", neighbours, get_args(Neighbours))
    _check_target(epsilon, delta)
    first, second = _counts(rounds, restart)
    records = _records(clients, examples_per_client, trust, unit)
    shares = _shares(clients, trust, colluding)
    if math.isinf(epsilon):
        return 0.0, 0.0
    alpha = 1 + math.ceil(2 * math.log(1 / delta) / epsilon)
    unit_noise = SENSITIVITY[neighbours] * math.sqrt(alpha / epsilon) / (records * math.sqrt(shares))
    sigma1 = unit_noise * math.sqrt(first * (SPLIT if second else 1.0))
    sigma2 = unit_noise * math.sqrt(rounds * SPLIT / (SPLIT - 1)) if second else 0.0

    def account(factor: float) -> float:
        releases = diff2_releases(
            factor * sigma1, factor * sigma2, rounds, restart, clients, examples_per_client, trust, unit, colluding
        )
        return accounting.epsilon(releases, delta, accountant, neighbours)

    if calibration == "tight":
        factor = _smallest(account, epsilon)
        return factor * sigma1, factor * sigma2
    _check_spent(account(1.0), epsilon, delta, accountant, neighbours)
    return sigma1, sigma2


def diff2_releases(
    sigma1: float,
    sigma2: float,
    rounds: int,
    restart: int,
    clients: int,
    examples_per_client: int | Sequence[int],
    trust: Trust = "central",
    unit: Unit = "example",
    colluding: int = 0,
) -> list[Release]:
    """What DIFF2 releases with this noise, to be accounted: ⌈R/T⌉ gradients, R − ⌈R/T⌉ differences.

    Under ``distributed`` only the noise of P − ``colluding`` shares counts. The arguments are those of ``diff2_noise``.

    Raises:
        PrivacyError: T > R, no share left, a bad value.
    """
    first, second = _counts(rounds, restart)
    scale = _records(clients, examples_per_client, trust, unit) * math.sqrt(_shares(clients, trust, colluding))
    releases = [Release(sigma1 * scale, first)]
    return [*releases, Release(sigma2 * scale, second)] if second else releases


def diff2_rounds(releases: Sequence[Release], rounds: int, restart: int) -> list[list[Release]]:
    """The releases of ``diff2_releases``, round by round, for ``epsilon_curve``."""
    once = [Release(each.noise_multiplier) for each in releases]
    return [[once[0] if number % restart == 0 else once[1]] for number in range(rounds)]


def noise_for(
    epsilon: float,
    delta: float,
    count: int,
    sampling_rate: float = 1.0,
    sampling: Sampling = "poisson",
    neighbours: Neighbours = "replace_one",
    accountant: Accountant = "pld",
) -> float:
    """The noise multiplier (sd over the largest contribution of one record) for so many equal releases.

    The accounted epsilon meets the target from below to 1e-3 (relative below epsilon 1). No noise for infinity.

    Args:
        epsilon: the promise.
        delta: above 0 and below 1.
        count: releases, 1 or more.
        sampling_rate: share of the records that each sees.
        sampling: ``poisson`` or ``without_replacement`` (by ``rdp`` and ``replace_one`` alone).
        neighbours: ``replace_one`` or ``add_or_remove``.
        accountant: ``pld``, ``rdp`` or ``gdp``.

    Raises:
        PrivacyError: an accountant that has no valid bound for these, an epsilon that it cannot reach, a bad value.
    """
    _check_target(epsilon, delta)
    _check_count("count", count)
    if math.isinf(epsilon):
        return 0.0
    return _noise_for(epsilon, delta, count, sampling_rate, sampling, neighbours, accountant)


@functools.lru_cache(maxsize=256)
def _noise_for(
    epsilon: float, delta: float, count: int, rate: float, sampling: Sampling, neighbours: Neighbours, by: Accountant
) -> float:
    def account(multiplier: float) -> float:
        return accounting.epsilon([Release(multiplier, count, rate, sampling)], delta, by, neighbours)

    return _smallest(account, epsilon)


def check_noise(
    releases: Iterable[ReleaseLike],
    epsilon: float,
    delta: float,
    accountant: Accountant = "pld",
    neighbours: Neighbours = "replace_one",
) -> float:
    """The epsilon that the releases cost, which must not exceed the promised one.

    Raises:
        PrivacyError: it does.
    """
    spent = accounting.epsilon(releases, delta, accountant, neighbours)
    _check_spent(spent, epsilon, delta, accountant, neighbours)
    return spent


def _check_spent(spent: float, epsilon: float, delta: float, accountant: str, neighbours: str) -> None:
    if not spent <= epsilon:
        raise PrivacyError(
            f"noise: given so little that epsilon is {spent:.4g} at delta {delta:g} ({accountant}, {neighbours}); "
            f"accepted: noise for an epsilon of at most {epsilon:g}"
        )


def _check_target(epsilon: float, delta: float) -> None:
    if not epsilon > 0:
        raise PrivacyError(f"epsilon: given {epsilon!r}; accepted: above 0, or infinity for no noise")
    check_delta(delta)


def _check_count(name: str, given: int) -> None:
    if not float(given).is_integer() or given < 1:
        raise PrivacyError(f"{name}: given {given!r}; accepted: an integer of 1 or more")


def _counts(rounds: int, restart: int) -> tuple[int, int]:
    """How many rounds release a gradient, and how many a difference."""
    _check_count("rounds", rounds)
    _check_count("restart", restart)
    if restart > rounds:
        raise PrivacyError(f"restart: given {restart}; accepted: 1 to {rounds}, the number of rounds")
    first = -(-rounds // restart)
    return first, rounds - first


def _records(clients: int, examples_per_client: int | Sequence[int], trust: Trust, unit: Unit) -> int:
    """The number that divides C in one record's contribution to what is released."""
    check_choice("trust", trust, get_args(Trust))
    check_choice("unit", unit, get_args(Unit))
    _check_count("clients", clients)
    sizes = np.atleast_1d(examples_per_client).tolist()
    if np.ndim(examples_per_client) and len(sizes) != clients:
        raise PrivacyError(f"examples_per_client: given {len(sizes)} numbers; accepted: one, or {clients}")
    for size in sizes if unit == "example" else ():
        _check_count("examples_per_client", size)
    return (int(min(sizes)) if unit == "example" else 1) * (1 if trust == "local" else clients)


def _shares(clients: int, trust: Trust, colluding: int) -> float:
    """Share of the noise's variance that the reader neither misses nor knows."""
    if colluding and trust != "distributed":
        raise PrivacyError(f"colluding: given {colluding} with trust '{trust}'; accepted: 0, or trust 'distributed'")
    if not 0 <= colluding < clients:
        raise PrivacyError(f"colluding: given {colluding!r}; accepted: 0 to {clients - 1}, one less than the clients")
    return (clients - colluding) / clients


def _smallest(account: Callable[[float], float], target: float) -> float:
    """The scale of noise at which the accounted epsilon lies in (target − tolerance, target]."""
    tolerance = TOLERANCE * min(1.0, target)
    ceiling = 1e3 * target

    @functools.cache
    def excess(log_scale: float) -> float:
        return min(account(math.exp(log_scale)), ceiling) - (target - tolerance / 2)

    high = 0.0
    while excess(high) > 0:
        high += math.log(2)
        if high > math.log(1e12):
            raise PrivacyError(f"epsilon: given {target:g}; accepted: what the accountant can show with any noise")
    low = high - math.log(2)
    while excess(low) <= 0:
        high, low = low, low - math.log(2)
    width = tolerance / (8 * target)
    while width > 1e-8:
        log_scale = float(brentq(excess, low, high, xtol=width))
        if abs(excess(log_scale)) <= tolerance / 2:
            return math.exp(log_scale)
        width /= 8
    raise PrivacyError(f"epsilon: given {target:g}; accepted: what the accountant can resolve")
