"""Ranking by the worst attack, Holm's rule, and what the intervals cover."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fedsim import report
from fedsim.analysis import coverage, ranking
from fedsim.analysis.ranking import rank_by_worst
from fedsim.analysis.statistics import holm, paired_p_value
from fedsim.errors import FedsimError

DOCS = Path(__file__).parents[2] / "docs" / "statistics.md"


def _page() -> str:
    return " ".join(DOCS.read_text("utf-8").split())


def test_paired_p_is_scipys() -> None:
    a, b = [0.91, 0.84, 0.88, 0.95, 0.79], [0.71, 0.80, 0.66, 0.93, 0.70]
    assert paired_p_value(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-12)
    assert paired_p_value(a, a) == 1.0
    assert paired_p_value([1.0, 2.0], [0.0, 1.0]) == 0.5, "two pairs that differ by one amount prove nothing"
    assert paired_p_value([1.0] * 6, [0.5] * 6) == stats.binomtest(6, 6).pvalue
    # 0.1 each, but for rounding: 0.09999999999999998 and 0.10000000000000003.
    assert paired_p_value([0.3, 0.4, 0.5], [0.2, 0.3, 0.4]) == 0.25
    assert paired_p_value([0.1 + 0.2, 0.3], [0.3, 0.1 + 0.2]) == 1.0
    assert math.isnan(paired_p_value([1.0], [0.0]))
    with pytest.raises(FedsimError, match="pairs"):
        paired_p_value(a, b[1:])


def test_holm_by_hand() -> None:
    """Holm 1979's steps: the smallest times m, the next times m - 1, …, never falling, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    with_gap = holm([0.02, math.nan, 0.02])
    assert with_gap[[0, 2]] == pytest.approx([0.04, 0.04])
    assert math.isnan(with_gap[1])
    assert holm([]).shape == (0,)
    with pytest.raises(FedsimError, match="0 to 1"):
        holm([1.5])


def test_holm_keeps_the_chance_of_any_false_rejection() -> None:
    generator = np.random.default_rng(0)
    rejected = [bool((holm(generator.random(8)) <= 0.05).any()) for _ in range(4000)]
    assert 0.035 <= np.mean(rejected) <= 0.06


def test_the_worst_attack_decides() -> None:
    """Two harmless attacks do not make up for the one that works."""
    spiky = [[0.0] * 4, [0.0] * 4, [0.9, 0.91, 0.9, 0.89]]
    even = [[0.4] * 4, [0.41] * 4, [0.39] * 4]
    first, second = rank_by_worst(["spiky", "even"], [spiky, even])
    assert (first.name, first.place, first.worst, first.attack) == ("even", 1, pytest.approx(0.41), 1)
    assert (second.name, second.place, second.worst, second.attack) == ("spiky", 2, pytest.approx(0.9), 2)
    assert first.ahead == 1.0
    assert math.isnan(second.ahead)


def test_what_seeds_do_not_tell_apart_shares_a_place() -> None:
    generator = np.random.default_rng(3)
    noise = generator.normal(0.3, 0.1, size=(3, 2, 6))
    alike = rank_by_worst(["a", "b"], noise[:2])
    assert [each.place for each in alike] == [1, 1]
    assert 0.5 <= alike[0].ahead < 0.95
    behind = rank_by_worst(["a", "b", "c"], noise + np.array([0.0, 0.0, 0.5])[:, None, None])
    assert [each.place for each in behind] == [1, 1, 3]


def test_rounding_makes_no_order_certain() -> None:
    """Three seeds in which two defenses differ by one amount prove as little where that is not a binary number."""
    found = rank_by_worst(["worse", "better"], [[[0.3, 0.4, 0.5]], [[0.2, 0.3, 0.4]]])
    assert [each.place for each in found] == [1, 1]


def test_a_place_counts_who_is_surely_ahead() -> None:
    """One that strays too much to be told from the others has nobody ahead of it, wherever its mean puts it."""
    stray, middle, last = [0.0, 0.02, 0.9], [0.4, 0.41, 0.42], [0.8, 0.81, 0.83]
    found = rank_by_worst(["stray", "middle", "last"], [[stray], [middle], [last]])
    assert [(each.name, each.place) for each in found] == [("stray", 1), ("middle", 1), ("last", 2)]
    behind = rank_by_worst(["stray", "middle", "last"], [[[0.0, 0.9, 2.6]], [middle], [last]])
    assert [(each.name, each.place) for each in behind] == [("middle", 1), ("last", 2), ("stray", 1)]


def test_seeds_are_paired() -> None:
    """A difference that is much the same in every seed is sure, however much the seeds differ."""
    level = np.array([0.1, 0.9, 0.4])
    first, second = rank_by_worst(["near", "far"], [[level], [level + np.array([0.01, 0.011, 0.009])]])
    assert (first.name, first.ahead, second.place) == ("near", 1.0, 2)
    assert first.low < 0.3 < 0.6 < first.high


def test_the_interval_is_students_of_the_worst_attack_and_the_bootstraps_on_request() -> None:
    harm = [[[0.1, 0.2, 0.1], [0.5, 0.9, np.nan], [0.2, 0.7, 0.3]]]
    (ours,) = rank_by_worst(["a"], harm)
    theirs = stats.t.interval(0.95, 1, loc=0.7, scale=stats.sem([0.5, 0.9]))
    assert (ours.attack, ours.worst) == (1, pytest.approx(0.7))
    assert (ours.low, ours.high) == pytest.approx(theirs)
    (again,) = rank_by_worst(["a"], [[[0.5, 0.9, 0.4]]], interval="bootstrap")
    assert (again.low, again.high) == pytest.approx((0.4, 0.9)), "the least and the largest: one resample of 27 each"


def test_one_seed_tells_no_order() -> None:
    found = rank_by_worst(["a", "b"], [[[0.1]], [[0.8]]])
    assert [(each.name, each.place) for each in found] == [("a", 1), ("b", 1)]
    assert found[0].ahead == 0.5
    assert math.isnan(found[0].low)


@pytest.mark.parametrize("seeds", [3, 10])
def test_equal_defenses_are_seldom_ordered(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    wrong = 0
    for trial in range(300):
        places = rank_by_worst(["a", "b"], generator.normal(size=(2, 1, seeds)), draws=300, seed=trial)
        wrong += places[1].place == 2
    assert wrong / 300 <= 0.08, "5 % and the error of 300 trials"


@pytest.mark.parametrize("adjusted", [True, False])
def test_a_ranking_of_equal_defenses_seldom_holds_any_order(adjusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight defenses are 28 pairs, of which one in twenty would be ordered each; the page tells how often any is."""
    if not adjusted:
        monkeypatch.setattr(ranking, "holm", np.asarray)
    generator = np.random.default_rng(3)
    names, trials = [f"defense {number}" for number in range(8)], 200
    wrong = 0
    for trial in range(trials):
        found = rank_by_worst(names, generator.normal(size=(8, 6, 3)), draws=200, seed=trial)
        wrong += any(each.place > 1 for each in found)
    told = re.search(r"on three seeds, (\d+) put one behind another; if nobody adjusted, (\d+) would", _page())
    assert told is not None
    assert 100 * wrong / trials == pytest.approx(float(told[1 if adjusted else 2]), abs=4)
    assert (wrong / trials <= 0.05) is adjusted


def test_the_bootstrap_alone_is_no_proof_and_the_leaderboard_says_so() -> None:
    """On three seeds all three differences of equals have one sign in one experiment of four."""
    generator = np.random.default_rng(1)
    firsts = [rank_by_worst(["a", "b"], generator.normal(size=(2, 1, 3)), draws=100)[0].ahead for _ in range(400)]
    assert np.mean(np.array(firsts) == 1.0) == pytest.approx(0.25, abs=0.06)
    template = Path(report.__file__).parent / "templates" / "leaderboard.html.j2"
    assert "two equal defenses on three seeds have 1.00 in one of four experiments" in template.read_text("utf-8")


def test_ten_seeds_tell_a_defense_that_is_far_behind() -> None:
    """Behind all seven others, by five times what a seed strays."""
    generator = np.random.default_rng(0)
    names = [*(f"defense {number}" for number in range(7)), "far"]
    level = np.where(np.arange(8) == 7, 0.6, 0.1)[:, None, None]
    placed = []
    for trial in range(50):
        found = rank_by_worst(names, level + generator.normal(scale=0.1, size=(8, 6, 10)), draws=200, seed=trial)
        placed.append([(each.name, each.place) for each in found][-1])
    assert np.mean([each == ("far", 8) for each in placed]) >= 0.95


def test_the_page_tells_what_holm_asks_of_a_difference() -> None:
    """In standard errors, of the first of eight defenses' 28 pairs."""
    told = re.search(r"may have to be ([\d.]+) standard errors to be sure with three seeds, (.*?) with ten", _page())
    assert told is not None
    others = re.findall(r"[\d.]+", told[2])
    for shown, seeds in zip((told[1], *others), (3, 5, 10), strict=True):
        assert float(shown) == pytest.approx(stats.t.ppf(1 - 0.05 / 28 / 2, seeds - 1), abs=0.05)


def test_missing_cells() -> None:
    harm = np.array([[[0.1, 0.2, np.nan]], [[0.5, 0.6, 0.7]]])
    assert rank_by_worst(["a", "b"], harm)[0].worst == pytest.approx(0.15)
    with pytest.raises(FedsimError, match="b: some attack"):
        rank_by_worst(["a", "b"], [[[0.1]], [[math.nan]]])
    with pytest.raises(FedsimError, match="accepted"):
        rank_by_worst(["a"], [[0.1]])


def test_the_page_tells_how_wide_students_interval_is() -> None:
    """In standard errors to each side."""
    told = re.search(r"at two seeds it is ([\d.]+) standard errors to each side \(([\d.]+) .*?\)(.*?)\. ", _page())
    assert told is not None
    assert float(told[1]) == pytest.approx(stats.t.ppf(0.975, 1), abs=0.05)
    assert float(told[2]) == pytest.approx(stats.t.ppf(0.975, 1) / math.sqrt(2), abs=0.05)
    others = dict(re.findall(r"at (three|five|ten) ([\d.]+)", told[3]))
    for name, seeds in (("three", 3), ("five", 5), ("ten", 10)):
        assert float(others[name]) == pytest.approx(stats.t.ppf(0.975, seeds - 1), abs=0.05)


@pytest.mark.parametrize("seeds", coverage.SEEDS)
def test_t_covers_on_normal_data(seeds: int) -> None:
    assert 0.93 <= coverage.over_seeds("t", "normal", seeds) <= 0.97


def test_the_page_prints_what_is_measured() -> None:
    """Every row of the page that can be had in a moment, drawn anew."""
    page = DOCS.read_text("utf-8")
    shown = {
        (shape, method): [float(f"0{cell.strip()}") for cell in cells.strip(" |").split("|")]
        for shape, method, cells in re.findall(r"^\| ([^|]+) \| (t|bootstrap) \|(.*)$", page, re.M)
    }
    assert {shape for shape, _ in shown} == set(coverage.SHAPES)
    for shape in coverage.SHAPES:
        assert coverage.over_seeds("t", shape, 5) == pytest.approx(shown[shape, "t"][coverage.SEEDS.index(5)], abs=6e-4)
    assert coverage.over_seeds("bootstrap", "normal", 3, 500) == pytest.approx(
        shown["normal", "bootstrap"][1], abs=0.06
    )
    row = re.search(r"^\| 0\.1, 0\.1 \|(.*)\|$", page, re.M)
    assert row is not None
    told = [float(f"0{cell.strip()}") for cell in row[1].split("|")]
    assert coverage.of_rate(0.1, 300, 2, 0.1, 20_000) == pytest.approx(told[0], abs=6e-4)
    rare = dict(re.findall(r"^\| (0\.\d+) \|(.*)\|$", page, re.M))
    assert set(rare) == {"0.001", "0.01", "0.1", "0.5"}
    for rate, cells in rare.items():
        drawn = [coverage.of_rate(float(rate), images, trials=20_000) for images in (50, 300, 9000)]
        assert [float(f"0{cell.strip()}") for cell in cells.split("|")] == pytest.approx(drawn, abs=6e-4), rate


@pytest.mark.slow
def test_the_pages_tables_are_what_is_measured_to_the_last_cell() -> None:
    page = DOCS.read_text("utf-8").partition("## Measured coverage")[2]
    assert [line for line in page.splitlines() if line.startswith("|")] == [line for line in coverage.tables() if line]
