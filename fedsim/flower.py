"""The one file that touches what Flower does not promise to keep: process identity, message ids, array storage.

Written against flwr 1.41 and 1.42.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message_type import MessageType
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.updates import Layout

FIRST_NODE = 2
"""Node id of partition 0 on our grids; Flower reserves 0 and 1."""

WAIT = 300.0
"""Seconds in which the nodes of Flower's own engines must connect, and say which partition they hold."""

SHORT = 60.0
"""Where no more seconds than these are left, silent nodes are asked for the last time."""

log = logging.getLogger("flwr")
_wait = WAIT
_ids = itertools.count(1)
_parsing = threading.Lock()


def set_identity() -> None:
    """Give this process the identity that a fresh ``Message`` asks for, unless Flower's engine has given it one."""
    if TaskIdentity._run_id is None:
        TaskIdentity.run_id = 1
    if TaskIdentity._node_id is None:
        TaskIdentity.node_id = 1
    if TaskIdentity._task_id is None:
        TaskIdentity.task_id = 1


class SharedArray(Array):
    """An Array that shares memory with a tensor; its bytes are made only if someone asks for them.

    ``tensor`` is for fedsim's own code; ``numpy()`` copies, since guests write into what they are given.
    """

    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        self.__dict__["tensor"] = tensor

    dtype = property(lambda self: str(self.tensor.dtype).removeprefix("torch."))
    shape = property(lambda self: tuple(self.tensor.shape))
    stype = property(lambda self: "numpy.ndarray")

    @property
    def data(self) -> bytes:  # type: ignore[override]
        return Array(self.numpy()).data

    def numpy(self) -> np.ndarray[Any, Any]:
        return cast("np.ndarray[Any, Any]", self.tensor.detach().cpu().numpy().copy())

    def plain(self) -> Array:
        """Flower's own Array with the same content."""
        return Array(self.numpy())


class Flat(ArrayRecord):
    """An ArrayRecord that is one vector: parameters, then buffers; named arrays are views, made when asked for.

    Args:
        vector: (d,) or (d + b,).
        layout: where which array stands in it.
    """

    def __init__(self, vector: Tensor, layout: Layout) -> None:
        super().__init__()
        self.__dict__["vector"] = vector
        self.__dict__["layout"] = layout

    def _materialise(self) -> dict[str, Array]:
        data = self.__dict__["_data"]
        if not self.__dict__.get("made"):
            self.__dict__["made"] = True
            data.update({name: SharedArray(view) for name, view in self.layout.views(self.vector).items()})
        return cast("dict[str, Array]", data)

    vector: Tensor = property(lambda self: self.__dict__["vector"])  # type: ignore[assignment]
    layout: Layout = property(lambda self: self.__dict__["layout"])  # type: ignore[assignment]

    def __getitem__(self, item: str) -> Array:
        return self._materialise()[item]

    def __iter__(self) -> Iterator[str]:
        return iter(self._materialise())

    def __len__(self) -> int:
        return len(self._materialise())

    def __contains__(self, key: object) -> bool:
        return key in self._materialise()

    def keys(self) -> Any:
        return self._materialise().keys()

    def values(self) -> Any:
        return self._materialise().values()

    def items(self) -> Any:
        return self._materialise().items()

    def copy(self) -> Flat:
        return Flat(self.vector, self.layout)

    def named(self) -> ArrayRecord:
        """The named arrays in a record of their own, sharing memory: what a guest may take apart and send back."""
        record = ArrayRecord()
        for name, view in self.layout.views(self.vector).items():
            record[name] = SharedArray(view)
        return record

    def __reduce__(self) -> tuple[Any, ...]:
        return (_flat_from_numpy, (self.vector.detach().cpu().numpy(), self.layout))

    def plain(self) -> ArrayRecord:
        """Flower's own ArrayRecord with the same content, in the arrays' own types; for Flower's engines."""
        record = ArrayRecord()
        kinds = {name: dtype for name, _, dtype in self.layout.buffers}
        for name, view in self.layout.views(self.vector).items():
            array = view.detach().cpu().numpy()
            record[name] = Array(np.array(array, dtype=kinds.get(name, array.dtype), order="C"))
        return record


def _flat_from_numpy(vector: np.ndarray[Any, Any], layout: Layout) -> Flat:
    return Flat(as_tensor(vector), layout)


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor that shares the array's memory, also where the array is read-only (it must not be written then)."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """What an Array holds, as a copy; one thread at a time.

    NumPy reads the header of an Array's bytes with ``ast.literal_eval``, and in CPython 3.11 two threads that parse at
    once can fail: "SystemError: AST constructor recursion depth mismatch" (python/cpython#106905).
    """
    if isinstance(array, SharedArray):
        return array.numpy()
    with _parsing:
        return np.array(array.numpy())


def as_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Named tensors as a record of a message."""
    return ArrayRecord(
        {name: Array(np.array(each.detach().cpu().numpy(), order="C")) for name, each in tensors.items()}
    )


def as_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Named tensors from a record, copies."""
    return {name: torch.from_numpy(to_numpy(array)) for name, array in record.items()}


def flatten(record: ArrayRecord, layout: Layout, dtype: torch.dtype = torch.float32) -> Tensor:
    """The (d + b,) vector in a record, whoever sent it.

    Raises:
        ValueError: an array is missing, unknown, or of the wrong shape; one line that says which.
    """
    size = layout.d + layout.b
    if isinstance(record, Flat) and (record.layout is layout or record.layout == layout):
        if record.vector.shape != (size,):
            raise ValueError(f"vector of {tuple(record.vector.shape)} instead of ({size},)")
        return record.vector.to(dtype)
    expected = {name: shape for name, _, _, shape in layout.slices}
    missing = [name for name in expected if name not in record]
    unknown = [name for name in record if name not in expected]
    if missing:
        raise ValueError(f"array '{missing[0]}' is missing")
    if unknown:
        raise ValueError(f"unknown array '{unknown[0]}'")
    vector = torch.empty(size, dtype=dtype)
    for name, start, stop, shape in layout.slices:
        array = record[name]
        tensor = array.tensor if isinstance(array, SharedArray) else torch.as_tensor(to_numpy(array))
        if tuple(tensor.shape) != shape:
            raise ValueError(f"array '{name}' has shape {tuple(tensor.shape)} instead of {shape}")
        if tensor.is_complex():
            raise ValueError(f"array '{name}' is complex")
        vector[start:stop] = tensor.reshape(-1).to(dtype)
    return vector


def send(content: RecordDict, node: int, kind: str, group: str = "") -> Message:
    """A message to a node, with an id of its own so that the reply links back."""
    message = Message(content=content, dst_node_id=node, message_type=kind, group_id=group)
    return with_id(message)


def with_id(message: Message) -> Message:
    """The message with a unique id, unless it has one."""
    if not message.metadata.message_id:
        message.metadata.__dict__["_message_id"] = f"fedsim-{next(_ids)}"
    return message


def addressed(message: Message, group: str) -> Message:
    """The message with a group id (the round), unless it has one."""
    if not message.metadata.group_id:
        message.metadata.__dict__["_group_id"] = group
    return message


def with_content(message: Message, content: RecordDict) -> Message:
    """The same message (same metadata) with another content."""
    return Message(metadata=message.metadata, content=content)  # type: ignore[call-overload, no-any-return]


def error_reply(message: Message, reason: str, code: int = 0) -> Message:
    """The reply that says that a node failed, and why."""
    return Message(Error(code=code, reason=reason), reply_to=message)


def guest_content(content: RecordDict) -> RecordDict:
    """A copy of each record inside, since guests empty, extend and send back what they are given."""
    copied = RecordDict()
    for key, record in content.items():
        copied[key] = record.named() if isinstance(record, Flat) else _copy(record)
    return copied


def owned_copy(state: RecordDict) -> RecordDict:
    """A client's state with each record copied, so that what a failing client does to it can be dropped."""
    copied = RecordDict()
    for key, record in state.items():
        copied[key] = _copy(record)
    return copied


def _copy(record: Any) -> Any:
    copied = record.copy()
    if not isinstance(record, ArrayRecord):
        for name, value in record.items():
            if isinstance(value, list):
                copied[name] = list(value)
    return copied


def context(
    client: int, population: int, run_config: Mapping[str, Any] | None = None, state: RecordDict | None = None
) -> Context:
    """The Context of a node on our grids."""
    return Context(
        run_id=1,
        node_id=client + FIRST_NODE,
        node_config={"partition-id": client, "num-partitions": population},
        state=RecordDict() if state is None else state,
        run_config=dict(run_config or {}),
    )


def simulates(grid: Grid | None = None) -> bool:
    """Whether this process is a part of Flower's simulation; no for a deployment, and whatever cannot be told.

    Args:
        grid: of a server app; None on a node, which the simulation runs in an actor of Ray (a deployed node that
            uses Ray itself is its driver, and no actor).
    """
    if grid is not None:
        return type(grid).__name__ == "InMemoryGrid"
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized()) and ray.get_runtime_context().get_actor_id() is not None


@contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """Until the block ends, nodes of Flower's own engines have this many seconds in place of ``WAIT``."""
    global _wait
    before, _wait = _wait, seconds
    try:
        yield
    finally:
        _wait = before


class Directory:
    """Which node holds which partition; asked once, by a query, on grids that are not ours.

    Args:
        grid: any Flower grid.
        population: partitions there must be; nodes are waited for.

    Raises:
        FedsimError: not all nodes of Flower's own engine have connected and answered in time, see :func:`waiting`.
    """

    def __init__(self, grid: Grid, population: int) -> None:
        self.ours = bool(getattr(grid, "partitions_in_order", False))
        self.population = population
        self._node: dict[int, int] = {}
        self._partition: dict[int, int] = {}
        if not self.ours:
            self._ask(grid, population, _wait)

    def node(self, partition: int) -> int:
        return partition + FIRST_NODE if self.ours else self._node[partition]

    def partition(self, node: int) -> int:
        return node - FIRST_NODE if self.ours else self._partition[node]

    def find(self, node: int) -> int | None:
        """The partition of whoever sent something; None for a node that is not of this federation."""
        if self.ours:
            partition = node - FIRST_NODE
            return partition if 0 <= partition < self.population else None
        return self._partition.get(node)

    def _ask(self, grid: Grid, population: int, patience: float) -> None:
        nodes = _connected(grid, population, patience)
        question = RecordDict({"config": ConfigRecord({"ask": "partition"})})
        silent, trouble = nodes, ""
        for seconds in _spans(patience):
            messages = [Message(question, node, f"{MessageType.QUERY}.partition") for node in silent]
            replies = list(grid.send_and_receive(messages=messages, timeout=seconds))
            for reply in replies:
                if reply.has_error():
                    trouble = f"; one answered: {reply.error.reason}"
                else:
                    partition = int(cast(int, reply.content["partition"]["partition-id"]))
                    self._node[partition] = reply.metadata.src_node_id
                    self._partition[reply.metadata.src_node_id] = partition
            heard = {reply.metadata.src_node_id for reply in replies}
            silent = [node for node in silent if node not in heard]
            if not silent:
                break
        absent = [p for p in range(population) if p not in self._node]
        if absent:
            others = f" (and {len(absent) - 1} others)" if len(absent) > 1 else ""
            if silent:
                trouble += f"; {len(silent)} did not answer within {_slow(patience)}"
            raise FedsimError(
                f"nodes: no node holds partition {absent[0]}{others} of {population}: "
                f"{len(nodes)} are connected{trouble}; accepted: each partition-id from 0 to {population - 1} on a node"
            )


def _connected(grid: Grid, population: int, patience: float) -> list[int]:
    """The nodes, once there are enough of them."""
    import time

    deadline = time.monotonic() + patience
    seen = -1
    while len(nodes := list(grid.get_node_ids())) < population:
        if time.monotonic() >= deadline:
            raise FedsimError(
                f"nodes: given {len(nodes)} connected nodes within {_slow(patience)}; "
                f"accepted: {population} (data.clients), each with its own partition-id"
            )
        if len(nodes) != seen:
            seen = len(nodes)
            log.info("%d of %d nodes are connected, waiting for the others", seen, population)
        time.sleep(0.2)
    return nodes


def _spans(patience: float) -> Iterator[float]:
    """Seconds of each attempt to ask: half of what is left, as long as that is long.

    On a busy machine Flower gives up a node's task when its process gives no sign of life in time, and the answer
    never comes, however long one waits; only asking again helps.
    """
    while patience > SHORT:
        patience /= 2
        yield patience
    yield patience


def _slow(patience: float) -> str:
    return f"{patience:g} s (where nodes start slowly: a larger `wait` in the run config)"


Handler = Callable[[Message, Context], Message]
Messages = Iterable[Message]

__all__ = [
    "FIRST_NODE",
    "WAIT",
    "Directory",
    "Flat",
    "Handler",
    "Messages",
    "Sequence",
    "SharedArray",
    "addressed",
    "as_tensor",
    "context",
    "error_reply",
    "flatten",
    "guest_content",
    "owned_copy",
    "send",
    "set_identity",
    "waiting",
    "with_content",
    "with_id",
]
