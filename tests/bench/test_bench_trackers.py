"""Trackers of a benchmark: each cell is a run of its own, and none of them fails by its tracker."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Literal

import pytest

from fedsim.bench.cluster import Task, play_remote
from fedsim.bench.runner import run_matrix
from fedsim.errors import FedsimError
from fedsim.report.tracker import CellTrackers, Trackers
from fedsim.scenario import cells, read

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


def bench(tmp_path: Path, out: str, jobs: int = 1, breaks: str | None = None, **options) -> list:
    (tmp_path / "cells.toml").write_text(matrix(rounds=2, seeds=1))
    (tmp_path / "listening.py").write_text(LISTENING)
    tracker = {"name": f"{tmp_path / 'listening.py'}:Listening", "breaks": breaks}
    trackers = [] if breaks is None else [tracker]
    return run_matrix(tmp_path / "cells.toml", tmp_path / out, jobs=jobs, trackers=trackers, **options)


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
    played = bench(tmp_path, "begin", breaks="begin")
    assert [cell.state for cell in played] == ["finished"] * 4
    assert [(cell.folder / "heard").read_text() for cell in played] == ["begin\n"] * 4
    with pytest.raises(FedsimError, match="cannot begin: the line is dead"):
        bench(tmp_path, "ready", breaks="ready")
    assert not (tmp_path / "ready").exists()


def test_cells_do_not_mix_wherever_they_are_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trackers, "ready", lambda self: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    monkeypatch.chdir(tmp_path)
    given = [{"name": "tensorboard", "folder": "events"}, "mlflow", {"name": "mlflow", "experiment": "mine"}]
    settled = Trackers(given).settled(Path("quick"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir("/")
    board, mlflow, named = CellTrackers(settled, Path("/elsewhere/krum-0-abc")).parts
    assert board.folder == str(tmp_path / "events" / "krum-0-abc")
    assert (mlflow.experiment, mlflow.uri) == ("quick", "http://localhost:1")
    assert named.experiment == "mine"


@pytest.mark.slow
def test_what_a_tracker_says_in_a_worker_reaches_the_caller_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("ray")
    for runner in ("local", "ray"):
        caplog.clear()
        played = bench(tmp_path, runner, jobs=2, breaks="round", runner=runner)
        assert [cell.state for cell in played] == ["finished"] * 4
        said = [record.getMessage() for record in caplog.records if record.name == "fedsim.tracker"]
        assert len(said) == 1, said
        assert said[0].endswith("failed and is left out from here on: the line is dead")


@pytest.mark.slow
def test_on_ray_a_relative_path_means_the_caller_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells.toml").write_text(matrix(rounds=2, seeds=1))
    (tmp_path / "listening.py").write_text(LISTENING)
    for cell in run_matrix("cells.toml", "out", runner="ray", trackers=["listening.py:Listening"]):
        assert cell.state == "finished", cell.error
        heard = (cell.folder / "heard").read_text().splitlines()
        assert heard[:4] == ["begin", "round 0", "round 1", "round 2"]


def test_what_is_written_on_a_machine_that_does_not_see_the_folder_comes_back(tmp_path: Path) -> None:
    (tmp_path / "cells.toml").write_text(matrix(rounds=2, seeds=1))
    (tmp_path / "listening.py").write_text(LISTENING)
    ((_, scenario), *_) = cells(read(tmp_path / "cells.toml"), "cells.toml")
    tracker = {"name": f"{tmp_path / 'listening.py'}:Listening", "breaks": "end"}
    done = play_remote(
        Task(scenario.table(), str(tmp_path / "out" / "cell"), "/nowhere/token", "/nowhere", b"", [tracker]), {}
    )
    assert done.state == "finished", done.error
    assert not (tmp_path / "out").exists()
    (said,) = done.said
    assert said.endswith("failed and is left out from here on: the line is dead")
    with tarfile.open(fileobj=io.BytesIO(done.content)) as archive:
        heard = archive.extractfile("cell/heard")
        assert heard is not None
        assert heard.read().decode().startswith("begin\nround 0\nround 1\nround 2\nend True")


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_tensorboard_has_a_folder_in_each_cell(tmp_path: Path, runner: Literal["local", "ray"]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "cells.toml").write_text(matrix(rounds=2, seeds=1))
    for cell in run_matrix(tmp_path / "cells.toml", tmp_path / "out", jobs=2, runner=runner, trackers=["tensorboard"]):
        events = EventAccumulator(str(cell.folder / "tensorboard"))
        events.Reload()
        lines = [json.loads(line) for line in (cell.folder / "rounds.jsonl").read_text().splitlines()]
        wanted = [(line["round"], pytest.approx(line["accuracy"])) for line in lines if line["accuracy"] is not None]
        assert [(event.step, event.value) for event in events.Scalars("accuracy")] == wanted
