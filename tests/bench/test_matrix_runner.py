"""A matrix of scenarios: what is finished is not run again, what is missing is made up for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsim.bench.runner import run_matrix
from fedsim.errors import ScenarioError

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


def test_what_the_matrix_writes_over_is_refused_and_its_own_values_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "matrix.toml"
    file.write_text(FILE + '"data.dataset" = ["digits", { name = "synthetic_classification" }]\n')
    for sets in (["seed=4"], ["data.dataset.name=digits"], ["data.dataset=digits"]):
        with pytest.raises(ScenarioError, match=r"\[matrix\] does not write over; .* matrix\."):
            run_matrix(file, tmp_path / "out", sets)
    with pytest.raises(ScenarioError, match=r"seed: given 4; accepted: .* matrix\.seed="):
        run_matrix(file, tmp_path / "out", overrides={"seed": 4})
    assert not (tmp_path / "out").exists()
    cells = run_matrix(file, tmp_path / "out", ["rounds=1", "matrix.seed=[4]", 'matrix.data.dataset=["digits"]'])
    assert [(cell.scenario.seed, cell.scenario.data.dataset.name) for cell in cells] == [(4, "digits")]
