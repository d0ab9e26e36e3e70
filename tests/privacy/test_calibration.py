"""DIFF2's noise against the paper's formulas, the numbers known of it, and the accountants."""

from __future__ import annotations

import math

import pytest

from fedsim.errors import PrivacyError
from fedsim.privacy import (
    Release,
    check_noise,
    diff2_noise,
    diff2_releases,
    diff2_rounds,
    epsilon,
    epsilon_curve,
    noise_for,
)

DELTA = 1e-5
SETTING = {"clients": 10, "examples_per_client": 1651}


def spent(noise: tuple[float, float], rounds: int, restart: int, accountant: str = "pld", **options: object) -> float:
    return epsilon(diff2_releases(*noise, rounds, restart, **{**SETTING, **options}), DELTA, accountant)


@pytest.mark.parametrize(
    ("restart", "noise", "rdp", "pld"),
    [(1, (9.3834e-3, 0.0), 2.541, 2.341), (6, (4.2872e-3, 2.0982e-2), 2.494, 2.297)],
)
def test_known_answers_of_the_papers_setting(restart: int, noise: tuple[float, float], rdp: float, pld: float) -> None:
    found = diff2_noise(3.0, DELTA, 2000, restart, **SETTING)
    assert found == pytest.approx(noise, rel=1e-3)
    assert spent(found, 2000, restart, "rdp") == pytest.approx(rdp, abs=5e-3)
    assert spent(found, 2000, restart, "pld") == pytest.approx(pld, abs=5e-3)
    assert spent(found, 2000, restart, "gdp") == pytest.approx(pld, abs=5e-3)


def test_releases_are_those_of_the_rounds() -> None:
    releases = diff2_releases(1e-3, 2e-3, 100, 99, **SETTING)
    assert releases == [Release(1e-3 * 16510, 2), Release(2e-3 * 16510, 98)]
    assert diff2_releases(1e-3, 2e-3, 100, 1, **SETTING) == [Release(1e-3 * 16510, 100)]
    rounds = diff2_rounds(releases, 100, 99)
    assert [number for number, each in enumerate(rounds) if each == [Release(1e-3 * 16510)]] == [0, 99]
    assert epsilon_curve(rounds, DELTA, "gdp", at=[100])[0] == pytest.approx(epsilon(releases, DELTA, "gdp"))


def test_a_restart_that_does_not_divide_the_rounds() -> None:
    """As the paper writes it R/T counts too few releases: refused where given, rounded up where computed."""
    found = diff2_noise(3.0, DELTA, 100, 99, **SETTING)
    assert spent(found, 100, 99) == pytest.approx(2.336, abs=5e-3)
    uncorrected = (found[0] * math.sqrt(100 / 99 / 2), found[1])
    assert spent(uncorrected, 100, 99) == pytest.approx(3.24, abs=5e-3)
    with pytest.raises(PrivacyError, match=r"epsilon is 3\.24.*at most 3"):
        check_noise(diff2_releases(*uncorrected, 100, 99, **SETTING), 3.0, DELTA)
    assert check_noise(diff2_releases(*found, 100, 99, **SETTING), 3.0, DELTA) == spent(found, 100, 99)


def test_a_restart_beyond_the_rounds_is_refused() -> None:
    with pytest.raises(PrivacyError, match="restart: given 100; accepted: 1 to 10"):
        diff2_noise(3.0, DELTA, 10, 100, **SETTING)
    with pytest.raises(PrivacyError, match="restart: given 100; accepted: 1 to 10"):
        diff2_releases(1.0, 1.0, 10, 100, **SETTING)


@pytest.mark.parametrize("restart", [1, 6, 2000])
@pytest.mark.parametrize("target", [0.1, 3.0, 32.0])
def test_tight_meets_epsilon_from_below(restart: int, target: float) -> None:
    paper = diff2_noise(target, DELTA, 2000, restart, **SETTING)
    tight = diff2_noise(target, DELTA, 2000, restart, **SETTING, calibration="tight")
    assert target - 1e-3 <= spent(tight, 2000, restart) <= target
    assert tight[0] < paper[0]
    if restart > 1:
        assert tight[1] / paper[1] == pytest.approx(tight[0] / paper[0], rel=1e-12)


@pytest.mark.parametrize("accountant", ["pld", "rdp", "gdp"])
def test_tight_by_each_accountant(accountant: str) -> None:
    tight = diff2_noise(3.0, DELTA, 2000, 6, **SETTING, calibration="tight", accountant=accountant)
    assert 3.0 - 1e-3 <= spent(tight, 2000, 6, accountant) <= 3.0


@pytest.mark.parametrize(("missing", "known"), [(1, 3.19), (3, 3.68)])
def test_distributed_noise_protects_as_far_as_shares_are_added(missing: int, known: float) -> None:
    central = diff2_noise(3.0, DELTA, 2000, 6, **SETTING, calibration="tight")
    together = diff2_noise(3.0, DELTA, 2000, 6, **SETTING, calibration="tight", trust="distributed")
    assert together == pytest.approx(central)
    assert spent(together, 2000, 6, trust="distributed", colluding=missing) == pytest.approx(known, abs=1e-2)
    enough = diff2_noise(3.0, DELTA, 2000, 6, **SETTING, calibration="tight", trust="distributed", colluding=missing)
    assert enough[0] / central[0] == pytest.approx(math.sqrt(10 / (10 - missing)), rel=1e-3)
    assert 3.0 - 1e-3 <= spent(enough, 2000, 6, trust="distributed", colluding=missing) <= 3.0


def test_whom_the_noise_protects_and_from_whom_scales_it() -> None:
    def noise(**options: object) -> float:
        return diff2_noise(3.0, DELTA, 2000, 6, **{**SETTING, **options})[0]

    assert noise(trust="local") / noise() == pytest.approx(10)
    assert noise(unit="client") / noise() == pytest.approx(1651)
    assert noise(unit="client", trust="local") / noise() == pytest.approx(16510)
    assert noise(neighbours="add_or_remove") / noise() == pytest.approx(0.5)
    assert noise(examples_per_client=[4000] * 9 + [1651]) == noise()


@pytest.mark.parametrize("trust", ["central", "distributed", "local"])
@pytest.mark.parametrize("unit", ["example", "client"])
@pytest.mark.parametrize("neighbours", ["replace_one", "add_or_remove"])
def test_every_promise_is_kept_and_none_is_kept_lavishly(trust: str, unit: str, neighbours: str) -> None:
    options = {"trust": trust, "unit": unit}
    noise = diff2_noise(3.0, DELTA, 2000, 6, **SETTING, **options, neighbours=neighbours, calibration="tight")
    releases = diff2_releases(*noise, 2000, 6, **SETTING, **options)
    assert 3.0 - 1e-3 <= epsilon(releases, DELTA, neighbours=neighbours) <= 3.0


@pytest.mark.parametrize("target", [0.05, 1.0, 3.0, 5.0, 128.0])
@pytest.mark.parametrize(("rounds", "restart"), [(1, 1), (10, 10), (10, 7), (1000, 30)])
def test_the_papers_noise_rounded_up_always_suffices(target: float, rounds: int, restart: int) -> None:
    noise = diff2_noise(target, DELTA, rounds, restart, **SETTING)
    assert spent(noise, rounds, restart, "rdp") <= target


def test_no_promise_needs_no_noise() -> None:
    assert diff2_noise(math.inf, DELTA, 2000, 6, **SETTING) == (0.0, 0.0)
    assert noise_for(math.inf, DELTA, 100) == 0.0
    assert check_noise([(0.0, 1)], math.inf, DELTA) == math.inf


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"epsilon": 0.0}, "epsilon: given"),
        ({"epsilon": math.nan}, "epsilon: given"),
        ({"delta": 0.0}, "delta: given"),
        ({"rounds": 0}, "rounds: given"),
        ({"restart": 0}, "restart: given"),
        ({"clients": 0}, "clients: given"),
        ({"examples_per_client": 0}, "examples_per_client: given"),
        ({"examples_per_client": [5, 5]}, "accepted: one, or 10"),
        ({"calibration": "loose"}, "paper, tight"),
        ({"trust": "nobody"}, "central, distributed, local"),
        ({"unit": "pixel"}, "example, client"),
        ({"neighbours": "bounded"}, "replace_one, add_or_remove"),
        ({"colluding": 1}, "trust 'distributed'"),
        ({"colluding": 10, "trust": "distributed"}, "0 to 9"),
    ],
)
def test_refusals_say_what_is_accepted(options: dict[str, object], reason: str) -> None:
    valid = {"epsilon": 3.0, "delta": DELTA, "rounds": 20, "restart": 6, **SETTING}
    with pytest.raises(PrivacyError, match=reason) as error:
        diff2_noise(**{**valid, **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rate", "options"),
    [
        (1.0, {}),
        (1.0, {"accountant": "gdp", "neighbours": "add_or_remove"}),
        (0.05, {"accountant": "rdp", "neighbours": "add_or_remove"}),
        pytest.param(0.05, {}, marks=pytest.mark.slow),
        pytest.param(0.05, {"neighbours": "add_or_remove"}, marks=pytest.mark.slow),
        pytest.param(0.05, {"accountant": "rdp", "sampling": "without_replacement"}, marks=pytest.mark.slow),
    ],
)
def test_noise_for_meets_epsilon_from_below(rate: float, options: dict[str, str]) -> None:
    multiplier = noise_for(3.0, DELTA, 200, rate, **options)
    sampling = options.get("sampling", "poisson")
    rest = {key: value for key, value in options.items() if key != "sampling"}
    assert 3.0 - 1e-3 <= epsilon([Release(multiplier, 200, rate, sampling)], DELTA, **rest) <= 3.0


def test_noise_for_one_release_is_the_analytic_gaussian_mechanism() -> None:
    """Balle and Wang 2018, the calibration at epsilon 1, delta 1e-5: 3.73 times the sensitivity."""
    assert noise_for(1.0, DELTA, 1, neighbours="add_or_remove") == pytest.approx(3.7304, rel=2e-3)
    assert noise_for(1.0, DELTA, 1, neighbours="replace_one") == pytest.approx(2 * 3.7304, rel=2e-3)


@pytest.mark.slow
def test_an_epsilon_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(PrivacyError, match="accountant"):
        noise_for(1.0, 1e-30, 1)
