"""The embedded grid: nodes run in threads of this process, in chunks, without a copy of anything."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Annotated, Any

from flwr.app import Message
from pydantic import Field

from fedsim import flower, runtime
from fedsim.grids.embedded import APP_RAISED, EmbeddedGrid, is_guest, run_chunk
from fedsim.registry import register

Job = Callable[[], Any]


class LocalGrid(EmbeddedGrid):
    """Nodes in worker threads.

    Args:
        app: our ClientApp (``plan`` and ``many``) or any plain Flower ClientApp, a guest.
        num_clients: nodes; they cost nothing until they are sent a message.
        workers: threads that train chunks; no bit depends on it.
        run_config: what each node's Context holds as ``run_config``.
        guest_workers: threads that run guests. Guests that draw from global random states need 1.
        seed: see :class:`EmbeddedGrid`; only with one guest worker.
    """

    def __init__(
        self,
        app: Any,
        num_clients: int,
        workers: int = 2,
        *,
        run_config: Mapping[str, Any] | None = None,
        guest_workers: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__(app, num_clients, run_config=run_config, seed=seed if guest_workers == 1 else None)
        self.workers = guest_workers if is_guest(app) else workers
        self._threads = _Threads(max(1, self.workers))

    def close(self) -> None:
        self._threads.close()

    def _exchange(
        self, sent: Sequence[Message], known: Sequence[int], replies: list[Message | None], timeout: float | None
    ) -> None:
        messages = [sent[position] for position in known]
        contexts = [self._context(message) for message in messages]
        chunks = self._plan(messages, contexts)

        def job(chunk: list[int]) -> Job:
            return lambda: run_chunk(self.app, [messages[i] for i in chunk], [contexts[i] for i in chunk], self.seed)

        for chunk, outcome in zip(chunks, self._threads.run([job(chunk) for chunk in chunks], timeout), strict=True):
            if outcome is None:
                continue
            for i, at in enumerate(chunk):
                if isinstance(outcome, BaseException):
                    reply = flower.error_reply(messages[at], repr(outcome), APP_RAISED)
                else:
                    reply = outcome[i]
                replies[known[at]] = reply
                self._keep_state(messages[at], reply, contexts[at].state)


class _Threads:
    """Daemon threads that take jobs from a queue; threads that do not answer in time are left behind."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._queue: SimpleQueue[tuple[int, Job, SimpleQueue[tuple[int, Any]]] | None] = SimpleQueue()
        self._started: list[threading.Thread] = []
        _open.add(self)

    def run(self, jobs: Sequence[Job], timeout: float | None) -> list[Any]:
        """The jobs' results in order: an exception where one was raised, None where the time was over."""
        results: list[Any] = [None] * len(jobs)
        done: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        while len(self._started) < min(self.count, len(jobs)):
            thread = threading.Thread(target=_work, args=(self._queue,), name="fedsim-worker", daemon=True)
            thread.start()
            self._started.append(thread)
        for position, job in enumerate(jobs):
            self._queue.put((position, job, done))
        deadline = None if timeout is None else time.monotonic() + timeout
        for _ in jobs:
            try:
                position, result = done.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except Empty:
                self.close(patience=0.0)
                break
            results[position] = result
        return results

    def close(self, patience: float = 5.0) -> None:
        """Idle threads end, busy ones as soon as they are done; what waits in the queue is dropped.

        Threads are waited for: one that the interpreter's end meets in torch's own code aborts the process.

        Args:
            patience: seconds to wait for each thread.
        """
        old, self._queue = self._queue, SimpleQueue()
        try:
            while True:
                old.get_nowait()
        except Empty:
            pass
        for _ in self._started:
            old.put(None)
        if patience:
            for thread in self._started:
                thread.join(patience)
        self._started = []


_open: weakref.WeakSet[_Threads] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for threads in list(_open):
        threads.close()


def _work(queue: SimpleQueue[tuple[int, Job, SimpleQueue[tuple[int, Any]]] | None]) -> None:
    runtime.worker_thread()
    while (task := queue.get()) is not None:
        position, job, done = task
        try:
            result = job()
        except BaseException as error:
            result = error
        done.put((position, result))
        del task, job, done, result


@register("engine", "local")
class LocalEngine:
    """Nodes in threads of this process.

    Args:
        workers: threads; 0 takes every core that the process may use.
    """

    workers: Annotated[int, Field(ge=0)] = 0

    def grid(
        self, app: Any, num_clients: int, run_config: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> LocalGrid:
        """The grid on which ``num_clients`` nodes run the app."""
        return LocalGrid(app, num_clients, self.workers or runtime.cores(), run_config=run_config, seed=seed)
