"""Plays cells until none is left: claims one, runs it, records it, claims the next."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim import registry
from fedsim.bench.cell import Cell, complete, summary
from fedsim.bench.locks import held
from fedsim.bench.store import TRIES, Store
from fedsim.errors import FedsimError, one_line
from fedsim.launch import add_floor, run, twin, twin_key
from fedsim.report.tracker import LOG, CellTrackers

Tell = Callable[[Cell, dict[str, Any] | None], None]
Tracked = Sequence[str | Mapping[str, Any]]
"""Trackers: names, or tables with a name and options."""
PAUSE = 0.5
"""Seconds between looks at cells that others play."""


def work(
    cells: Sequence[Cell],
    store: Store,
    session: str,
    tell: Tell,
    workers: int = 0,
    go_on: Callable[[], bool] = lambda: True,
    trackers: Tracked = (),
) -> bool:
    """Play what nobody plays, until every cell is settled; what failed once comes last, once more.

    Args:
        cells: all cells.
        store: their store.
        session: name of this call; failures are counted in it.
        tell: called with the cell and each round's line, and with None when the cell's state changes.
        workers: threads of a cell; 0: as its scenario says.
        go_on: asked while waiting for others; False ends.
        trackers: where else the measures of each cell go.

    Returns:
        False where it was interrupted.
    """
    while True:
        states = store.states(session)
        left = [cell for cell in cells if states[cell.key][0] != "finished" and states[cell.key][1] < TRIES]
        if not left:
            return True
        for cell in sorted(left, key=lambda cell: states[cell.key][1]):
            with held(store.lock(cell)) as ours:
                if not ours or store.settled(cell, session):
                    continue
                play(cell, store, session, tell, workers, trackers)
            if cell.state == "interrupted":
                return False
            break
        else:
            if not go_on():
                return False
            time.sleep(PAUSE)


def play(cell: Cell, store: Store, session: str, tell: Tell, workers: int = 0, trackers: Tracked = ()) -> None:
    """Play one cell, whose lock is held, from where it stands; its state says how it ended."""
    store.bury(cell)
    if store.failures(cell, session) >= TRIES:
        cell.state, cell.error = "failed", "its process died each time that it was tried (out of memory?)"
        store.give_up(cell)
    elif complete(cell):
        cell.state = "skipped"
        store.index(cell)
    else:
        number = store.begin(cell, session)
        cell.state, cell.error = "running", ""
        tell(cell, None)
        run_cell(cell, store.out / "floors", lambda line: tell(cell, line), workers, trackers)
        store.end(cell, number)
        wait_again(cell, store, session)
    cell.row = summary(cell)
    tell(cell, None)


def wait_again(cell: Cell, store: Store, session: str) -> None:
    """A cell that has failed and has a try left waits for it."""
    if cell.state == "failed" and store.failures(cell, session) < TRIES:
        cell.state, cell.error = "waiting", f"failed once, is tried again in the end: {cell.error}"


def run_cell(
    cell: Cell,
    floors: Path,
    progress: Callable[[dict[str, Any]], None],
    workers: int = 0,
    trackers: Tracked = (),
) -> None:
    """Run a cell and the floor of its trigger; an error is told in the cell."""
    try:
        scenario = cell.scenario
        if workers and scenario.engine.name == "local":
            scenario = scenario.changed(**{"engine.workers": workers})
        told = CellTrackers(trackers, cell.folder) if trackers else ()
        result = run(scenario, cell.folder, resume=True, progress=progress, trackers=told)
        cell.state = "finished" if result.finished else "interrupted"
        if result.finished:
            other = twin(scenario)
            if other is not None:
                with held(floors / f"{twin_key(other)}.lock", wait=True):
                    add_floor(result, floors)
    except KeyboardInterrupt:
        cell.state = "interrupted"
    except FedsimError as error:
        cell.state, cell.error = "failed", str(error)
    except (Exception, SystemExit) as error:
        place = registry.where(error)
        cell.state, cell.error = "failed", f"{type(error).__name__}{place}: {one_line(error)}"


class _Overheard(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


@contextmanager
def overheard(say: Callable[[str], None]) -> Iterator[None]:
    """Until the block ends, what the trackers of this process warn of is told, to be passed on to the caller's."""
    handler, log = _Overheard(say), logging.getLogger(LOG)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def pass_on(said: str, known: set[str]) -> None:
    """Warn of what another process has warned of, the first time that one says so."""
    if said not in known:
        known.add(said)
        logging.getLogger(LOG).warning("%s", said)


__all__ = ["Tell", "Tracked", "overheard", "pass_on", "play", "run_cell", "wait_again", "work"]
