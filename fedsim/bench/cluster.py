"""Cells as tasks on a Ray cluster.

The caller holds the cells' locks and hands out as many cells as the cluster has processors. Where a task sees the
caller's folder (a shared disk, the same machine), it works in it; elsewhere it works in a folder of its own node and
sends back what it wrote, and a cell that was begun travels there with what it has. Data sets go to Ray's object store
once: the tasks of a machine map the same memory.

Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", OSDI 2018.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import tarfile
import tempfile
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import runtime
from fedsim.bench.cell import Cell, complete, summary
from fedsim.bench.locks import take
from fedsim.bench.store import TRIES, Store
from fedsim.bench.work import Tell, Tracked, overheard, pass_on, run_cell, wait_again
from fedsim.data import reading
from fedsim.data.examples import DataInfo, Dataset, Examples
from fedsim.errors import FedsimError, one_line
from fedsim.launch import twin, twin_key
from fedsim.simulation import interruptible

LOOK = 1.0
"""Seconds between looks at cells that others play."""
PATIENCE = 10.0
"""Seconds in which a task may end by itself where the caller breaks off."""


@dataclass(frozen=True)
class Task:
    """What travels to a node.

    Args:
        scenario: the cell's table.
        folder: of the cell, on the caller's machine.
        token: a file there that tells whether a node sees it.
        here: the caller's working folder, in which a node works that sees the cell's, so that paths mean the same.
        content: what the caller has of the cell, packed.
        trackers: where else its measures go.
    """

    scenario: dict[str, Any]
    folder: str
    token: str
    here: str
    content: bytes
    trackers: Tracked = ()


@dataclass(frozen=True)
class Done:
    """What comes back.

    Args:
        state: of the cell.
        error: why it failed.
        content: what was written where the node does not see the caller's folder.
        said: what trackers warned of.
    """

    state: str
    error: str
    content: bytes
    said: tuple[str, ...]


Arrays = dict[Hashable, tuple[tuple[Any, ...], DataInfo, dict[str, Any], str, dict[str, str]]]


def work_on_ray(
    cells: Sequence[Cell],
    store: Store,
    session: str,
    tell: Tell,
    address: str | None = None,
    trackers: Tracked = (),
) -> None:
    """Play the cells on a cluster; what failed once comes last, once more.

    After a Ctrl-C no cell is begun, and those that are played end after their round, wherever that is.

    Raises:
        FedsimError: no cluster at the address.
    """
    from fedsim.grids import ray as grid

    with grid.cluster(address, runtime.cores()) as ray, interruptible() as interrupted:
        shared = ray.put(_arrays())
        remote = ray.remote(num_cpus=1, max_retries=TRIES)(play_remote)
        token = store.out / f".seen-{session}"
        token.write_bytes(b"")
        flying: dict[Any, tuple[Cell, int, int]] = {}
        known: set[str] = set()
        stopping = False
        try:
            while True:
                if interrupted.is_set() and not stopping:
                    stopping = True
                    for each in flying:
                        ray.cancel(each)
                slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
                most = 0 if stopping else slots - len(flying)
                waiting = _claim(cells, store, session, most, {c.key for c, *_ in flying.values()})
                for cell, lock in waiting[0]:
                    number = store.begin(cell, session)
                    cell.state, cell.error = "running", ""
                    tell(cell, None)
                    task = Task(
                        cell.scenario.table(),
                        str(cell.folder.absolute()),
                        str(token.absolute()),
                        os.getcwd(),
                        _pack(_parts(cell, store.out)),
                        trackers,
                    )
                    flying[remote.remote(task, shared)] = (cell, lock, number)
                if not flying and (stopping or not waiting[1]):
                    return
                ended, _ = ray.wait(list(flying), num_returns=1, timeout=LOOK) if flying else ([], [])
                for each in ended:
                    cell, lock, number = flying[each]
                    try:
                        done: Done = ray.get(each)
                        cell.state, cell.error = done.state, done.error
                        _unpack(done.content, store.out)
                        for said in done.said:
                            pass_on(said, known)
                    except ray.exceptions.TaskCancelledError:
                        cell.state = "interrupted"
                    except ray.exceptions.RayError as error:
                        cause = getattr(error, "cause", None)
                        cell.state, cell.error = "failed", one_line(error if cause is None else cause)
                    store.end(cell, number)
                    del flying[each]
                    os.close(lock)
                    wait_again(cell, store, session)
                    cell.row = summary(cell)
                    tell(cell, None)
                if not ended and not flying:
                    time.sleep(LOOK)
        finally:
            _end(ray, list(flying))
            for cell, lock, number in flying.values():
                cell.state = "interrupted"
                store.end(cell, number)
                os.close(lock)
            token.unlink(missing_ok=True)


def _end(ray: Any, tasks: list[Any]) -> None:
    """End tasks wherever they run: after their round, at once where that takes long.

    A task that outlived its lock would write to a cell that another bench has begun.
    """
    for force in (False, True):
        if tasks:
            with contextlib.suppress(ray.exceptions.RayError):  # the cluster itself may be what is gone
                for each in tasks:
                    ray.cancel(each, force=force)
                _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE)


def _claim(
    cells: Sequence[Cell], store: Store, session: str, most: int, flying: set[str]
) -> tuple[list[tuple[Cell, int]], bool]:
    """Cells that nobody plays, with their locks, and whether any is unsettled."""
    states = store.states(session)
    left = [cell for cell in cells if states[cell.key][0] != "finished" and states[cell.key][1] < TRIES]
    found: list[tuple[Cell, int]] = []
    for cell in sorted(left, key=lambda cell: states[cell.key][1]):
        if len(found) >= most:
            break
        if cell.key in flying:
            continue
        lock = take(store.lock(cell))
        if lock is None:
            continue
        store.bury(cell)
        if complete(cell):
            store.index(cell)
        if store.settled(cell, session):
            os.close(lock)
            continue
        found.append((cell, lock))
    return found, bool(left)


def play_remote(task: Task, shared: Arrays) -> Done:
    """Runs on a node: plays a cell, in the caller's folder where it is seen."""
    from fedsim.scenario import Scenario

    runtime.set_up()
    known = reading.keep()
    if not shared.keys() <= known.keys():
        reading.keep(_data_sets(shared))
    folder, seen = Path(task.folder), Path(task.token).exists()
    place = folder.parent if seen else Path(tempfile.mkdtemp(prefix="fedsim-cell-"))
    said: list[str] = []
    try:
        if not seen:
            _unpack(task.content, place)
        with contextlib.chdir(task.here if seen else os.curdir), overheard(said.append):
            try:
                scenario = Scenario(**task.scenario)
            except FedsimError as error:
                return Done("failed", f"on {socket.gethostname()}: {error}", b"", ())
            cell = Cell(1, 1, {}, scenario, place / folder.name)
            run_cell(cell, place / "floors", lambda line: None, 1, task.trackers)
        content = b"" if seen else _pack(_parts(cell, place))
        return Done(cell.state, cell.error, content, tuple(said))
    finally:
        if not seen:
            shutil.rmtree(place, ignore_errors=True)


def _parts(cell: Cell, out: Path) -> list[Path]:
    """The folders that belong to a cell: its own, and its floor's."""
    other = twin(cell.scenario)
    floor = [] if other is None else [out / "floors" / twin_key(other)]
    return [each for each in (cell.folder, *floor) if each.is_dir()]


def _pack(folders: Sequence[Path]) -> bytes:
    """Folders of one place as bytes; names are relative to it."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as archive:
        for folder in folders:
            archive.add(folder, f"floors/{folder.name}" if folder.parent.name == "floors" else folder.name)
    return content.getvalue()


def _unpack(content: bytes, place: Path) -> None:
    if content:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(place, filter="data")


def _arrays() -> Arrays:
    """The data sets in memory as arrays, which Ray hands out without a copy."""

    def of(data: Dataset) -> tuple[Any, ...]:
        return tuple(each.numpy() for part in (data.train, data.test) for each in (part.inputs, part.targets))

    return {
        key: (of(data), data.info, data.columns, data.fingerprint, data.facts) for key, data in reading.keep().items()
    }


def _data_sets(shared: Arrays) -> dict[Hashable, Dataset]:
    import warnings

    import torch

    def tensor(array: Any) -> Any:
        with warnings.catch_warnings():
            # Shared memory is read-only; nobody writes to a data set.
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(np.asarray(array))

    found: dict[Hashable, Dataset] = {}
    for key, (arrays, info, columns, fingerprint, facts) in shared.items():
        inputs, targets, test_inputs, test_targets = map(tensor, arrays)
        train, test = Examples(inputs, targets), Examples(test_inputs, test_targets)
        found[key] = Dataset(train, test, info, columns, fingerprint, facts)
    return found


__all__ = ["play_remote", "work_on_ray"]
