"""A published number is met by ours, or the row says what is seen instead; bounds are no wider than the claim."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedsim.analysis.statistics import t_interval
from fedsim.verify import PAPERS
from fedsim.verify.claim import Expected, claims_of
from fedsim.verify.published import load_published
from fedsim.verify.runner import load

A_NUMBER = r"[−-]?\d*\.?\d+(?:e-?\d+)?"
FIGURE = re.compile(rf"({A_NUMBER})(?: to ({A_NUMBER}))?(?: %.*)?")
SPREAD = re.compile(rf"({A_NUMBER}) ± ({A_NUMBER})( %)?")
BOUND = re.compile(rf"([≤<≥>]) ({A_NUMBER})(?: %)?(?: \(.*\))?")


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def ends(row: Expected) -> tuple[float, float] | None:
    """The figure, or its range, in the unit of the bounds; None where ``expected`` is none."""
    percent = 100 if row.expected.endswith("%") and (row.high or row.low or 0) <= 1 else 1
    if found := SPREAD.fullmatch(row.expected):
        middle, off = number(found[1]), number(found[2])
        off = middle * off / 100 if found[3] else off
        return middle - off, middle + off
    found = FIGURE.fullmatch(row.expected)
    return (number(found[1]) / percent, number(found[2] or found[1]) / percent) if found else None


def half_a_digit(row: Expected) -> float:
    """What rounding the figure to the digits that it has may have changed; nothing where it is a count."""
    found = FIGURE.fullmatch(row.expected)
    mantissa, _, power = found[1].partition("e") if found else ("", "", "")
    digits = len(mantissa.partition(".")[2])
    return 0.5 * 10.0 ** (int(power or 0) - digits) if digits else 1e-9


def is_told(row: Expected, ours: Sequence[float] = ()) -> bool:
    """Whether the figure lies within the bounds and is ours, or the row says what is seen instead.

    Ours is what the interval over seeds reaches, or what the mean is to the figure's digits. A single run of a claim
    that draws has no interval, and is held by the bounds alone: it is given as none.
    """
    if row.differs:
        return True
    if bound := BOUND.fullmatch(row.expected):
        at = number(bound[2]) / (100 if "%" in row.expected and (row.high or row.low or 0) <= 1 else 1)
        upper = bound[1] in "≤<"
        return row.high is not None and row.high <= at + 1e-12 if upper else row.low is None or row.low >= at - 1e-12
    figure = ends(row)
    if figure is None:
        return True
    if row.low is None and row.high is None:
        return False
    within = all(
        (row.low is None or each >= row.low - 1e-12) and (row.high is None or each <= row.high + 1e-12)
        for each in figure
    )
    return within and (not ours or reached(figure, ours, half_a_digit(row)))


def reached(figure: tuple[float, float], ours: Sequence[float], rounding: float) -> bool:
    mean = sum(ours) / len(ours)
    if figure[0] - rounding <= mean <= figure[1] + rounding:
        return True
    found = t_interval(ours)
    return len(ours) > 1 and found.low <= figure[1] and figure[0] <= found.high


@pytest.mark.parametrize("paper", PAPERS)
def test_a_figure_that_is_not_reproduced_says_so(paper: str) -> None:
    load(paper)
    known = load_published(Path(__file__).parents[2] / "docs" / "results" / "verify")
    untold = set()
    for each in claims_of(paper):
        published = known.get(f"{paper}.{each.key}")
        values = published.values if published and (each.exact or published.seeds > 1) else ()
        for name, row in each.rows.items():
            if not is_told(row, [one[name] for one in values if name in one]):
                untold.add(f"{paper}.{each.key}.{name}")
    assert not untold


def test_rows_that_tell_nothing_are_found() -> None:
    assert not is_told(Expected("c", ".992", 0.3, 0.8))
    assert not is_told(Expected("c", ".86"))
    assert not is_told(Expected("c", "11 to 32 %", 0.11, 0.3))
    assert not is_told(Expected("c", "0 %", 0.01, 0.06))
    assert not is_told(Expected("c", "≤ .02", None, 0.05))
    assert not is_told(Expected("c", "≥ .99", 0.95))
    assert not is_told(Expected("c", "≤ 6 %", None, 0.3))
    assert is_told(Expected("c", ".992", 0.3, 0.8, "why"))
    assert is_told(Expected("c", "−.3", -0.31, -0.29))
    assert is_told(Expected("c", "11 to 32 %", 0.11, 0.32))
    assert is_told(Expected("c", "less"))
    assert is_told(Expected("c", "≥ .95 (.964 in one run)", 0.95))
    assert is_told(Expected("c", "> 0", 0.01))


def test_a_bound_that_is_wide_enough_does_not_make_the_figure_ours() -> None:
    three = (92.11, 92.22, 92.27)
    assert not is_told(Expected("c", "92.49", 91.9, 93.5), three)
    assert is_told(Expected("c", "92.49", 91.9, 92.45, "why"), three)
    assert is_told(Expected("c", "92.3", 91.9, 93.5), three), "within the interval over seeds"
    assert is_told(Expected("c", "92.2", 91.9, 93.5), (92.2001, 92.2001)), "to the digits that are given"
    assert is_told(Expected("c", "4.2872e-3", 0.004, 0.005), (0.00428718,))
    assert not is_told(Expected("c", "4.2872e-3", 0.004, 0.005), (0.0042874,))
    assert not is_told(Expected("c", "0 %", None, 0.02), (0.0075, 0.0043, 0.0065))
    assert not is_told(Expected("c", "27", 25, 29), (28,))
    assert is_told(Expected("c", "27 ± 2", 25, 29), (28,))
    assert not is_told(Expected("c", "27 ± 2", 25, 30), (30,))
    assert is_told(Expected("c", "11 to 32 %", 0.11, 0.32), (0.18, 0.19, 0.16))
