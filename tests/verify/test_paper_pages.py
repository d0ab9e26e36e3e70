"""The numbers of ours in the tables of docs/papers are those of the published rows, to the digits that are shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim.analysis.statistics import t_interval
from fedsim.verify import PAPERS
from fedsim.verify.published import load_published

DOCS = Path(__file__).parents[2] / "docs"
NUMBER = re.compile(r"(?<![\w.])[−-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:e-?\d+)?(?![\w])")
OF_A_SETTING = 100
"""Whole numbers from here on are sizes: 200 examples, 1000 iterations."""


def cells_of_ours(page: str) -> Iterator[str]:
    """Cells of the tables under "Beside the paper": a column "ours", or what follows "ours" at the start of a row."""
    below = re.split(r"^## ", page, flags=re.MULTILINE)
    (table,) = [part for part in below if part.startswith("Beside the paper")]
    column = None
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")] if line.startswith("|") else []
        cells = ["", *cells] if line.startswith("| |") else cells
        if not cells:
            column = None
        elif column is None:
            ours = [k for k, cell in enumerate(cells) if cell.startswith("ours")]
            column = ours[0] if ours else -1
        elif cells[0].startswith("ours"):
            yield from cells[1:]
        elif column > 0 and not cells[0].startswith("---"):
            yield cells[column]


def numbers(cell: str) -> Iterator[tuple[float, float]]:
    """(a number, half of its last digit), without what stands in brackets or as code."""
    for found in NUMBER.findall(re.sub(r"\([^)]*\)|`[^`]*`", "", cell)):
        text = found.replace("−", "-").replace(",", "")
        mantissa, _, power = text.partition("e")
        decimals = len(mantissa.partition(".")[2])
        if decimals or power or abs(float(text)) < OF_A_SETTING:
            yield float(text), 0.5 * 10.0 ** (int(power or 0) - decimals)


def published_numbers(paper: str) -> set[float]:
    """Means, seeds' values and ends of intervals of the paper's rows, as they are, in percent and out of percent."""
    found: set[float] = set()
    for key, each in load_published(DOCS / "results" / "verify").items():
        if key.partition(".")[0] == paper:
            found |= set(each.means.values())
            for name in each.means:
                values = [one[name] for one in each.values if name in one]
                found |= set(values)
                if len(values) > 1:
                    interval = t_interval(values)
                    found |= {interval.low, interval.high}
    return {scale * value for value in found for scale in (0.01, 1, 100)}


def unknown(page: str, known: set[float]) -> list[str]:
    return [
        f"{number:g} in '{cell}'"
        for cell in cells_of_ours(page)
        for number, half in numbers(cell)
        if not any(abs(value - number) <= half * (1 + 1e-9) for value in known)
    ]


@pytest.mark.parametrize("paper", [name for name in PAPERS if name != "multi_metrics"])
def test_what_a_page_says_of_ours_is_published(paper: str) -> None:
    page = (DOCS / "papers" / f"{paper}.md").read_text()
    assert list(cells_of_ours(page)) or paper == "diff2", "a table without a column of ours tests nothing"
    assert not unknown(page, published_numbers(paper))


PAGE = """## Beside the paper
| | known | ours |
|---|---|---|
| a, of 20 | .9 | .922 and −3 % (400 digits); `n = 7` |

| what | x | y |
|---|---|---|
| known | .5 | 6 |
| ours, one seed | .123 | – |

## What we found out
.4
"""


def test_a_number_that_no_row_has_is_found() -> None:
    assert not unknown(PAGE, {0.92249, -3.2, 0.1226})
    assert unknown(PAGE, {0.9226, -3.2, 0.1226}) == ["0.922 in '.922 and −3 % (400 digits); `n = 7`'"]
    assert unknown(PAGE, {0.922, -3.0}) == ["0.123 in '.123'"]
