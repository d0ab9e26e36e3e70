"""The table of docs/red-team.md is what the kept searches found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedsim.scenario import Scenario, read

PAGE = Path(__file__).parents[2] / "docs" / "red-team.md"
KEPT = PAGE.parent / "results" / "redteam"

pytestmark = pytest.mark.skipif(not KEPT.is_dir(), reason="needs docs/results/redteam")


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def told(name: str) -> tuple[dict[str, Any], list[str]]:
    """A search, and the cells of its row."""
    (row,) = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| [{name}](")]
    return json.loads((KEPT / f"{name}.json").read_text("utf-8")), [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.parametrize("name", sorted(file.stem for file in KEPT.glob("*.json")))
def test_a_row_tells_what_its_search_found(name: str) -> None:
    search, (_, threat, _, static, adaptive, gain) = told(name)
    (defense,) = search["defenses"]
    seeds = {1: "one", 2: "two", 3: "three"}
    assert f"{search['budget']} trials on {seeds[len(search['tune'])]} seed, reported on" in threat
    assert threat.endswith(f"reported on {seeds[len(search['report'])]}")
    assert not set(search["tune"]) & set(search["report"])
    for cell, found in ((static, defense["static"]), (adaptive, defense["adaptive"])):
        if cell == "the same":
            assert found["attacks"] == defense["static"]["attacks"]
            continue
        lost, *spread = found["lost_interval"]
        lost = f"{percent(lost)} points lost"
        success, least, greatest = found["measure"]
        success = f"ASR {percent(success)} % ({percent(max(0, least))} to {percent(min(1, greatest))})"
        if search["goal"] == "damage":
            lost, success = f"{lost} ({percent(spread[0])} to {percent(spread[1])})", ""
        assert success in cell
        assert lost in cell
        assert all(f"`{part['name']}`" in cell or "trigger" in cell for part in found["attacks"])
    middle, low, high = (percent(value) for value in defense["gain"])
    if adaptive == "the same":
        assert (gain, float(middle)) == ("none", 0)
    else:
        assert gain.startswith(f"{'' if middle.startswith('-') else '+'}{middle} ({low} to {high})")


def test_the_threat_models_that_the_page_names_ship_with_fedsim() -> None:
    named = re.findall(r"^fedsim redteam (\S+)", PAGE.read_text("utf-8"), re.M)
    assert len(named) >= 8
    assert [name for name in named if read(name)["adversary"] == {}] == []


def test_every_kept_search_has_its_picture() -> None:
    pages = {file.stem for file in KEPT.glob("*.html")}
    assert pages == {file.stem for file in KEPT.glob("*.json")}
    assert all("<svg" in (KEPT / f"{name}.html").read_text("utf-8") for name in pages)


def test_the_radii_s_table_is_that_of_the_kept_cells() -> None:
    """docs/results/redteam/norm_bound_radii.csv is what ``fedsim results --csv`` said of the command on the page."""
    cells = pd.read_csv(KEPT / "norm_bound_radii.csv")
    plain = float(cells[cells["defense"] == "fedavg"]["calm_accuracy"].iloc[0])
    lines = PAGE.read_text("utf-8").splitlines()
    start = lines.index("| radius | ε of `pgd` | clipped | ASR | accuracy lost |") + 2
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start : start + len(cells)]]
    options = Scenario.load("papers/norm_bound_small_norm").adversary.attacks[-1].options
    for (radius, epsilon, clipped, asr, lost), (_, cell) in zip(rows, cells.iterrows(), strict=True):
        assert cell["defense"] == ("fedavg" if radius == "none" else f"norm_bound (radius {radius})")
        assert float(epsilon) == options["epsilon"]
        assert ("malicious updates, to" in clipped) == (radius != "none" and float(radius) < float(epsilon))
        assert (asr, lost) == (f"{percent(cell['asr'])} %", f"{percent(plain - cell['accuracy'])} points")
    assert f"The ASR without attack is at most {percent(cells['floor'].max())} %" in PAGE.read_text("utf-8")


@pytest.mark.parametrize("name", sorted(file.stem for file in KEPT.glob("*.html")))
def test_a_kept_page_s_commands_run_what_lies_beside_it(name: str) -> None:
    page = (KEPT / f"{name}.html").read_text("utf-8")
    (defense,) = json.loads((KEPT / f"{name}.json").read_text("utf-8"))["defenses"]
    files = re.findall(r"<p>In the folder of this page:</p>\n<pre [^>]*><code>fedsim run (\S+) ", page)
    assert len(files) == len(re.findall("fedsim run ", page)) == 2
    for file, found in zip(files, (defense["static"], defense["adaptive"]), strict=True):
        assert Scenario.load(str(KEPT / file)).toml() == (KEPT / file).read_text("utf-8") == found["scenario"]
