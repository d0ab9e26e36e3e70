"""Trackers: where else the measures of a run go, round by round, while it runs.

``fedsim run FILE --tracker tensorboard``, ``--tracker '{ name = "mlflow", uri = "http://127.0.0.1:5000" }'``, or
``fedsim.run(scenario, trackers=["tensorboard"])``. They change no result and are no part of the scenario. One that
cannot begin is an error before the first round; one that fails later is left out with a warning, and the run goes on.

``fedsim bench FILE --tracker …`` tracks each cell as a run of its own: TensorBoard's in a folder of its own, MLflow's
in one experiment that has the name of the benchmark's folder. What cannot be reached is an error before the first cell;
a tracker that fails in one cell is left out there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import registry
from fedsim.errors import FedsimError, one_line

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

LOG = "fedsim.tracker"
"""The log that says which tracker is left out, and why."""
log = logging.getLogger(LOG)

EXTRA = "pip install 'fedsim-flwr[trackers]'"


class Tracker:
    """Base of all trackers."""

    name: str

    def ready(self) -> None:
        """Called before ``begin``, and once before the cells of a benchmark: raises where it cannot be used at all."""

    def settle(self, bench: Path) -> None:
        """Called once where a benchmark is started: its cells may be played elsewhere, with other paths and variables.

        Args:
            bench: folder of the benchmark.
        """

    def begin(self, scenario: Scenario, folder: Path | None) -> None:
        """Called before the first round, also when a run is resumed."""

    def in_cell(self, cell: Path) -> None:
        """Called before ``begin`` in a benchmark: many runs share this tracker's options and must not mix."""

    def round(self, line: Mapping[str, Any]) -> None:
        """Called with each round's line, as in rounds.jsonl."""

    def end(self, finished: bool, facts: Mapping[str, str]) -> None:
        """Called once, after the last round, an interruption or an error; ``facts``: key and digest, where known."""


class Trackers:
    """Several trackers as one, none of which stops a run.

    Args:
        given: names, or tables with a name and options.

    Raises:
        FedsimError: no such tracker, or wrong options.
    """

    def __init__(self, given: Sequence[str | Mapping[str, Any]]) -> None:
        tables = [{"name": each} if isinstance(each, str) else dict(each) for each in given]
        self.names = [str(table.get("name", "")) for table in tables]
        self.parts: list[Tracker] = [registry.make("tracker", table.pop("name", ""), **table) for table in tables]

    def ready(self) -> None:
        """Whether all can be used.

        Raises:
            FedsimError: one cannot.
        """
        self._must("ready")

    def settled(self, bench: Path) -> list[dict[str, Any]]:
        """Tables that mean the same wherever the cells of a benchmark are played.

        Raises:
            FedsimError: one cannot be used.
        """
        self.ready()
        self._must("settle", bench)
        return [
            {"name": name, **{option.name: getattr(part, option.name) for option in registry.options(type(part))}}
            for name, part in zip(self.names, self.parts, strict=True)
        ]

    def begin(self, scenario: Scenario, folder: Path | None) -> None:
        """Begin all.

        Raises:
            FedsimError: one cannot.
        """
        self.ready()
        self._must("begin", scenario, folder)

    def round(self, line: Mapping[str, Any]) -> None:
        """Tell all of a round."""
        self._each("round", line)

    def end(self, finished: bool, facts: Mapping[str, str]) -> None:
        """End all."""
        self._each("end", finished, facts)

    def _must(self, what: str, *given: Any) -> None:
        for part in self.parts:
            try:
                getattr(part, what)(*given)
            except FedsimError:
                raise
            except Exception as error:
                now = "nothing was run; let it answer, or leave the tracker out"
                raise FedsimError(f"tracker '{part.name}': cannot begin: {one_line(error)}; {now}") from error

    def _each(self, what: str, *given: Any) -> None:
        for part in list(self.parts):
            try:
                getattr(part, what)(*given)
            except Exception as error:
                self.parts.remove(part)
                log.warning("tracker '%s' failed and is left out from here on: %s", part.name, one_line(error))


class CellTrackers(Trackers):
    """The trackers of a benchmark's cell: none of them makes it fail, not even in the beginning.

    Args:
        given: as for :class:`Trackers`.
        cell: folder of the cell; the benchmark's is the one above it.
    """

    def __init__(self, given: Sequence[str | Mapping[str, Any]], cell: Path) -> None:
        super().__init__(given)
        for part in self.parts:
            part.in_cell(cell)

    def begin(self, scenario: Scenario, folder: Path | None) -> None:
        """Begin those that can."""
        self._each("begin", scenario, folder)


def measures(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) of what a round measured: finite numbers, lists of clients by their length."""
    for key, value in line.items():
        if key == "round":
            continue
        if isinstance(value, Mapping):
            yield from measures(value, f"{prefix}{key}/")
        elif isinstance(value, list):
            yield f"{prefix}{key}", float(len(value))
        elif isinstance(value, (int, float)) and math.isfinite(value):
            yield f"{prefix}{key}", float(value)


__all__ = ["EXTRA", "LOG", "CellTrackers", "Tracker", "Trackers", "measures"]
