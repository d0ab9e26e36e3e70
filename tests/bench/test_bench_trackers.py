"""Trackers of a benchmark: each cell is a run of its own, and none of them fails by its tracker."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fedsim.bench.runner import run_matrix
from fedsim.errors import FedsimError
from fedsim.report.tracker import CellTrackers

sys.path.insert(0, str(Path(__file__).parent))
from matrices import matrix

LISTENING = '''
"""Writes what it hears into the cell's folder."""

from fedsim.report.tracker import Tracker


class Listening(Tracker):
    """Listens.

    Args:
        breaks: where it fails.
    """

    breaks: str = ""

    def _hear(self, *said):
        with (self.folder / "heard").open("a") as file:
            print(*said, file=file)
        if said[0] == self.breaks:
            raise OSError("the line is dead")

    def ready(self):
        if self.breaks == "ready":
            raise OSError("the line is dead")

    def begin(self, scenario, folder):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._hear("begin")

    def round(self, line):
        self._hear("round", line["round"])

    def end(self, finished, facts):
        self._hear("end", finished, facts["digest"])
'''


def bench(tmp_path: Path, out: str, jobs: int = 1, breaks: str | None = None) -> list:
    (tmp_path / "cells.toml").write_text(matrix(rounds=2, seeds=1))
    (tmp_path / "listening.py").write_text(LISTENING)
    tracker = {"name": f"{tmp_path / 'listening.py'}:Listening", "breaks": breaks}
    trackers = [] if breaks is None else [tracker]
    return run_matrix(tmp_path / "cells.toml", tmp_path / out, jobs=jobs, trackers=trackers)


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_cell_is_told_of_and_comes_out_as_without(tmp_path: Path, jobs: int) -> None:
    plain = {cell.key: cell.row["digest"] for cell in bench(tmp_path, "plain")}
    tracked = bench(tmp_path, "tracked", jobs, breaks="")
    assert {cell.key: cell.row["digest"] for cell in tracked} == plain
    for cell in tracked:
        rounds = ["round 0", "round 1", "round 2"]
        assert (cell.folder / "heard").read_text().splitlines() == ["begin", *rounds, f"end True {plain[cell.key]}"]
    assert [cell.state for cell in bench(tmp_path, "tracked", jobs, breaks="")] == ["skipped"] * 4
    assert (tracked[0].folder / "heard").read_text().count("begin") == 1, "a finished cell is not tracked again"


def test_a_tracker_that_fails_in_a_cell_is_left_out_and_one_that_cannot_be_used_stops_all(tmp_path: Path) -> None:
    cells = bench(tmp_path, "begin", breaks="begin")
    assert [cell.state for cell in cells] == ["finished"] * 4
    assert [(cell.folder / "heard").read_text() for cell in cells] == ["begin\n"] * 4
    with pytest.raises(FedsimError, match="cannot begin: the line is dead"):
        bench(tmp_path, "ready", breaks="ready")
    assert not (tmp_path / "ready").exists()


def test_cells_do_not_mix(tmp_path: Path) -> None:
    given = [{"name": "tensorboard", "folder": "events"}, {"name": "mlflow", "uri": "http://localhost"}]
    board, mlflow = CellTrackers(given, tmp_path / "quick" / "krum-0-abc").parts
    assert board.folder == str(Path("events") / "krum-0-abc")
    assert mlflow.experiment == "quick"
    named = CellTrackers([{"name": "mlflow", "experiment": "mine"}], tmp_path / "quick" / "krum-0-abc").parts
    assert named[0].experiment == "mine"


def test_tensorboard_has_a_folder_in_each_cell(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "cells.toml").write_text(matrix(rounds=2, seeds=1))
    for cell in run_matrix(tmp_path / "cells.toml", tmp_path / "out", jobs=2, trackers=["tensorboard"]):
        events = EventAccumulator(str(cell.folder / "tensorboard"))
        events.Reload()
        lines = [json.loads(line) for line in (cell.folder / "rounds.jsonl").read_text().splitlines()]
        wanted = [(line["round"], pytest.approx(line["accuracy"])) for line in lines if line["accuracy"] is not None]
        assert [(event.step, event.value) for event in events.Scalars("accuracy")] == wanted
