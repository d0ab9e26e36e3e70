"""What a list of Gaussian releases costs: (epsilon, delta) by three accountants.

``pld`` composes privacy loss distributions, an upper bound that is tight to rounding; ``rdp`` composes Renyi
divergences, looser, and the one for cohorts of a fixed size; ``gdp`` is the closed form of unsampled releases, with
mu² = Σ 1/z²:  delta(epsilon) = Φ(−epsilon/mu + mu/2) − e^epsilon Φ(−epsilon/mu − mu/2).

The relation between neighbours, ``replace_one`` or ``add_or_remove``, says what a multiplier z = sd/C means. Replacing
a record moves a sum by up to 2C. For releases of all records, and for samples of a fixed size, that 2 is put into z
here, once, and the library keeps its default relation (its PLD accountant would double by itself, its RDP accountant
would not). For Poisson samples a record is seldom in the sum, so halving z would overstate the cost threefold: there
the library's own relation is used. Add-or-remove moves a sum by C; where sizes are fixed and public it means that a
record's contribution is replaced by zero.

Dong, Roth and Su, "Gaussian Differential Privacy", 2022 (arXiv:1905.02383); Doroshenko et al., "Connect the Dots:
Tighter Discrete Approximations of Privacy Loss Distributions", 2022 (arXiv:2207.04380); Wang, Balle and
Kasiviswanathan, "Subsampled Rényi Differential Privacy and Analytical Moments Accountant", 2019 (arXiv:1808.00087).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, get_args

import numpy as np
from dp_accounting import (
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SampledWithoutReplacementDpEvent,
    get_epsilon_gaussian,
)
from dp_accounting.rdp import RdpAccountant
from dp_accounting.rdp.rdp_privacy_accountant import compute_delta, compute_epsilon
from numpy.typing import NDArray
from scipy.special import log_ndtr

from fedsim.errors import PrivacyError
from fedsim.privacy.loss_distribution import loss_distribution
from fedsim.privacy.releases import (
    SENSITIVITY,
    Accountant,
    Neighbours,
    Release,
    ReleaseLike,
    check_choice,
    check_delta,
    grouped,
)

ORDERS = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *range(11, 64),
    *range(64, 128, 4),
    *range(128, 257, 16),
    *(2**power for power in range(9, 17)),
)
"""Renyi orders: the library's, and those between and above that small epsilons need."""

SAMPLE_ORDERS = tuple(
    order for order in ORDERS if order <= 32 or order in (36, 40, 48, 56, 64, 80, 96, 128, 192, 256, 512, 1024, 2048)
)
"""Those at which samples are accounted: the bound takes seconds at all of them."""


def epsilon(
    releases: Iterable[ReleaseLike],
    delta: float,
    accountant: Accountant = "pld",
    neighbours: Neighbours = "replace_one",
) -> float:
    """The epsilon at delta of all releases together; infinity where one of them is without noise.

    Args:
        releases: ``Release``s, or tuples (noise multiplier, count) or (noise multiplier, count, Poisson sampling rate).
        delta: probability, above 0 and below 1.
        accountant: ``pld``, ``rdp`` or ``gdp``.
        neighbours: which data sets must not be told apart: ``replace_one`` or ``add_or_remove``.

    Raises:
        PrivacyError: an accountant that has no valid bound for a release under this relation, or a bad value.
    """
    check_delta(delta)
    return _cost(releases, accountant, neighbours).epsilon(delta)


def delta(
    releases: Iterable[ReleaseLike],
    epsilon: float,
    accountant: Accountant = "gdp",
    neighbours: Neighbours = "replace_one",
) -> float:
    """The delta at epsilon of all releases together, by the closed form unless asked otherwise.

    Args:
        releases: as for ``epsilon``.
        epsilon: 0 or more.
        accountant: ``pld``, ``rdp`` or ``gdp``.
        neighbours: ``replace_one`` or ``add_or_remove``.

    Raises:
        PrivacyError: an accountant that has no valid bound for a release under this relation, or a bad value.
    """
    if not epsilon >= 0:
        raise PrivacyError(f"epsilon: given {epsilon!r}; accepted: 0 or more")
    return _cost(releases, accountant, neighbours).delta(epsilon)


def epsilon_curve(
    rounds: Sequence[Sequence[ReleaseLike]],
    delta: float,
    accountant: Accountant = "pld",
    neighbours: Neighbours = "replace_one",
    at: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """The epsilon spent after each round.

    Args:
        rounds: the releases of each round.
        delta: probability, above 0 and below 1.
        accountant: ``pld``, ``rdp`` or ``gdp``.
        neighbours: ``replace_one`` or ``add_or_remove``.
        at: rounds, from 1 and ascending, after which to account (a picture needs a hundred); default: every one.

    Returns:
        (len(at),), not decreasing but for rounding.
    """
    wanted = list(range(1, len(rounds) + 1)) if at is None else list(at)
    if wanted != sorted(wanted) or any(not 1 <= number <= len(rounds) for number in wanted):
        raise PrivacyError(f"at: given {wanted}; accepted: ascending rounds from 1 to {len(rounds)}")
    spent: list[Release] = []
    done = 0
    values = []
    for number in wanted:
        spent = grouped([*spent, *(release for each in rounds[done:number] for release in each)])
        done = number
        values.append(epsilon(spent, delta, accountant, neighbours))
    return np.asarray(values, dtype=np.float64)


def gaussian_mu(releases: Iterable[ReleaseLike], neighbours: Neighbours = "replace_one") -> float:
    """The mu of the one Gaussian mechanism that unsampled releases together are: sensitivity over noise.

    Raises:
        PrivacyError: a release of a sample.
    """
    check_choice("neighbours", neighbours, get_args(Neighbours))
    groups = grouped(releases)
    for release in groups:
        if release.sampled:
            raise PrivacyError(
                f"accountant: given 'gdp' for releases of samples (rate {release.sampling_rate:g}); "
                "accepted: 'gdp' where every release sees all records, else 'pld' (Poisson) or 'rdp'"
            )
    return _mu(groups, neighbours)


class _Cost(Protocol):
    def epsilon(self, delta: float) -> float: ...

    def delta(self, epsilon: float) -> float: ...


@dataclass(frozen=True)
class _Everything:
    def epsilon(self, delta: float) -> float:
        return math.inf

    def delta(self, epsilon: float) -> float:
        return 1.0


LARGEST_MU = 100.0
"""Above, epsilon is in the thousands, and the loss distribution no longer fits into memory: one Gaussian's is taken
in closed form, which is exact, and nothing is claimed for others."""


@dataclass(frozen=True)
class _Nothing:
    def epsilon(self, delta: float) -> float:
        return 0.0

    def delta(self, epsilon: float) -> float:
        return 0.0


@dataclass(frozen=True)
class _Gaussian:
    mu: float

    def epsilon(self, delta: float) -> float:
        return float(get_epsilon_gaussian(1 / self.mu, delta))

    def delta(self, epsilon: float) -> float:
        if math.isinf(epsilon):
            return 0.0
        first = float(log_ndtr(-epsilon / self.mu + self.mu / 2))
        second = epsilon + float(log_ndtr(-epsilon / self.mu - self.mu / 2))
        return math.exp(first) * -math.expm1(min(second - first, 0.0))


@dataclass(frozen=True)
class _Renyi:
    divergences: NDArray[np.float64]

    def epsilon(self, delta: float) -> float:
        return float(compute_epsilon(np.asarray(ORDERS), self.divergences, delta)[0])

    def delta(self, epsilon: float) -> float:
        return float(compute_delta(np.asarray(ORDERS), self.divergences, epsilon)[0])


@dataclass(frozen=True)
class _Loss:
    distribution: Any

    def epsilon(self, delta: float) -> float:
        return float(self.distribution.get_epsilon_for_delta(delta))

    def delta(self, epsilon: float) -> float:
        return float(self.distribution.get_delta_for_epsilon(epsilon))


def _cost(releases: Iterable[ReleaseLike], accountant: Accountant, neighbours: Neighbours) -> _Cost:
    check_choice("accountant", accountant, get_args(Accountant))
    check_choice("neighbours", neighbours, get_args(Neighbours))
    groups = grouped(releases)
    if not groups:
        return _Nothing()
    if any(release.noise_multiplier == 0 for release in groups):
        return _Everything()
    if accountant == "gdp":
        return _Gaussian(gaussian_mu(groups, neighbours))
    groups = _merged(groups, neighbours)
    if accountant == "rdp":
        return _Renyi(sum((each.count * _renyi(each, neighbours) for each in groups), np.zeros(len(ORDERS))))
    mu = _mu((each for each in groups if not each.sampled), neighbours)
    if mu > LARGEST_MU:
        return _Gaussian(mu) if len(groups) == 1 else _Everything()
    return _Loss(loss_distribution(groups, neighbours))


def _mu(groups: Iterable[Release], neighbours: Neighbours) -> float:
    squares = math.fsum(each.count / each.noise_multiplier**2 if each.noise_multiplier else math.inf for each in groups)
    return SENSITIVITY[neighbours] * math.sqrt(squares)


def _merged(groups: list[Release], neighbours: Neighbours) -> list[Release]:
    """The unsampled as one Gaussian, which they are together, exactly; and the sampled as they stand."""
    mu = _mu((each for each in groups if not each.sampled), neighbours)
    sampled = [each for each in groups if each.sampled]
    return [Release(SENSITIVITY[neighbours] / mu), *sampled] if mu else sampled


def _renyi(release: Release, neighbours: Neighbours) -> NDArray[np.float64]:
    if release.sampled and release.sampling == "poisson" and neighbours == "replace_one":
        raise PrivacyError(
            "accountant: given 'rdp' for Poisson samples with neighbours 'replace_one'; "
            "accepted: 'pld', or neighbours 'add_or_remove'"
        )
    if release.sampled and release.sampling == "without_replacement" and neighbours == "add_or_remove":
        raise PrivacyError("neighbours: given 'add_or_remove' for samples without replacement; accepted: 'replace_one'")
    return _renyi_once(release.noise_multiplier, release.sampling_rate, release.sampling, neighbours)


@lru_cache(maxsize=4096)
def _renyi_once(multiplier: float, rate: float, sampling: str, neighbours: Neighbours) -> NDArray[np.float64]:
    """Divergences of one release at ORDERS; of a sample never above, and at other orders equal to, those of all."""
    whole = GaussianDpEvent(multiplier / SENSITIVITY[neighbours])
    divergences = np.array(RdpAccountant(ORDERS).compose(whole).rdp)
    if rate == 1:
        return divergences
    if sampling == "poisson":
        accountant = RdpAccountant(SAMPLE_ORDERS)
        accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(multiplier)))
    else:
        taken, total = rate.as_integer_ratio()
        accountant = RdpAccountant(SAMPLE_ORDERS, NeighboringRelation.REPLACE_ONE)
        accountant.compose(SampledWithoutReplacementDpEvent(total, taken, whole))
    at = np.isin(ORDERS, SAMPLE_ORDERS)
    divergences[at] = np.minimum(divergences[at], accountant.rdp)
    return divergences
