"""A published number is either met within the bounds of its row, or the row says what is seen instead."""

from __future__ import annotations

import re

import pytest

from fedsim.verify import PAPERS
from fedsim.verify.claim import Expected, claims_of
from fedsim.verify.runner import load

NUMBER = re.compile(r"([−-]?\d*\.?\d+(?:e-?\d+)?)(?: (%|to ([−-]?\d*\.?\d+)).*)?")


def is_told(row: Expected) -> bool:
    """Whether the number at the start of ``expected``, or the end of its range, lies within the bounds."""
    found = NUMBER.fullmatch(row.expected)
    if found is None or row.differs:
        return True
    if row.low is None and row.high is None:
        return False
    percent = 100 if row.expected.endswith("%") and (row.high or row.low or 0) <= 1 else 1
    numbers = [float(each.replace("−", "-")) / percent for each in (found[1], found[3] or found[1])]
    return all(
        (row.low is None or each >= row.low - 1e-12) and (row.high is None or each <= row.high + 1e-12)
        for each in numbers
    )


@pytest.mark.parametrize("paper", PAPERS)
def test_a_figure_that_is_not_reproduced_says_so(paper: str) -> None:
    load(paper)
    untold = {
        f"{paper}.{each.key}.{name}" for each in claims_of(paper) for name, row in each.rows.items() if not is_told(row)
    }
    assert not untold


def test_rows_that_tell_nothing_are_found() -> None:
    assert not is_told(Expected("c", ".992", 0.3, 0.8))
    assert not is_told(Expected("c", ".86"))
    assert not is_told(Expected("c", "11 to 32 %", 0.11, 0.3))
    assert not is_told(Expected("c", "0 %", 0.01, 0.06))
    assert is_told(Expected("c", ".992", 0.3, 0.8, "why"))
    assert is_told(Expected("c", "−.3", -0.31, -0.29))
    assert is_told(Expected("c", "11 to 32 %", 0.11, 0.32))
    assert is_told(Expected("c", "less"))
