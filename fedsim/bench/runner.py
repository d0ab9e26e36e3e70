"""Runs the product of a scenario's ``[matrix]``: one folder a cell, finished cells skipped, one summary table.

A cell's folder is named by the key of its whole resolved scenario, so that no two cells share one and an edited file
makes a new one. Several processes play cells (``jobs``), several calls may work on one folder, and a killed one leaves
nothing behind that the next one does not pick up: who plays a cell is settled by a lock that ends with its owner.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from fedsim import runtime
from fedsim.bench.cell import Cell, complete, data_sets, finished, summary
from fedsim.bench.store import Store
from fedsim.bench.work import Tracked, pass_on, work
from fedsim.errors import Fault, FedsimError, ScenarioError
from fedsim.record import make_folder, write_json
from fedsim.scenario import cells, read
from fedsim.scenario_check import flat_matrix

CellProgress = Callable[[Cell, dict[str, Any] | None], None]
Begun = Callable[[list[Cell]], None]


def run_matrix(
    file: str | Path,
    out: str | Path,
    sets: Sequence[str] = (),
    progress: CellProgress | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    jobs: int = 1,
    runner: Literal["local", "ray"] = "local",
    address: str | None = None,
    begun: Begun | None = None,
    trackers: Tracked = (),
) -> list[Cell]:
    """Run every cell that is not finished yet.

    Args:
        file: scenario file with a ``[matrix]`` (or without: one cell), or the name of one that ships with fedsim.
        out: folder of the cells' folders, of ``results.sqlite`` and of ``summary.json``.
        sets: ``key=VALUE`` overrides.
        progress: called with the cell and each round's line, and with None when the cell's state changes.
        overrides: dotted key → value.
        jobs: processes that play cells, each with its share of the cores; 1: this one, with the cores that the
            scenario's engine says. 0: one a core, at most one a cell.
        runner: ``ray`` plays each cell as a task on a Ray cluster.
        address: of the cluster (``auto``: the one on this machine); None starts one here.
        begun: called once with all cells, those that are finished marked ``skipped``.
        trackers: where else the measures of each cell that is played go: names, or tables with a name and options.

    Returns:
        The cells; a failed one was tried twice, says why and does not stop the others.

    Raises:
        ScenarioError: the faults of all cells at once; nothing was run.
        RecordError: the folder cannot be written.
        FedsimError: a tracker cannot be used; nothing was run.
    """
    if trackers:
        from fedsim.report.tracker import Trackers

        trackers = Trackers(trackers).settled(Path(out))
    folder = Path(out)
    with _host() if runner == "local" and jobs != 1 else _nobody() as host:
        tables = read(file, overrides, sets)
        faults = _written_over(overrides or {}, sets, tables)
        if faults:
            raise ScenarioError(faults, str(file))
        product = cells(tables, str(file))
        found = [Cell.of(i + 1, len(product), values, each, folder) for i, (values, each) in enumerate(product)]
        make_folder(folder)
        done = {cell.key for cell in found if complete(cell)}
        store = Store(folder)
        try:
            store.enter(found, done)
            for cell in found:
                if cell.key in done:
                    cell.state, cell.row = "skipped", summary(cell)
            if begun is not None:
                begun(found)
            tell = _teller(found, folder, progress)
            for cell in found:
                if cell.key in done:
                    tell(cell, None)
            left = [cell for cell in found if cell.key not in done]
            session = uuid.uuid4().hex
            if left and runner == "ray":
                from fedsim.bench.cluster import work_on_ray

                work_on_ray(left, store, session, tell, address, trackers)
            elif left and host is not None:
                count = min(jobs or runtime.cores(), len(left))
                host.play(left, folder, session, count, tell, trackers)
            elif left:
                work(left, store, session, tell, trackers=trackers)
            _settle(left, store)
            write_json(folder / "summary.json", [summary(each) for each in found])
        finally:
            store.close()
    return found


def _written_over(overrides: Mapping[str, Any], sets: Sequence[str], tables: Mapping[str, Any]) -> list[Fault]:
    """Overrides of what the matrix sets in each cell: they would do nothing."""
    matrix = tables.get("matrix")
    varied = dict(flat_matrix(matrix)) if isinstance(matrix, Mapping) else {}
    given = [*overrides.items(), *((text.partition("=")[0].strip(), text.partition("=")[2]) for text in sets)]
    return [
        Fault(key, value, f"a key that [matrix] does not write over; the values of all cells: matrix.{name}=[…]")
        for key, value in given
        for name in varied
        if key == name or key.startswith((f"{name}.", f"{name}["))
    ]


def _teller(found: list[Cell], folder: Path, progress: CellProgress | None) -> CellProgress:
    """Tells the caller of each event; what has ended goes into the summary."""

    def tell(cell: Cell, line: dict[str, Any] | None) -> None:
        if line is None and cell.state not in ("waiting", "running", "skipped"):
            cell.row = summary(cell)
            write_json(folder / "summary.json", [each.row or summary(each) for each in found])
        if progress is not None:
            progress(cell, line)

    return tell


def _settle(left: list[Cell], store: Store) -> None:
    """Cells that another call has played, or whose processes are gone."""
    states = {row["key"]: row for row in store.rows("SELECT key, state, error FROM cells")}
    for cell in left:
        state = states[cell.key]
        if state["state"] == "finished" and cell.state not in ("finished", "skipped"):
            cell.state, cell.error = "skipped", ""
        elif state["state"] == "failed":
            cell.state, cell.error = "failed", state["error"]
        elif cell.state == "running":
            cell.state = "interrupted"
        cell.row = summary(cell)


class _Host:
    """The process that forks those that play; started early, so that it imports while the plan is made."""

    def __init__(self) -> None:
        self.events, write = os.pipe()
        self.heard, self.said = b"", set[str]()
        # A group of its own: Ctrl-C reaches the caller alone, who passes it on once.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedsim.bench.host", str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(write,),
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        os.close(write)

    def play(
        self, left: list[Cell], folder: Path, session: str, jobs: int, tell: CellProgress, trackers: Tracked
    ) -> None:
        """Have the cells played; returns when all are settled or the processes were stopped."""
        plan = {
            "out": str(folder),
            "session": session,
            "jobs": jobs,
            "workers": max(1, runtime.cores() // jobs),
            "datasets": data_sets(left),
            "total": left[0].total,
            "trackers": [each if isinstance(each, str) else dict(each) for each in trackers],
            "verbose": runtime.verbose,
            "cells": [
                {
                    "number": cell.number,
                    "values": cell.values,
                    "scenario": cell.scenario.table(),
                    "folder": str(cell.folder),
                    "key": cell.key,
                }
                for cell in left
            ],
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(plan, default=str).encode())
        self.process.stdin.close()
        try:
            self._listen(left, tell)
        except KeyboardInterrupt:
            self.process.send_signal(signal.SIGTERM)
            self._listen(left, tell)
        if self.process.wait() != 0:
            raise FedsimError(f"the process that plays the cells ended with status {self.process.returncode}")

    def _listen(self, left: list[Cell], tell: CellProgress) -> None:
        """Pass on events until all processes are gone."""
        numbered = {cell.number: cell for cell in left}
        while content := os.read(self.events, 65536):
            self.heard += content
            while b"\n" in self.heard:
                first, _, self.heard = self.heard.partition(b"\n")
                event = json.loads(first)
                if "said" in event:
                    pass_on(event["said"], self.said)
                    continue
                if "broken" in event:
                    raise FedsimError(event["broken"])
                cell = numbered[event["cell"]]
                cell.state, cell.error = event["state"], event["error"]
                tell(cell, event.get("line"))

    def close(self) -> None:
        """End it and all its children."""
        os.close(self.events)
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        if self.process.poll() is None:
            try:
                self.process.wait(0.5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


@contextmanager
def _host() -> Iterator[_Host]:
    host = _Host()
    try:
        yield host
    finally:
        host.close()


@contextmanager
def _nobody() -> Iterator[None]:
    yield None


__all__ = ["Begun", "Cell", "CellProgress", "finished", "run_matrix", "summary"]
