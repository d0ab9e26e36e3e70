"""A process that imports fedsim and reads the data sets once, and forks the processes that play cells.

The children inherit both: memory pages that nobody writes to are shared (copy-on-write), so that all of them have a
data set in memory once; the caller, who asks it for the cells' keys, and other benches on this machine share a large
one with them, memory-mapped (:mod:`fedsim.data.mapped`). A child plays its first cell a few milliseconds after its
birth. A child that dies (out of memory, a crash in native code) is replaced; its cell counts as failed once. The host
has one thread and torch one thread in it, without which forking is unsafe; that is why it is a process of its own and
not the caller's. What it and its children print goes to ``processes.log``, with ``--verbose`` to the screen.

``python -m fedsim.bench.host FD`` reads the plan as JSON from standard input and writes one JSON line an event to FD.
It ends its children when the caller is gone: they stop after their round.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim import runtime
from fedsim.errors import FedsimError

EVENT_BYTES = 4000
"""Below PIPE_BUF, so that lines of several writers never mix."""
LOOK = 0.2
"""Seconds between looks at the children and the caller."""
SHOWN = ("round", "accuracy", "asr")


class _Orphaned(BaseException):
    """Nobody listens any more."""


def serve(plan: Mapping[str, Any], events: int, caller: int) -> None:
    """Fork the children of a plan and wait for them.

    Args:
        plan: ``cells`` (number, total, values, scenario's table, folder, key), ``out``, ``session``, ``jobs``,
            ``workers``, ``datasets``, ``trackers``, ``verbose``.
        events: file descriptor to which events go.
        caller: id of the process that wants them.
    """
    import torch

    torch.set_num_threads(1)
    from fedsim.bench.cell import preload

    if not plan["verbose"]:
        log = os.open(Path(plan["out"]) / "processes.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(log, 2)
        os.close(log)
    preload(plan["datasets"])
    children: set[int] = set()
    stopping = False
    births, most = 0, 2 * len(plan["cells"]) + int(plan["jobs"])

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGINT)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    wanted = int(plan["jobs"])
    while True:
        while len(children) < wanted and not stopping and births < most:
            births += 1
            children.add(_child(plan, events))
        ended, status = os.waitpid(-1, os.WNOHANG) if children else (0, 0)
        if ended:
            children.discard(ended)
            if os.waitstatus_to_exitcode(status) >= 0:
                wanted -= 1
        elif not children:
            return
        else:
            if os.getppid() != caller and not stopping:
                stop()
            time.sleep(LOOK)


def _child(plan: Mapping[str, Any], events: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _play(plan, events, os.getppid())
        status = 0
    except (KeyboardInterrupt, _Orphaned):
        status = 0
    except BaseException as error:
        said = f"{error}" if isinstance(error, FedsimError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(_Orphaned):
            _write(events, {"broken": f"a process that plays cells ended: {said}"[:1000]})
    finally:
        # The host's own exit handlers are not for its children.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return 0


def _play(plan: Mapping[str, Any], events: int, host: int) -> None:
    from fedsim.bench.cell import Cell
    from fedsim.bench.store import Store
    from fedsim.bench.work import overheard, work
    from fedsim.scenario import Scenario

    cells = [
        Cell(
            each["number"],
            plan["total"],
            each["values"],
            Scenario(**each["scenario"]),
            Path(each["folder"]),
            key=each["key"],
        )
        for each in plan["cells"]
    ]

    def tell(cell: Cell, line: dict[str, Any] | None) -> None:
        event: dict[str, Any] = {"cell": cell.number, "state": cell.state, "error": cell.error[:500]}
        if line is not None:
            event["line"] = {name: line.get(name) for name in SHOWN}
        _write(events, event)

    store = Store(Path(plan["out"]))
    try:
        with overheard(lambda said: _write(events, {"said": said[:1000]})):
            work(cells, store, plan["session"], tell, plan["workers"], lambda: os.getppid() == host, plan["trackers"])
    finally:
        store.close()


def _write(events: int, event: dict[str, Any]) -> None:
    content = json.dumps(event).encode() + b"\n"
    if len(content) > EVENT_BYTES:
        content = json.dumps(event | {"error": "see the cell's folder"}).encode() + b"\n"
    try:
        os.write(events, content)
    except BrokenPipeError as error:
        raise _Orphaned from error


def main() -> None:
    """Read the plan and serve it."""
    caller = os.getppid()
    # What is needed in every case is imported while the caller still makes the plan.
    import fedsim.bench.work
    import fedsim.grids.local
    import fedsim.report.page  # noqa: F401

    given = sys.stdin.buffer.read()
    if given:
        plan = json.loads(given)
        with runtime.noise(plan["verbose"]):
            serve(plan, int(sys.argv[1]), caller)


if __name__ == "__main__":
    main()
