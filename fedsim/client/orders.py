"""Messages as clients read them, and replies as their senders do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from attacks.attack import Compromised
from fedsim.client.objective import References
from fedsim.client.received import ADVERSARY, LEARNED, PREVIOUS, Models
from fedsim.client.workload import Workload
from fedsim.flower import Flat, as_tensors, flatten

_NOTHING = ConfigRecord()

REGULARIZER = "regularizer."
"""What the names of the records begin with that the server sends for the regularizers, by their positions."""


@dataclass
class Order:
    """A train message, read."""

    position: int
    client: int
    round: int
    scale: float
    proximal: float
    compromised: Compromised | None
    vector: Tensor
    references: References = ()
    state: RecordDict = field(default_factory=RecordDict)


class Reader:
    """Reads what a server sends for one workload."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.models = Models(workload)

    def order(self, position: int, message: Message, context: Context, received: dict[int, Tensor]) -> Order:
        """A train message, read."""
        content, client = message.content, client_of(context)
        config = config_of(content)
        round = int(cast(int, config.get("server-round", 0)))
        vector = self.vector(content, received)
        return Order(
            position,
            client,
            round,
            float(cast(float, config.get("scale", 1.0))),
            float(cast(float, config.get("proximal-mu", self.workload.proximal))),
            self.compromised(content, client, round, vector),
            vector,
            self.references(content),
            context.state,
        )

    def references(self, content: RecordDict) -> References:
        """What the server told for each regularizer; nothing where it told nothing."""
        found = []
        for i in range(len(self.workload.regularizers)):
            record = content.get(f"{REGULARIZER}{i}")
            named = as_tensors(record) if isinstance(record, ArrayRecord) else {}
            found.append({name: self.workload.inputs(each) for name, each in named.items()})
        return tuple(found)

    def compromised(
        self, content: RecordDict, client: int, round: int, vector: Tensor | None = None
    ) -> Compromised | None:
        """Who the client is to the adversary, if the message marks it, and what it holds."""
        mark = config_of(content, ADVERSARY)
        if not mark:
            return None
        rank, attackers = int(cast(int, mark["rank"])), int(cast(int, mark["attackers"]))
        previous, learned = content.get(PREVIOUS), content.get(LEARNED)
        before = None
        if isinstance(previous, ArrayRecord):
            before = flatten(previous, self.workload.layout, self.workload.dtype).to(self.workload.device)
        return Compromised(
            client,
            rank,
            attackers,
            round,
            self.workload.seed,
            self.workload.num_classes,
            model=None if vector is None else self.models.received(vector, before),
            learned=as_tensors(learned) if isinstance(learned, ArrayRecord) else {},
        )

    def vector(self, content: RecordDict, received: dict[int, Tensor]) -> Tensor:
        """The parameters in a message; one that several messages share is read once."""
        record = arrays_of(content)
        if record is None:
            raise ValueError("the message carries no arrays")
        key = id(record.vector) if isinstance(record, Flat) else id(record)
        if key not in received:
            vector = flatten(record, self.workload.layout, self.workload.dtype)
            received[key] = vector.to(self.workload.device)
        return received[key]


def client_of(context: Context) -> int:
    """Partition id of a node."""
    return int(cast(int, context.node_config["partition-id"]))


def config_of(content: RecordDict, key: str = "config") -> ConfigRecord:
    """The named ConfigRecord of a message, an empty one if it has none."""
    record = content.get(key)
    return record if isinstance(record, ConfigRecord) else _NOTHING


def arrays_of(content: RecordDict) -> ArrayRecord | None:
    """The model's arrays in a message: the record ``arrays``, or the first one."""
    record = content.get("arrays")
    return record if isinstance(record, ArrayRecord) else next(iter(content.array_records.values()), None)


def as_asked(message: Message, content: RecordDict) -> RecordDict:
    """The content as the sender reads it: vectors stay vectors only among fedsim's own engines."""
    asked = arrays_of(message.content)
    if asked is None or isinstance(asked, Flat):
        return content
    return RecordDict({key: each.plain() if isinstance(each, Flat) else each for key, each in content.items()})


def alike(orders: list[Order], separate: bool) -> list[list[Order]]:
    """Orders that can be trained together: the same round, schedule and parameters.

    Args:
        orders: what the clients are asked.
        separate: malicious clients train apart from honest ones.
    """
    groups: list[list[Order]] = []
    for order in orders:
        for group in groups:
            first = group[0]
            apart = separate and (order.compromised is None) != (first.compromised is None)
            same = (order.round, order.scale, order.proximal) == (first.round, first.scale, first.proximal)
            same = same and _equal(order.references, first.references)
            if same and not apart and (order.vector is first.vector or torch.equal(order.vector, first.vector)):
                group.append(order)
                break
        else:
            groups.append([order])
    return groups


def _equal(one: References, other: References) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def reason(error: Exception) -> str:
    """An exception as one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
