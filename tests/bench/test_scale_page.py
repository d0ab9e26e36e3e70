"""docs/scale.md's tables are what the kept measurements say, and every size was measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
SCRIPT, PAGE = PROJECT / "benchmarks" / "scale.py", PROJECT / "docs" / "scale.md"
KEPT = PAGE.parent / "results" / "scale.json"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs benchmarks/ (not in an installed fedsim)")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("scale")


def test_the_tables_are_the_kept_measurements(script: Any) -> None:
    kept = json.loads(KEPT.read_text("utf-8"))
    assert script.table(kept["lines"], kept["machine"], kept["again"]) in PAGE.read_text("utf-8")


def test_every_size_was_measured_and_cells_a_minute_three_times(script: Any) -> None:
    lines = json.loads(KEPT.read_text("utf-8"))["lines"]
    found = {(line["what"], line.get("defense"), line["size"]) for line in lines}
    sizes = {"cohort": script.COHORTS, "width": script.WIDTHS}
    wanted = {("population", "fedavg", size) for size in script.POPULATIONS}
    wanted |= {(what, defense, size) for what, each in sizes.items() for defense in script.DEFENSES for size in each}
    series = {"jobs": script.JOBS, "nodes": script.NODES, "cells": script.MATRICES}
    assert found == wanted | {(what, None, size) for what, each in series.items() for size in each}
    for line in lines:
        if line["what"] in ("jobs", "nodes"):
            assert line["runs"] == script.REPEATS
            assert line["least"] <= line["steady"] <= line["greatest"]
