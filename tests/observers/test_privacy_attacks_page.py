"""The table of docs/privacy-attacks.md is what the kept runs found, and they are the runs that its commands make."""

from __future__ import annotations

import importlib
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.analysis.statistics import t_interval, wilson
from fedsim.bench.cell import Cell
from fedsim.scenario import Scenario

PAGE = Path(__file__).parents[2] / "docs" / "privacy-attacks.md"
SCRIPT = PAGE.parents[1] / "benchmarks" / "privacy_attacks.py"
KEPT = PAGE.parent / "results" / "privacy_attacks.json"

pytestmark = pytest.mark.skipif(not KEPT.is_file(), reason="needs docs/results/privacy_attacks.json")


def kept() -> dict[str, list[dict[str, Any]]]:
    """A row's name → its runs, one a seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in json.loads(KEPT.read_text("utf-8"))["lines"]:
        found.setdefault(line["row"], []).append(line)
    return found


def shown() -> dict[str, list[str]]:
    """A row's name → its other cells."""
    text = PAGE.read_text("utf-8")
    table = text.partition("<!-- the last run: begin -->")[2].partition("<!-- the last run: end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:2] == "| "]
    return {name: cells for name, *cells in rows[1:]}


def first(cell: str) -> float:
    """The number that a cell begins with."""
    return float(cell.split()[0])


def mean(values: list[float]) -> float:
    return statistics.fmean(values)


def over_seeds(values: list[float], form: str, limit: float = math.inf) -> str:
    """What a cell of several seeds has behind its mean: Student's interval, a share's or an AUC's up to its limit."""
    _, low, high, _ = t_interval(values)
    return f"({max(0.0, low):{form}} to {min(limit, high):{form}})"


def test_every_row_is_what_its_runs_found() -> None:
    runs, table = kept(), shown()
    assert list(table) == list(runs)
    assert len({len(lines) for lines in runs.values()}) == 1
    for name, (accuracy, rebuilt, blind, auc, found, spent) in table.items():
        lines = runs[name]
        inversions = [line["gradient_inversion"] for line in lines]
        members = [line["membership_inference"] for line in lines]
        assert first(accuracy) == pytest.approx(100 * mean([line["accuracy"] for line in lines]), abs=0.051)
        assert first(rebuilt) == pytest.approx(mean([each["psnr"] for each in inversions]), abs=0.051)
        assert f"the best {max(each['psnr_best'] for each in inversions):.1f} dB" in rebuilt
        assert first(blind) == pytest.approx(mean([each["psnr_blind"] for each in inversions]), abs=0.051)
        assert first(auc) == pytest.approx(mean([each["auc"] for each in members]), abs=0.00051)
        rates = [each["rates"][0] for each in members]
        assert first(found) == pytest.approx(100 * mean([each["tpr"] for each in rates]), abs=0.51)
        if len(lines) == 1:
            low, high = 100 * rates[0]["tpr_low"], 100 * rates[0]["tpr_high"]
            assert found.endswith(f"({low:.0f} to {high:.0f})")
        else:
            assert accuracy.endswith(over_seeds([100 * line["accuracy"] for line in lines], ".1f", 100))
            assert over_seeds([each["psnr"] for each in inversions], ".1f") in rebuilt
            assert auc.endswith(over_seeds([each["auc"] for each in members], ".3f", 1).replace("0.", "."))
            assert found.endswith(over_seeds([100 * each["tpr"] for each in rates], ".0f", 100))
        assert all(each["asked"] == 0.01 >= each["fpr"] for each in rates)
        ((*epsilons,),) = {(a["epsilon"], b["epsilon"]) for a, b in zip(inversions, members, strict=True)}
        words = "{:.1f} after the first round, {:.0f} after the last"
        assert spent == ("none" if None in epsilons else words.format(*epsilons))
    several = {len(lines) > 1 for lines in runs.values()}
    assert several == {"with Student's 95 % interval over them" in PAGE.read_text("utf-8")}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not SCRIPT.is_file():
        pytest.skip("needs benchmarks/ (not in an installed fedsim)")
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("privacy_attacks")


def test_the_table_is_the_scripts_and_leaves_out_what_was_not_run(script: Any) -> None:
    assert script.table(json.loads(KEPT.read_text("utf-8"))) in PAGE.read_text("utf-8")
    assert list(kept()) == [row for row in script.ROWS if row in kept()]


@pytest.mark.parametrize("private", ["DP-SGD", "DIFF2"])
def test_each_private_row_has_the_same_run_without_noise_as_its_control(script: Any, private: str) -> None:
    (row,) = (name for name in kept() if name.startswith(private) and "without noise" not in name)
    (control,) = (name for name in kept() if name.startswith(f"{private} without noise"))
    scenario, noisy = (Scenario.load(script.ROWS[each][0], {}, script.ROWS[each][1]) for each in (control, row))
    assert scenario.privacy.epsilon == "inf"
    assert scenario.changed(**{"privacy.epsilon": noisy.privacy.epsilon}) == noisy
    assert all(line["gradient_inversion"]["epsilon"] in (None, math.inf, "inf") for line in kept()[control])


def test_one_seed_alone_has_wilsons_interval_over_its_members(script: Any) -> None:
    for name, (line, *_) in kept().items():
        members = line["membership_inference"]["members"]
        successes = round(line["membership_inference"]["rates"][0]["tpr"] * members)
        low, high = (100 * each for each in wilson(successes, members))
        row, accuracy, *_, found, _ = script.cells([line])
        assert row == name
        assert accuracy == f"{100 * line['accuracy']:.1f} %"
        assert found == f"{100 * successes / members:.0f} % ({low:.0f} to {high:.0f})"


def test_noise_ends_both_attacks_and_defenses_leave_the_first() -> None:
    """What the page says of its table."""
    for name, lines in kept().items():
        if "without noise" in name:
            continue
        for line in lines:
            inversion, membership = line["gradient_inversion"], line["membership_inference"]
            private = inversion["epsilon"] is not None
            assert private == name.startswith(("DP-SGD", "DIFF2"))
            assert (inversion["psnr"] < inversion["psnr_blind"]) == private
            assert not private or abs(membership["auc"] - 0.5) < 0.1
            assert not private or membership["rates"][0]["tpr_low"] < membership["rates"][0]["bound"]
        if name.startswith("SGD behind"):
            assert [each["gradient_inversion"] for each in lines] == [
                each["gradient_inversion"] for each in kept()["SGD"]
            ]


def test_the_runs_are_those_of_the_scenarios_as_they_are_now(tmp_path: Path) -> None:
    versions = json.loads(KEPT.read_text("utf-8"))["machine"]["versions"]
    if versions["fedsim-flwr"] != fedsim.__version__:
        pytest.skip(f"kept with fedsim {versions['fedsim-flwr']}, whose keys are others")
    for lines in kept().values():
        for line in lines:
            scenario = Scenario.load(line["scenario"], {"seed": line["seed"]}, line["sets"])
            assert Cell.of(1, 1, {}, scenario, tmp_path).key == line["key"]
            assert line["rounds"] == scenario.rounds
