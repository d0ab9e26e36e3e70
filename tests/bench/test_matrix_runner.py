"""A matrix of scenarios: what is finished is not run again, what is missing is made up for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsim.bench.runner import run_matrix

FILE = """
rounds = 2
[data]
clients = 4
[client]
per_round = 4
[adversary]
count = 1
attacks = [{ name = "badnets", target = 0 }]
[matrix]
seed = [0, 1]
"""


def test_a_report_that_fails_costs_no_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "matrix.toml"
    file.write_text(FILE)

    def broken(*given: Any) -> None:
        raise RuntimeError("no picture today")

    with monkeypatch.context() as patched:
        patched.setattr("fedsim.report.page.write_report", broken)
        cells = run_matrix(file, tmp_path / "out")
    assert [cell.state for cell in cells] == ["failed", "failed"]
    assert cells[0].error is not None
    assert "no picture today" in cells[0].error
    again = run_matrix(file, tmp_path / "out")
    assert [cell.state for cell in again] == ["finished", "finished"]
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert all(0 <= row["floor"] <= 1 for row in rows)
    assert all((cell.folder / "report.html").exists() for cell in again)
    assert [cell.state for cell in run_matrix(file, tmp_path / "out")] == ["skipped", "skipped"]
