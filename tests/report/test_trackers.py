"""Trackers: what they are told, and that none stops a run; TensorBoard and MLflow where they are installed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedsim
from fedsim import registry
from fedsim.cli import app
from fedsim.errors import FedsimError, ScenarioError
from fedsim.report.tracker import Tracker, measures

SMALL = {
    "title": "tracked",
    "rounds": 2,
    "data": {"clients": 6},
    "model": {"name": "logistic"},
    "client": {"per_round": 4},
    "engine": {"name": "local", "workers": 1},
}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What a tracker called ``listening`` hears; with ``breaks`` it fails there."""
    for kind in registry.HOMES:
        registry.names(kind)
    monkeypatch.setattr(registry, "_parts", {kind: dict(parts) for kind, parts in registry._parts.items()})
    heard: list[tuple] = []

    @registry.register("tracker", "listening")
    class Listening(Tracker):
        """Listens.

        Args:
            breaks: where it fails.
        """

        breaks: str = ""

        def _hear(self, what: str, *given: object) -> None:
            heard.append((what, *given))
            if self.breaks == what:
                raise OSError("the line\nis dead")

        def begin(self, scenario, folder) -> None:
            self._hear("begin", scenario.title, folder)

        def round(self, line) -> None:
            self._hear("round", line["round"])

        def end(self, finished, facts) -> None:
            self._hear("end", finished, sorted(facts))

    return heard


def test_a_tracker_hears_the_run_and_changes_nothing(told: list[tuple], tmp_path: Path) -> None:
    tracked = fedsim.run(SMALL, tmp_path / "run", trackers=["listening"])
    rounds = [("round", 0), ("round", 1), ("round", 2)]
    assert told == [("begin", "tracked", tmp_path / "run"), *rounds, ("end", True, ["digest", "key"])]
    assert tracked.digest == fedsim.run(SMALL).digest


def test_one_that_cannot_begin_is_an_error_and_one_that_fails_later_a_warning(told, caplog) -> None:
    with pytest.raises(FedsimError, match=r"'listening': cannot begin: the line is dead; .* leave the tracker out"):
        fedsim.run(SMALL, trackers=[{"name": "listening", "breaks": "begin"}])
    del told[:]
    result = fedsim.run(SMALL, trackers=[{"name": "listening", "breaks": "round"}])
    assert result.finished
    assert told == [("begin", "tracked", None), ("round", 0)]
    assert "tracker 'listening' failed and is left out from here on: the line is dead" in caplog.text


def test_wrong_trackers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FedsimError, match=r"mlfow.*did you mean 'mlflow'"):
        fedsim.run(SMALL, trackers=["mlfow"])
    with pytest.raises(ScenarioError, match=r"tracker 'mlflow': url: .*did you mean 'uri'"):
        fedsim.run(SMALL, trackers=[{"name": "mlflow", "url": "x"}])


def test_missing_packages_are_one_line_that_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(FedsimError, match=rf"tracker '{name}': is not installed: pip install 'fedsim-flwr\[track"):
            fedsim.run(SMALL, trackers=[name])


def test_measures_are_the_finite_numbers_of_a_line() -> None:
    line = {"round": 3, "accuracy": 0.5, "asr": None, "loss": float("nan"), "cohort": [1, 2], "seconds": {"train": 2.0}}
    assert dict(measures(line)) == {"accuracy": 0.5, "cohort": 2.0, "seconds/train": 2.0}


def test_tensorboard_writes_each_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(fedsim.Scenario(**SMALL).toml())
    done = CliRunner().invoke(app, ["run", "small.toml", "--out", "run", "--quiet", "--tracker", "tensorboard"])
    assert done.exit_code == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    written = [(event.step, event.value) for event in events.Scalars("accuracy")]
    assert written == [(line["round"], pytest.approx(line["accuracy"])) for line in lines]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """MLflow's own server on the loopback interface."""
    pytest.importorskip("mlflow.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path / 'store.db'}",
        "--artifacts-destination",
        str(tmp_path / "a"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (tmp_path / "server.log").open("w") as output:
        light = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(
            [*command, *store], stdout=output, stderr=output, cwd=tmp_path, start_new_session=True, env=light
        )
        try:
            for _ in range(6000):
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            else:
                pytest.fail(f"nobody listens on {port}: {(tmp_path / 'server.log').read_text()}")
            yield f"http://127.0.0.1:{port}"
        finally:
            # Its workers are children, which outlive it where it is killed alone.
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.mark.slow
def test_mlflow_gets_parameters_measures_and_the_report(server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracker = {"name": "mlflow", "uri": server, "experiment": "of a test"}
    result = fedsim.run(SMALL, tmp_path / "run", trackers=[tracker])
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("of a test")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["client.per_round"] == "4"
    assert run.data.tags["fedsim.digest"] == result.digest
    history = client.get_metric_history(run.info.run_id, "accuracy")
    assert [(each.step, each.value) for each in history] == [(line["round"], line["accuracy"]) for line in result.lines]
    assert "report.html" in [each.path for each in client.list_artifacts(run.info.run_id)]
    fedsim.run(SMALL, tmp_path / "run", resume=True, trackers=[tracker])
    assert len(client.search_runs([experiment.experiment_id])) == 1, "a resumed run goes on with its own"


@pytest.mark.slow
def test_an_mlflow_server_that_nobody_runs_is_one_line_and_nothing_is_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(FedsimError, match=r"tracker 'mlflow': cannot begin: .*Connection refused.* nothing was run"):
        fedsim.run(SMALL, tmp_path / "run", trackers=[{"name": "mlflow", "uri": f"http://127.0.0.1:{port}"}])
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [("--jobs", "2"), ("--runner", "ray")])
def test_mlflow_gets_the_cells_of_a_benchmark_in_one_experiment(
    server: str, tmp_path: Path, how: tuple[str, str]
) -> None:
    from mlflow import MlflowClient

    text = fedsim.Scenario(**SMALL).toml() + '\n[matrix]\nseed = [0, 1]\n"server.defenses" = [["fedavg"], ["median"]]\n'
    (tmp_path / "cells.toml").write_text(text)
    tracker = f'{{ name = "mlflow", uri = "{server}" }}'
    command = ["bench", str(tmp_path / "cells.toml"), "--out", str(tmp_path / "quick"), *how, "--quiet"]
    done = CliRunner().invoke(app, [*command, "--tracker", tracker])
    assert done.exit_code == 0, done.stderr
    client = MlflowClient(server)
    runs = client.search_runs([client.get_experiment_by_name("quick").experiment_id])
    folders = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "quick").glob("*/summary.json")}
    assert {run.info.run_name for run in runs} == set(folders)
    assert len(runs) == 4
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.tags["fedsim.digest"] == folders[run.info.run_name]["digest"]
        assert [each.step for each in client.get_metric_history(run.info.run_id, "accuracy")] == [0, 1, 2]
