"""The table of docs/privacy-attacks.md is what the kept runs found, and they are the runs that its commands make."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.analysis.statistics import wilson
from fedsim.bench.cell import Cell
from fedsim.scenario import Scenario

PAGE = Path(__file__).parents[2] / "docs" / "privacy-attacks.md"
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
        total = sum(each["members"] for each in members)
        low, high = wilson(sum(round(each["rates"][0]["tpr"] * each["members"]) for each in members), total)
        assert found.endswith(f"({100 * low:.0f} % to {100 * high:.0f} %)")
        if len(lines) == 1:
            assert (low, high) == pytest.approx((rates[0]["tpr_low"], rates[0]["tpr_high"]))
        else:
            accuracies = [100 * line["accuracy"] for line in lines]
            assert accuracy.endswith(f"({min(accuracies):.1f} to {max(accuracies):.1f})")
            quotients = [each["auc"] for each in members]
            assert auc.endswith(f"({min(quotients):.3f} to {max(quotients):.3f})".replace("0.", "."))
        assert all(each["asked"] == 0.01 >= each["fpr"] for each in rates)
        ((*epsilons,),) = {(a["epsilon"], b["epsilon"]) for a, b in zip(inversions, members, strict=True)}
        words = "{:.1f} after the first round, {:.0f} after the last"
        assert spent == ("none" if None in epsilons else words.format(*epsilons))
    assert {len(lines) > 1 for lines in runs.values()} == {"Means over the seeds" in PAGE.read_text("utf-8")}


def test_noise_ends_both_attacks_and_defenses_leave_the_first() -> None:
    """What the page says of its table."""
    for name, lines in kept().items():
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
