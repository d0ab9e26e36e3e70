"""Accounting against closed forms, dp-accounting used by hand, and numbers of DIFF2's paper and of its review."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SampledWithoutReplacementDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from fedsim.errors import PrivacyError
from fedsim.privacy import Release, delta, epsilon, epsilon_curve, gaussian_mu

DELTA = 1e-5
POISSON = Release(1.0, 200, 0.05)
FIXED_SIZE = Release(2.0, 50, 0.05, "without_replacement")


@pytest.mark.parametrize("z", [0.3, 1.0, 4.0, 100.0, 1000.0])
@pytest.mark.parametrize("neighbours", ["replace_one", "add_or_remove"])
def test_pld_is_the_closed_form_of_unsampled_releases(z: float, neighbours: str) -> None:
    releases = [(z, 3), (2 * z, 5)]
    exact = epsilon(releases, DELTA, "gdp", neighbours)
    assert exact <= epsilon(releases, DELTA, "pld", neighbours) <= exact * (1 + 1e-4) + 1e-5


@pytest.mark.parametrize(("mu", "bound"), [(0.2, 0.5), (1.0, 1.0), (1.0, 4.0), (3.0, 8.0)])
def test_delta_is_the_hockey_stick_divergence(mu: float, bound: float) -> None:
    def gap(x: float) -> float:
        return max(stats.norm.pdf(x, mu) - math.exp(bound) * stats.norm.pdf(x), 0.0)

    start = bound / mu + mu / 2
    integral, _ = integrate.quad(gap, start, start + 12, epsabs=1e-16)
    assert delta([(1 / mu, 1)], bound, neighbours="add_or_remove") == pytest.approx(integral, rel=1e-6)
    assert delta([(2 / mu, 1)], bound, neighbours="replace_one") == pytest.approx(integral, rel=1e-6)


@given(st.floats(0.01, 50), st.floats(1e-12, 0.1))
@settings(max_examples=50, deadline=None)
def test_delta_inverts_epsilon(z: float, probability: float) -> None:
    spent = epsilon([(z, 1)], probability, "gdp")
    if spent > 0:
        assert delta([(z, 1)], spent) == pytest.approx(probability, rel=1e-5)
    else:
        assert delta([(z, 1)], 0.0) <= probability * (1 + 1e-9)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_delta_inverts_epsilon_by_the_library(accountant: str) -> None:
    spent = epsilon([(4.0, 3)], DELTA, accountant)
    assert delta([(4.0, 3)], spent, accountant) == pytest.approx(DELTA, rel=1e-3)


@pytest.mark.parametrize(("rounds", "differences", "uncorrected"), [(1, 9, 7.91), (2, 98, 3.24)])
def test_the_papers_noise_without_rounding_up_breaks_its_promise(
    rounds: int, differences: int, uncorrected: float
) -> None:
    restart = {1: 100, 2: 99}[rounds]
    total = rounds + differences
    alpha = 1 + math.ceil(2 * math.log(1 / DELTA) / 3.0)
    first = math.sqrt(4 * 1.25 * alpha * total / (restart * 3.0))
    second = math.sqrt(4 * 5.0 * alpha * total / 3.0)
    assert epsilon([(first, rounds), (second, differences)], DELTA, "gdp") == pytest.approx(uncorrected, abs=5e-3)


@pytest.mark.parametrize(("neighbours", "known"), [("replace_one", 7.1), ("add_or_remove", 4.8)])
def test_poisson_samples_by_each_relation(neighbours: str, known: float) -> None:
    relation = {
        "replace_one": NeighboringRelation.REPLACE_ONE,
        "add_or_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
    }[neighbours]
    by_hand = PLDAccountant(relation, 1e-3).compose(PoissonSampledDpEvent(0.05, GaussianDpEvent(1.0)), 200)
    spent = epsilon([POISSON], DELTA, neighbours=neighbours)
    assert spent == pytest.approx(known, abs=0.05)
    assert spent == pytest.approx(by_hand.get_epsilon(DELTA), abs=1e-3)


def test_a_sample_of_everything_is_no_sample() -> None:
    assert epsilon([(4.0, 3, 1.0)], DELTA) == epsilon([(4.0, 3)], DELTA)
    assert epsilon([Release(4.0, 3, 1.0, "without_replacement")], DELTA) == epsilon([(4.0, 3)], DELTA)


def test_samples_and_whole_releases_compose_by_one_relation() -> None:
    by_hand = PLDAccountant(NeighboringRelation.REPLACE_ONE, 1e-3)
    by_hand.compose(GaussianDpEvent(8.0), 4).compose(PoissonSampledDpEvent(0.05, GaussianDpEvent(1.0)), 50)
    assert epsilon([(8.0, 4), (1.0, 50, 0.05)], DELTA) == pytest.approx(by_hand.get_epsilon(DELTA), abs=1e-3)


def test_renyi_takes_the_two_by_hand_too() -> None:
    by_hand = RdpAccountant().compose(GaussianDpEvent(2.0), 3).get_epsilon(DELTA)
    assert epsilon([(4.0, 3)], DELTA, "rdp") == pytest.approx(by_hand, rel=1e-3)
    assert epsilon([(2.0, 3)], DELTA, "rdp", "add_or_remove") == pytest.approx(by_hand, rel=1e-3)


def test_a_cohort_of_fixed_size_is_accounted_by_renyi() -> None:
    event = SampledWithoutReplacementDpEvent(100, 5, GaussianDpEvent(1.0))
    by_hand = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE).compose(event, 50)
    spent = epsilon([FIXED_SIZE], DELTA, "rdp")
    assert spent == pytest.approx(by_hand.get_epsilon(DELTA), rel=1e-2)
    assert spent < epsilon([Release(2.0, 50)], DELTA, "rdp")


def test_a_sample_never_costs_more_than_everything() -> None:
    """The bound for samples of a fixed size, taken as it stands, does for large samples."""
    sample = Release(2.0, 50, 0.9, "without_replacement")
    assert epsilon([sample], DELTA, "rdp") <= epsilon([Release(2.0, 50)], DELTA, "rdp")


def test_renyi_bounds_the_tight_cost_from_above() -> None:
    for releases, neighbours in (([(4.0, 3)], "replace_one"), ([POISSON], "add_or_remove")):
        assert epsilon(releases, DELTA, "rdp", neighbours) > epsilon(releases, DELTA, "pld", neighbours)


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp"])
def test_two_thousand_different_multipliers_are_one_gaussian(accountant: str) -> None:
    multipliers = np.random.default_rng(0).uniform(50, 200, 2000)
    one = 1 / math.sqrt(np.sum(multipliers**-2.0))
    releases = [(float(z), 1) for z in multipliers]
    assert epsilon(releases, DELTA, accountant) == pytest.approx(epsilon([(one, 1)], DELTA, accountant), rel=1e-9)
    assert gaussian_mu(releases) == pytest.approx(2 / one)


@pytest.mark.slow
def test_different_sampled_multipliers_are_bounded_tightly() -> None:
    multipliers = np.sort(np.random.default_rng(0).uniform(1.0, 1.5, 300))
    spent = epsilon([(float(z), 1, 0.01) for z in multipliers], DELTA, neighbours="add_or_remove")
    coarse = [Release(float(part.mean()), len(part), 0.01) for part in np.array_split(multipliers, 30)]
    about = epsilon(coarse, DELTA, neighbours="add_or_remove")
    assert about < spent < 1.02 * about


@pytest.mark.slow
@pytest.mark.parametrize("neighbours", ["replace_one", "add_or_remove"])
def test_two_thousand_different_samples(neighbours: str) -> None:
    rng = np.random.default_rng(0)
    multipliers, rates = rng.uniform(0.8, 2, 2000), rng.uniform(0.005, 0.02, 2000)
    spent = epsilon(
        [(float(z), 1, float(q)) for z, q in zip(multipliers, rates, strict=True)], DELTA, neighbours=neighbours
    )
    assert epsilon([(2.0, 2000, 0.005)], DELTA, neighbours=neighbours) < spent
    assert spent < epsilon([(0.8, 2000, 0.02)], DELTA, neighbours=neighbours)


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp"])
def test_order_and_grouping_do_not_matter(accountant: str) -> None:
    parts = [(4.0, 1), (6.0, 2), (4.0, 3)]
    assert epsilon(parts, DELTA, accountant) == pytest.approx(
        epsilon([(6.0, 2), (4.0, 4)], DELTA, accountant), rel=1e-9
    )


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp"])
def test_without_noise_everything_is_told(accountant: str) -> None:
    assert epsilon([(0.0, 1), (5.0, 3)], DELTA, accountant) == math.inf
    assert delta([(0.0, 1)], 3.0, accountant) == 1.0


@pytest.mark.parametrize("releases", [[], [(math.inf, 5)], [(1.0, 0)]])
def test_what_tells_nothing_costs_nothing(releases: list[tuple[float, int]]) -> None:
    assert epsilon(releases, DELTA) == 0.0
    assert delta(releases, 1.0) == 0.0


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp"])
def test_the_curve_is_the_cost_so_far(accountant: str) -> None:
    rounds = [[(6.0, 1)] if number % 3 == 0 else [(9.0, 1), (20.0, 2)] for number in range(7)]
    curve = epsilon_curve(rounds, DELTA, accountant)
    so_far = [epsilon([each for part in rounds[:end] for each in part], DELTA, accountant) for end in range(1, 8)]
    assert curve == pytest.approx(so_far, rel=1e-9)
    assert np.all(np.diff(curve) > 0)
    assert epsilon_curve(rounds, DELTA, accountant, at=[1, 7]) == pytest.approx(curve[[0, 6]], rel=1e-9)


@pytest.mark.parametrize("at", [[0], [8], [3, 2]])
def test_the_curve_refuses_rounds_that_are_not_there(at: list[int]) -> None:
    with pytest.raises(PrivacyError, match="ascending rounds from 1 to 7"):
        epsilon_curve([[(6.0, 1)]] * 7, DELTA, at=at)


@pytest.mark.parametrize(
    ("releases", "options", "reason"),
    [
        ([POISSON], {"accountant": "gdp"}, "every release sees all records"),
        ([POISSON], {"accountant": "rdp"}, "'pld', or neighbours 'add_or_remove'"),
        ([FIXED_SIZE], {"accountant": "pld"}, "without replacement; accepted: 'rdp'"),
        ([FIXED_SIZE], {"accountant": "gdp"}, "every release sees all records"),
        ([FIXED_SIZE], {"accountant": "rdp", "neighbours": "add_or_remove"}, "accepted: 'replace_one'"),
        ([(1.0, 1)], {"accountant": "moments"}, "pld, rdp, gdp"),
        ([(1.0, 1)], {"neighbours": "bounded"}, "replace_one, add_or_remove"),
        ([(1.0, 1)], {"delta": 0.0}, "above 0, below 1"),
        ([(1.0, 1)], {"delta": 1.0}, "above 0, below 1"),
        ([(-1.0, 1)], {}, "noise_multiplier"),
        ([(math.nan, 1)], {}, "noise_multiplier"),
        ([(1.0, -1)], {}, "count"),
        ([(1.0, 1.5)], {}, "count"),
        ([(1.0, math.inf)], {}, "count"),
        ([(1.0, 1, 0.0)], {}, "sampling_rate"),
        ([(1.0, 1, 1.1)], {}, "sampling_rate"),
    ],
)
def test_refusals_say_what_is_accepted(releases: list[object], options: dict[str, object], reason: str) -> None:
    with pytest.raises(PrivacyError, match=reason) as error:
        epsilon(releases, **{"delta": DELTA, **options})
    assert "\n" not in str(error.value)


def test_a_kind_of_sampling_that_is_not_known_is_refused() -> None:
    with pytest.raises(PrivacyError, match="poisson, without_replacement"):
        Release(1.0, 1, 0.5, "shuffled")


def test_a_negative_epsilon_is_refused() -> None:
    with pytest.raises(PrivacyError, match="0 or more"):
        delta([(1.0, 1)], -1.0)


def test_the_room_is_light_until_it_is_used() -> None:
    code = (
        "import sys, fedsim.privacy as p; p.Release(1.0); print('dp_accounting' in sys.modules, 'scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("multiplier", [1e-9, 1e-3, 0.02])
def test_noise_that_protects_nothing_is_accounted_and_does_not_crash(multiplier: float) -> None:
    releases = [(multiplier, 10)]
    assert epsilon(releases, 1e-5) == pytest.approx(epsilon(releases, 1e-5, accountant="gdp"), rel=1e-6)
    assert epsilon([*releases, (1.0, 5, 0.1)], 1e-5) == math.inf
