"""The page of a red team: what each attack reached, those over the bound told apart by shape, no empty column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from page_reader import Page

from fedsim.report.redteam import history, write_redteam


def attempt(asr: float, lost: float) -> dict[str, Any]:
    return {
        "attacks": [{"name": "badnets", "ratio": 0.123456}],
        "schedule": {"name": "every_round"},
        "asr": [asr],
        "lost": [lost],
        "error": "",
        "measure": [0.9, 0.85, 0.95],
        "within": True,
        "scenario": "rounds = 3\n",
        "file": "adaptive-krum.toml",
    }


def found() -> dict[str, Any]:
    trials = [attempt(0.2, 0.01), attempt(0.9, 0.3), attempt(0.6, 0.0)]
    return {
        "defense": "krum",
        "threat_model": [["Holds", "4 of 40 clients"]],
        "statics": [attempt(0.5, 0.0)],
        "trials": trials,
        "static": attempt(0.5, 0.0),
        "adaptive": trials[2],
        "gain": [0.1, 0.0, 0.2],
        "floor": 0.01,
    }


def test_an_attack_over_the_bound_is_a_ring_and_never_the_best() -> None:
    chart = history(found(), "asr", 0.02)
    assert chart is not None
    assert [(key.style, key.text) for key in chart.legend] == [
        ("dot main", "tried"),
        ("dot ring chance", "costs more accuracy than allowed"),
        ("line attack", "best so far"),
        ("line floor", "best static attack"),
    ]
    drawn = {shape.style: shape.path.count("h0") for shape in chart.shapes}
    assert drawn["dot large main"] == 2
    assert drawn["dot large ring chance"] == drawn["dot large hole"] == 1
    assert "0.9" not in chart.label.split("best so far")[1]


@pytest.mark.parametrize("goal", ["asr", "damage"])
def test_the_floor_has_a_column_where_there_is_a_trigger(goal: str, tmp_path: Path) -> None:
    told = {"goal": goal, "bound": 0.02, "budget": 3, "tune": [0], "report": [1, 2], "defenses": [found()]}
    (tmp_path / "redteam.json").write_text(json.dumps(told))
    page = write_redteam(tmp_path).read_text("utf-8")
    assert ("without attack</th>" in page) == (goal == "asr")
    assert "90.0\u202f% (85.0\u00a0to\u00a095.0)" in page
    assert "badnets (ratio 0.123)" in page


def test_the_scenarios_of_a_kept_search_lie_beside_its_page(tmp_path: Path) -> None:
    """Its commands name files that are there, other ones than those of another search that is kept beside it."""
    told = {"goal": "asr", "bound": 0.02, "budget": 3, "tune": [0], "report": [1, 2], "defenses": [found()]}
    for name in ("mild", "harsh"):
        told["defenses"][0]["adaptive"]["scenario"] = f"title = '{name}'\n"
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
        page = write_redteam(tmp_path / f"{name}.json")
        assert page == tmp_path / f"{name}.html"
        assert f"fedsim run {name}-adaptive-krum.toml" in Page(page.read_text("utf-8")).text
    assert (tmp_path / "mild-adaptive-krum.toml").read_text("utf-8") == "title = 'mild'\n"
