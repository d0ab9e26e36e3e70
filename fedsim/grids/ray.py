"""A Ray cluster as a grid: actors that are created once, hold the app, and serve chunks in all rounds.

The app goes to each worker once; each distinct vector of an exchange goes to the object store once. A client's state
travels with its chunk and comes back. A chunk whose worker dies is run again on a new one, then client by client; a
client that kills its worker alone gets an Error reply. What happened stands in ``incidents``.

Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", OSDI 2018.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from flwr.app import Context, Message, RecordDict
from pydantic import Field

from fedsim import flower, runtime
from fedsim.errors import FedsimError
from fedsim.flower import Flat
from fedsim.grids.embedded import APP_CRASHED, EmbeddedGrid, run_chunk
from fedsim.registry import register

PATIENCE = 300.0
"""Seconds to wait for the workers of a busy cluster."""
SHORT = "/tmp"
"""Ray's sockets lie in its folder, and their paths must be short."""
INLINE = 64 * 1024
"""Vectors below this many bytes travel with each chunk, without the object store."""
ADDRESSES = "HOST:PORT of a running cluster (`ray start --head` starts one and says it), 'auto' for this machine's"
"""What names a cluster."""


class Worker:
    """What runs in an actor's process: the app, and chunks of messages."""

    def __init__(self, app: Any, seed: int | None) -> None:
        runtime.set_up()
        runtime.worker_thread()
        flower.set_identity()
        self.app = app
        self.seed = seed

    def run(self, parcels: list[Parcel], *records: Any) -> list[tuple[Message, RecordDict | None]]:
        """Replies and what the clients' states are now."""
        messages, contexts = [], []
        for parcel in parcels:
            content = RecordDict()
            for key, record in parcel.content.items():
                content[key] = records[record.position] if isinstance(record, Reference) else record
            messages.append(flower.with_content(parcel.message, content))
            contexts.append(parcel.context)
        replies = run_chunk(self.app, messages, contexts, self.seed)
        return [
            (reply, None if reply.has_error() else context.state)
            for reply, context in zip(replies, contexts, strict=True)
        ]

    def process(self) -> int:
        """Id of the process, once the app has arrived."""
        return os.getpid()


@dataclass(frozen=True)
class Reference:
    """Stands in a content for a record that travels through the object store."""

    position: int


@dataclass(frozen=True)
class Parcel:
    """One message for a worker: its metadata, its records or references to them, the client's Context."""

    message: Message
    content: dict[str, Any]
    context: Context


@dataclass
class Task:
    """A chunk and how often it was tried."""

    chunk: list[int]
    attempts: int = 0


class RayGrid(EmbeddedGrid):
    """Nodes in the actors of a Ray cluster.

    Args:
        app: our ClientApp or any plain Flower ClientApp; it must be picklable.
        num_clients: nodes; they cost nothing until they are sent a message.
        workers: actors; no bit depends on how many.
        address: of a running cluster (``auto``: the one on this machine); None starts one, ended by ``close``.
        num_gpus: GPUs, or the share of one, that each actor holds.
        run_config: what each node's Context holds as ``run_config``.
        seed: see :class:`EmbeddedGrid`.

    Raises:
        FedsimError: no cluster at the address, too few processors in it, or an app that cannot be sent.
    """

    def __init__(
        self,
        app: Any,
        num_clients: int,
        workers: int = 2,
        address: str | None = None,
        num_gpus: float = 0.0,
        *,
        run_config: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(app, num_clients, run_config=run_config, seed=seed)
        self.workers = max(1, workers)
        self.num_gpus = num_gpus
        self._folder: str | None = None
        self._started = False
        self._actors: list[Any] = []
        self._ray = import_ray()
        self._connect(address)
        try:
            self._check_resources()
            self._app = self._put_app()
            self._actors = [self._actor() for _ in range(self.workers)]
            self._ray.get([actor.process.remote() for actor in self._actors], timeout=PATIENCE)
        except self._ray.exceptions.RayError as error:
            self.close()
            raise FedsimError(f"the workers of the Ray cluster did not start: {_first_line(error)}") from error
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> list[int]:
        """Process ids of the actors."""
        found: list[int] = self._ray.get([actor.process.remote() for actor in self._actors])
        return found

    def close(self) -> None:
        """End the actors, and the cluster and its folder if this grid started it."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        self._actors = []
        if self._started:
            self._ray.shutdown()
            self._started = False
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _connect(self, address: str | None) -> None:
        self._started, self._folder = connect(address, self.workers, self.num_gpus * self.workers)

    def _check_resources(self) -> None:
        has = self._ray.cluster_resources()
        for name, wanted in (("CPU", float(self.workers)), ("GPU", self.num_gpus * self.workers)):
            if wanted > has.get(name, 0.0):
                raise FedsimError(
                    f"engine.workers: given {self.workers} ({wanted:g} {name}s); "
                    f"accepted: at most the cluster's {has.get(name, 0.0):g} {name}s"
                )

    def _put_app(self) -> Any:
        from ray import cloudpickle

        by_value: Any = cloudpickle.register_pickle_by_value
        for name, module in list(sys.modules.items()):
            if name.startswith("fedsim_plugin_"):
                by_value(module)
        try:
            return self._ray.put(self.app)
        except Exception as error:
            raise FedsimError(f"the app cannot be sent to Ray's workers: {_first_line(error)}") from error

    def _actor(self) -> Any:
        actor = self._ray.remote(Worker).options(num_cpus=1, num_gpus=self.num_gpus, max_restarts=0)
        return actor.remote(self._app, self.seed)

    def _exchange(
        self, sent: Sequence[Message], known: Sequence[int], replies: list[Message | None], timeout: float | None
    ) -> None:
        messages = [sent[position] for position in known]
        contexts = [self._context(message) for message in messages]
        tasks = deque(Task(chunk) for chunk in self._plan(messages, contexts))
        parcels, records = self._pack(messages, contexts)
        deadline = None if timeout is None else time.monotonic() + timeout
        flying: dict[Any, tuple[Task, int]] = {}
        idle = list(range(len(self._actors)))[::-1]
        while tasks or flying:
            while tasks and idle:
                task, worker = tasks.popleft(), idle.pop()
                chosen, needed = _select([parcels[i] for i in task.chunk], records)
                flying[self._actors[worker].run.remote(chosen, *needed)] = (task, worker)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, _ = self._ray.wait(list(flying), num_returns=1, timeout=left)
            if not done:
                self._abandon(flying, messages)
                return
            task, worker = flying.pop(done[0])
            try:
                answers = self._ray.get(done[0])
            except self._ray.exceptions.RayError as error:
                self._failed(error, task, worker, tasks, messages, known, replies)
            else:
                for at, (reply, state) in zip(task.chunk, answers, strict=True):
                    replies[known[at]] = reply
                    if state is not None:
                        self._keep_state(messages[at], reply, state)
            idle.append(worker)

    def _pack(self, messages: Sequence[Message], contexts: Sequence[Context]) -> tuple[list[Parcel], list[Any]]:
        """Messages without their big vectors, and each distinct vector put into the object store once."""
        records: list[Any] = []
        positions: dict[int, Reference] = {}
        parcels = []
        for message, context in zip(messages, contexts, strict=True):
            content: dict[str, Any] = dict(message.content.items())
            for key, record in content.items():
                if isinstance(record, Flat) and record.vector.nbytes > INLINE:
                    if id(record) not in positions:
                        positions[id(record)] = Reference(len(records))
                        records.append(self._ray.put(record))
                    content[key] = positions[id(record)]
            parcels.append(Parcel(flower.with_content(message, RecordDict()), content, context))
        return parcels, records

    def _failed(
        self,
        error: Exception,
        task: Task,
        worker: int,
        tasks: deque[Task],
        messages: Sequence[Message],
        known: Sequence[int],
        replies: list[Message | None],
    ) -> None:
        """Replace a dead actor; the chunk is run again, then client by client, then given up."""
        died = not isinstance(error, self._ray.exceptions.RayTaskError)
        clients = [self._partition(messages[i]) for i in task.chunk]
        again = task.attempts == 0 and died
        what = "run again" if again else "run one by one" if len(task.chunk) > 1 else "given up"
        self.incidents.append(
            {
                "clients": clients,
                "what": "worker died" if died else "worker failed",
                "error": _first_line(error),
                "then": what,
            }
        )
        if died:
            with contextlib.suppress(Exception):
                self._ray.kill(self._actors[worker])
            self._actors[worker] = self._actor()
        if again:
            tasks.appendleft(Task(task.chunk, attempts=1))
        elif len(task.chunk) > 1:
            tasks.extendleft(Task([i], attempts=1) for i in reversed(task.chunk))
        else:
            at = task.chunk[0]
            reason = f"its worker {'died' if died else 'failed'}: {_first_line(error)}"
            replies[known[at]] = flower.error_reply(messages[at], reason, APP_CRASHED)

    def _abandon(self, flying: Mapping[Any, tuple[Task, int]], messages: Sequence[Message]) -> None:
        """The time is over: actors that still work are replaced."""
        for task, worker in flying.values():
            clients = [self._partition(messages[i]) for i in task.chunk]
            self.incidents.append({"clients": clients, "what": "too late", "error": "", "then": "left out"})
            self._ray.kill(self._actors[worker])
            self._actors[worker] = self._actor()


def _select(parcels: Sequence[Parcel], records: Sequence[Any]) -> tuple[list[Parcel], list[Any]]:
    """The parcels of a chunk, and only those records that they refer to, renumbered."""
    used = sorted({r.position for parcel in parcels for r in parcel.content.values() if isinstance(r, Reference)})
    if used == list(range(len(records))):
        return list(parcels), list(records)
    renumbered = {old: Reference(new) for new, old in enumerate(used)}
    chosen = [
        Parcel(
            parcel.message,
            {k: renumbered[r.position] if isinstance(r, Reference) else r for k, r in parcel.content.items()},
            parcel.context,
        )
        for parcel in parcels
    ]
    return chosen, [records[old] for old in used]


def connect(address: str | None, cpus: int, gpus: float = 0.0, name: str = "engine.address") -> tuple[bool, str | None]:
    """Join a Ray cluster, or start one; nothing where this process is in one already.

    Args:
        address: of a running cluster (``auto``: the one on this machine); None starts one.
        cpus: processors of one that is started.
        gpus: GPUs of one that is started.
        name: of the key or option that gives the address, for errors.

    Returns:
        Whether this call did it, so that ``ray.shutdown`` is the caller's to call, and the folder to remove then.

    Raises:
        FedsimError: no address, or no cluster there.
    """
    ray = import_ray()
    if ray.is_initialized():
        return False, None
    options: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": runtime.verbose,
        "logging_level": logging.INFO if runtime.verbose else logging.ERROR,
        "configure_logging": runtime.verbose,
    }
    folder = None
    if address is None:
        folder = tempfile.mkdtemp(prefix="fedsim-ray-", dir=SHORT if os.access(SHORT, os.W_OK) else None)
        found = {"num_gpus": max(1, round(gpus))} if gpus else {}
        options |= {"num_cpus": cpus, "_temp_dir": folder, **found}
    else:
        _check_reachable(address, name)
        options |= {"address": address, "runtime_env": {"env_vars": _environment()}}
        del options["include_dashboard"]
    try:
        with _quiet(), _exported(_environment() if address is None else {}), _own_sigterm():
            ray.init(**options)
    except Exception as error:  # Ray raises bare ones, e.g. where a node does not start in time.
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        said = _first_line(error)
        if address is None:
            raise FedsimError(f"Ray: given no address; accepted: a machine that can start a cluster: {said}") from error
        raise FedsimError(f"Ray: given {name} = '{address}'; accepted: {_reachable(said)}") from error
    return True, folder


@contextlib.contextmanager
def cluster(address: str | None, cpus: int) -> Iterator[Any]:
    """Ray, in a cluster for the block; one that was started here ends with it. See :func:`connect`."""
    started, folder = connect(address, cpus, name="--address")
    try:
        yield import_ray()
    finally:
        if started:
            import_ray().shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray puts a handler of its own for SIGTERM, which ends the process in the middle of a round: ours stays."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


def import_ray() -> Any:
    """The package, without its warnings.

    Raises:
        FedsimError: it is not installed.
    """
    try:
        with _quiet():
            import ray
    except ImportError as error:
        raise FedsimError("engine.name: given 'ray', which is not installed: pip install 'ray'") from error
    return ray


def host_and_port(address: str) -> tuple[str, int] | None:
    """Of ``HOST:PORT`` or ``SCHEME://HOST:PORT``; None where it is none."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    return (host, int(port)) if host and port.isdecimal() and int(port) < 2**16 else None


def _check_reachable(address: str, name: str) -> None:
    """Ask the port before Ray does, which would wait for minutes, for a cluster that has ended without a word, too."""
    found = host_and_port(_on_this_machine() if address == "auto" else address)
    if found is None and address not in ("auto", "local") and "://" not in address:
        raise FedsimError(f"Ray: given {name} = '{address}'; accepted: {ADDRESSES}, or none, which starts one here")
    if found is None:
        return
    try:
        socket.create_connection(found, timeout=5.0).close()
    except OSError as error:
        place = "at {}:{}: ".format(*found) if address == "auto" else ""
        raise FedsimError(f"Ray: given {name} = '{address}'; accepted: {_reachable(f'{place}{error}')}") from error


def _reachable(wrong: str) -> str:
    return (
        f"a cluster that can be reached ({wrong}), "
        "or no address, which starts one here; `ray start --head` starts one that stays"
    )


def _on_this_machine() -> str:
    """Where Ray would look for ``auto``; nothing where it finds none, which it says itself."""
    with contextlib.suppress(ImportError, AttributeError, ConnectionError, ValueError), _quiet():
        from ray._private.services import canonicalize_bootstrap_address

        return str(canonicalize_bootstrap_address("auto"))
    return ""


def _environment() -> dict[str, str]:
    """What the workers' processes need: the driver's import path, and the settings of fedsim.runtime."""
    here = str(Path(__file__).resolve().parents[2])
    path = dict.fromkeys([here, *(entry for entry in sys.path if entry and Path(entry).is_dir())])
    settings = {name: os.environ[name] for name in runtime.VARIABLES if name in os.environ}
    return {"PYTHONPATH": os.pathsep.join(path), **settings}


@contextlib.contextmanager
def _exported(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        if not runtime.verbose:
            warnings.simplefilter("ignore")
        yield


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


@register("engine", "ray")
class RayEngine:
    """Nodes in the actors of a Ray cluster.

    Args:
        workers: actors; 0 takes as many as this process may use cores.
        address: of a running cluster, ``auto`` for the one on this machine; none starts one.
        num_gpus: GPUs, or the share of one, that each actor holds.
    """

    workers: Annotated[int, Field(ge=0)] = 0
    address: str | None = None
    num_gpus: Annotated[float, Field(ge=0)] = 0.0

    def grid(
        self, app: Any, num_clients: int, run_config: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> RayGrid:
        """The grid on which ``num_clients`` nodes run the app."""
        return RayGrid(
            app,
            num_clients,
            self.workers or runtime.cores(),
            self.address,
            self.num_gpus,
            run_config=run_config,
            seed=seed,
        )
