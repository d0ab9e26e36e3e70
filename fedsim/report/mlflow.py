"""Measures of each round, the scenario and the report for MLflow.

MLflow, https://mlflow.org.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.errors import FedsimError
from fedsim.registry import register
from fedsim.report.tracker import EXTRA, Tracker, measures

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

REMEMBERED = "mlflow.json"
"""Holds the id of MLflow's run in the run's folder, so that a resumed run goes on with it."""
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""
MOST_PARAMETERS, LONGEST_VALUE = 100, 500


@register("tracker", "mlflow")
class MLflow(Tracker):
    """Logs to an MLflow server: parameters, measures by round, the report at the end.

    Args:
        uri: of the tracking server, by default ``$MLFLOW_TRACKING_URI``.
        experiment: its name, made where there is none; by default ``fedsim``, in a benchmark the name of its folder.
    """

    uri: str | None = None
    experiment: str | None = None

    def ready(self) -> None:
        self._connected().search_experiments(max_results=1)

    def settle(self, bench: Path) -> None:
        self.uri = self._server()
        self.experiment = self.experiment or bench.absolute().name

    def begin(self, scenario: Scenario, folder: Path | None) -> None:
        self._client, self._folder = self._connected(), folder
        self._run = self._remembered() or self._new(scenario)

    def round(self, line: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), int(line["round"])
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in measures(line)])

    def end(self, finished: bool, facts: Mapping[str, str]) -> None:
        for name, value in facts.items():
            self._client.set_tag(self._run, f"fedsim.{name}", value)
        if finished and self._folder is not None and (self._folder / "report.html").is_file():
            self._client.log_artifact(self._run, str(self._folder / "report.html"))
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")

    def _connected(self) -> Any:
        """A client of the server; where it listens is asked by its first call."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise FedsimError(f"tracker 'mlflow': is not installed: {EXTRA}") from error
        return MlflowClient(self._server())

    def _server(self) -> str:
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise FedsimError("tracker 'mlflow': given no server; accepted: uri = 'http://HOST:PORT'")
        return uri

    def _new(self, scenario: Scenario) -> str:
        from mlflow.entities import Param

        name = None if self._folder is None else self._folder.name
        tags = {NOTE: scenario.title} if scenario.title else {}
        run = str(self._client.create_run(self._experiment(), run_name=name, tags=tags).info.run_id)
        flat = list(_flat(scenario.table()))[:MOST_PARAMETERS]
        self._client.log_batch(run, params=[Param(key, value[:LONGEST_VALUE]) for key, value in flat])
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / REMEMBERED).write_text(json.dumps({"uri": self._server(), "run": run}), "utf-8")
        return run

    def _experiment(self) -> str:
        """Its id. Cells begin at one time: what another has just made is found, not made again."""
        from mlflow.exceptions import MlflowException

        name = self.experiment or "fedsim"
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _remembered(self) -> str | None:
        """The run that a resumed run began, if it began it on this server."""
        file = None if self._folder is None else self._folder / REMEMBERED
        if file is None or not file.is_file() or not (file.parent / "state.json").is_file():
            return None
        said = json.loads(file.read_text("utf-8"))
        if said.get("uri") != self._server():
            return None
        self._client.update_run(said["run"], status="RUNNING")
        return str(said["run"])


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of nested tables and lists, as MLflow's parameters are named."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _flat(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        for position, each in enumerate(value):
            yield from _flat(each, f"{key}.{position}")
    else:
        yield key, str(value)
