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
MOST_PARAMETERS, LONGEST_VALUE = 100, 500


@register("tracker", "mlflow")
class MLflow(Tracker):
    """Logs to an MLflow server: parameters, measures by round, the report at the end.

    Args:
        uri: of the tracking server, by default ``$MLFLOW_TRACKING_URI``.
        experiment: name of the experiment, made where there is none.
    """

    uri: str | None = None
    experiment: str = "fedsim"

    def begin(self, scenario: Scenario, folder: Path | None) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise FedsimError(f"tracker 'mlflow': is not installed: {EXTRA}") from error
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise FedsimError("tracker 'mlflow': given no server; accepted: uri = 'http://HOST:PORT'")
        self._client: Any = MlflowClient(uri)
        self._folder = folder
        self._run = self._remembered(uri) or self._new(scenario, uri)

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

    def _new(self, scenario: Scenario, uri: str) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(self.experiment)
        experiment = self._client.create_experiment(self.experiment) if found is None else found.experiment_id
        run = str(self._client.create_run(experiment, run_name=scenario.title or None).info.run_id)
        flat = list(_flat(scenario.table()))[:MOST_PARAMETERS]
        self._client.log_batch(run, params=[Param(key, value[:LONGEST_VALUE]) for key, value in flat])
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / REMEMBERED).write_text(json.dumps({"uri": uri, "run": run}), "utf-8")
        return run

    def _remembered(self, uri: str) -> str | None:
        """The run that a resumed run began, if it began it on this server."""
        file = None if self._folder is None else self._folder / REMEMBERED
        if file is None or not file.is_file() or not (file.parent / "state.json").is_file():
            return None
        said = json.loads(file.read_text("utf-8"))
        return str(said["run"]) if said.get("uri") == uri else None


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
