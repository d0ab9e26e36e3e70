"""docs/privacy.md shows the proof that fedsim prints today: ``python tests/privacy/test_privacy_docs.py`` renews it."""

from __future__ import annotations

import re
from pathlib import Path

from dp_accounting import get_epsilon_gaussian
from scipy.optimize import brentq
from typer.testing import CliRunner

from fedsim.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "privacy.md"
BLOCK = re.compile(r"(?s)(?<=```text\n)(.*?)(?=```)")


def printed() -> str:
    return CliRunner().invoke(app, ["privacy", "private"], catch_exceptions=False).stdout


def test_the_page_shows_what_is_printed() -> None:
    found = BLOCK.search(PAGE.read_text("utf-8"))
    assert found is not None
    assert found.group() == printed()


def test_the_page_is_two_pages_long_with_its_proof() -> None:
    assert len(PAGE.read_text("utf-8").split()) <= 1000


def test_the_pages_cost_of_several_records_is_that_of_gaussian_noise() -> None:
    """Records of one person move a release as many times as far as one does."""
    noise = brentq(lambda sigma: get_epsilon_gaussian(sigma, 1e-5) - 3, 0.1, 10)
    found = re.search(r"ε = 3 becomes (\S+) for two of one person, (\d+) for ten", PAGE.read_text("utf-8"))
    assert found is not None
    assert [float(each) for each in found.groups()] == [
        round(get_epsilon_gaussian(noise / 2, 1e-5), 1),
        round(get_epsilon_gaussian(noise / 10, 1e-5)),
    ]


def test_the_pages_links_lead_to_headings_of_the_details() -> None:
    wanted = re.findall(r"\(privacy-details\.md#([a-z-]+)\)", PAGE.read_text("utf-8"))
    heads = re.findall(r"(?m)^## (.+)$", PAGE.with_name("privacy-details.md").read_text("utf-8"))
    assert wanted
    assert set(wanted) <= {head.lower().replace(" ", "-") for head in heads}


if __name__ == "__main__":
    proof = printed()
    PAGE.write_text(BLOCK.sub(lambda _: proof, PAGE.read_text("utf-8")), "utf-8")
