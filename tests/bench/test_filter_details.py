"""docs/multi_metrics.md's table of details is what the kept runs found, and they are the runs that the script makes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.bench.cell import Cell
from fedsim.errors import DataMissing
from fedsim.federation import make

PROJECT = Path(__file__).parents[2]
FILE, PAGE = PROJECT / "benchmarks" / "filter_details.py", PROJECT / "docs" / "multi_metrics.md"
KEPT = PAGE.parent / "results" / "filter_details.json"

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="needs benchmarks/ (not in an installed fedsim)")
needs_runs = pytest.mark.skipif(not KEPT.is_file(), reason="needs docs/results/filter_details.json (the script's runs)")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FILE.parent)
    spec = importlib.util.spec_from_file_location("benchmarks_filter_details", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def kept() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = json.loads(KEPT.read_text("utf-8"))["lines"]
    return lines


def shown() -> str:
    """What the page says between the marks."""
    text = PAGE.read_text("utf-8")
    return text.partition("<!-- the last run: begin -->")[2].partition("<!-- the last run: end -->")[0].strip()


def test_a_row_changes_what_its_name_says_and_has_a_folder_of_its_own(script: Any) -> None:
    plain = script.cell([], 3)
    assert (plain.seed, plain.matrix, plain.client.batch_size, plain.model.standardize) == (3, {}, 10, None)
    assert [part.name for part in plain.server.defenses] == ["multi_metrics", "median"]
    for row, sets in script.ROWS.items():
        found = script.cell(sets, 3)
        scaled = "" if found.model.standardize is None else "mean {}, sd {}".format(*found.model.standardize)
        words = f"{scaled.replace('0.', '.') or '[0, 1]'}, {found.client.batch_size}"
        own = found.adversary.attacks[0].options["clean_from"] == "own"
        assert row == words + (", the attacker's clean images its own" if own else "")
        edge, plain_edge = (dict(each.adversary.attacks[0].options) for each in (found, plain))
        assert {**edge, "clean_from": "population"} == {**plain_edge, "clean_from": "population"}
        assert found.adversary.attacks[1] == plain.adversary.attacks[1]
        assert found.rounds == plain.rounds
    assert len({script.folder(row, 3) for row in script.ROWS}) == len(script.ROWS)


def test_the_table_s_first_line_is_the_first_table_s_last(script: Any) -> None:
    (first,) = [line for line in shown().splitlines() if line.startswith(f"| {script.PLAIN} |")]
    seeds = sorted({line["seed"] for line in kept()}) if KEPT.is_file() else [0, 1, 2, 3, 4]
    assert first == "| " + " | ".join([script.PLAIN, *script.cells(script.plain(seeds))]) + " |"


def test_the_page_says_that_its_table_is_an_earlier_version_s_until_there_are_runs() -> None:
    assert ("of an earlier version" in shown()) != KEPT.is_file()


@needs_runs
def test_every_row_is_what_its_runs_found(script: Any) -> None:
    assert shown() == script.table(json.loads(KEPT.read_text("utf-8")))
    seeds = {row: [line["seed"] for line in kept() if line["row"] == row] for row in script.ROWS}
    assert len({tuple(sorted(each)) for each in seeds.values()}) == 1
    rows = [each.strip("| ").split(" | ") for each in shown().splitlines() if each.startswith("| ")]
    table = {name: others for name, *others in rows}
    for line in kept():
        place = sorted(seeds[line["row"]]).index(line["seed"])
        passed, rate = (cell.split(", ")[place] for cell in table[line["row"]])
        assert int(passed) == line["attacker_rows_kept"] <= line["attacker_rows"] == 200
        assert float(rate) == pytest.approx(line["asr"], abs=0.0051)
        assert line["last_rounds"] == 5


@needs_runs
def test_the_runs_are_those_of_the_scenarios_as_they_are_now(script: Any, tmp_path: Path) -> None:
    versions = json.loads(KEPT.read_text("utf-8"))["machine"]["versions"]
    if versions["fedsim-flwr"] != fedsim.__version__:
        pytest.skip(f"kept with fedsim {versions['fedsim-flwr']}, whose keys are others")
    try:
        make("dataset", script.cell([], 0).data.dataset).load()
    except DataMissing:
        pytest.skip("needs Fashion-MNIST, whose content is in the keys (make data)")
    for line in kept():
        assert line["sets"] == script.ROWS[line["row"]]
        scenario = script.cell(line["sets"], line["seed"])
        assert Cell.of(1, 1, {}, scenario, tmp_path).key == line["key"]
        assert line["rounds"] == scenario.rounds
