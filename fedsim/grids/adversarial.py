"""A grid around any other: it holds the adversary's nodes.

Messages to nodes that the adversary holds are marked, so that the attacks' hooks run there; what these nodes reply is
crafted on its way back, seeing just what the threat model allows. What passes is shown to the attacks' ``observe``:
every message to an omniscient adversary, to any other those of its own nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message_type import MessageType
from flwr.serverapp import Grid
from torch import Tensor

from attacks.adversary import Adversary, Server
from attacks.attack import overrides
from fedsim.client.hooks import LOCAL
from fedsim.client.received import ADVERSARY, LEARN, LEARNED, PREVIOUS
from fedsim.flower import Directory, Flat, SharedArray, as_record, as_tensors, flatten, send, with_content
from fedsim.updates import Layout, Updates

log = logging.getLogger("fedsim")


class Estimating(Protocol):
    """A server whose clients send rows that are no steps; attacks craft steps all the same."""

    estimator: Any

    def to_steps(self, rows: Tensor) -> Tensor: ...

    def to_rows(self, steps: Tensor) -> Tensor: ...


class AdversarialGrid(Grid):
    """Any Flower grid, some of whose nodes an adversary holds.

    Args:
        grid: the grid that really sends.
        adversary: who, when, with what knowledge.
        layout: parameters and buffers of the model.
        population: clients in the federation.
        server_lr: the server optimizer's learning rate.
        preview: (valid rows, round) → parameters (d,), a pure run of the server; None where it is not to be known.
        estimating: the strategy, where it has an estimator: ``craft`` works on the steps that its rows would cause.
        dtype: precision of what is exchanged.
    """

    def __init__(
        self,
        grid: Grid,
        adversary: Adversary,
        layout: Layout,
        population: int,
        *,
        server_lr: float = 1.0,
        preview: Callable[[Updates, int], Tensor] | None = None,
        estimating: Estimating | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.inner = grid
        self.adversary = adversary
        self.layout = layout
        self.population = population
        self.server_lr = server_lr
        self.preview = preview
        self.estimating = estimating
        self.dtype = dtype
        self._trains = MessageType.TRAIN if estimating is None else estimating.estimator.message
        self.partitions_in_order = bool(getattr(grid, "partitions_in_order", False))
        self.state: dict[str, Any] = {}
        self.acted = False
        self.attacking: list[int] = []
        self._round, self._asked = -1, False
        self._previous: Tensor | None = None
        self._directory: Directory | None = None
        self._crafts = any(
            overrides(attack, "craft") or overrides(attack, "claimed_examples") for attack in adversary.attacks
        )
        self._learns = any(overrides(attack, "learn") for attack in adversary.attacks)
        self._remembers = any(attack.wants_previous for attack in adversary.attacks)
        self._claims = adversary.claim is not None
        self._observers = [i for i, attack in enumerate(adversary.attacks) if overrides(attack, "observe")]

    def state_dict(self) -> dict[str, Any]:
        """Memory of the attacks, and the parameters of the round before."""
        return {"attacks": self.state, "previous": self._previous}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state, self._previous = state["attacks"], state["previous"]
        self.adversary.learned = self.state.get("learned", {})

    def set_run(self, run: Any) -> None:
        self.inner.set_run(run)

    @property
    def run(self) -> Any:
        return self.inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass messages on unmarked; the adversary acts in :meth:`send_and_receive`."""
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Mark, send, craft."""
        sent = list(messages)
        if not sent:
            return []
        if self._directory is None:
            self._directory = Directory(self.inner, self.population)
        kind = sent[0].metadata.message_type
        malicious: list[int] = []
        if kind.split(".")[0] == MessageType.TRAIN:
            server_round = _round_of(sent[0])
            clients = [self._directory.partition(message.metadata.dst_node_id) for message in sent]
            malicious = self.adversary.malicious(clients, server_round)
            if kind == self._trains:
                self._begin(server_round)
            if kind == self._trains and self._learns and malicious and not self._asked:
                self._learn(sent[clients.index(malicious[0])], malicious[0], timeout)
            sent = self._marked(sent, clients, set(malicious))
        replies = list(self.inner.send_and_receive(sent, timeout=timeout))
        if kind == self._trains:
            self.attacking = sorted({*self.attacking, *malicious})
            if malicious:
                replies = self._crafted(sent, replies, set(malicious), server_round)
            if not self._asked:
                self._previous = self._received(sent[0])
            self._asked = True
        for position in self._observers:
            self._show(position, sent, replies)
        return replies

    def _begin(self, server_round: int) -> None:
        """A round may ask for training several times, as an estimator does with its trials."""
        if self._round != server_round:
            self._round, self._asked = server_round, False
            self.attacking, self.acted = [], False

    def client_of(self, reply: Message) -> int | None:
        """The partition that answers; None for a node that is not of this federation."""
        return None if self._directory is None else self._directory.find(reply.metadata.src_node_id)

    def _marked(self, messages: list[Message], clients: Sequence[int], malicious: set[int]) -> list[Message]:
        marked = []
        for message, client in zip(messages, clients, strict=True):
            if client in malicious:
                message = with_content(message, self._mark(message.content, client))
            marked.append(message)
        return marked

    def _mark(self, content: RecordDict, client: int) -> RecordDict:
        """The content, with who the client is to the adversary and what the attacks want it to have."""
        mark = ConfigRecord({"rank": self.adversary.rank(client), "attackers": len(self.adversary.pool)})
        marked = RecordDict({**dict(content), ADVERSARY: mark})
        if self._remembers and self._previous is not None:
            previous = Flat(self._previous, self.layout)
            marked[PREVIOUS] = previous if self.partitions_in_order else previous.plain()
        if self.adversary.learned:
            marked[LEARNED] = as_record(self.adversary.learned)
        return marked

    def _learn(self, message: Message, client: int, timeout: float | None) -> None:
        """Ask a malicious client what it learns from the model that it is about to train."""
        content = self._mark(message.content, client)
        asked = send(content, message.metadata.dst_node_id, LEARN, group=message.metadata.group_id)
        for reply in self.inner.send_and_receive([asked], timeout=timeout):
            if reply.has_content() and LEARNED in reply.content.array_records:
                learned = as_tensors(reply.content.array_records[LEARNED])
                self.state["learned"] = self.adversary.learned = learned
            else:
                reason = reply.error.reason if reply.has_error() else "no answer"
                log.warning("client %d: the adversary learnt nothing: %s", client, reason)

    def _received(self, message: Message) -> Tensor:
        return flatten(message.content["arrays"], self.layout, self.dtype)  # type: ignore[arg-type]

    def _crafted(
        self, sent: list[Message], replies: list[Message], malicious: set[int], server_round: int
    ) -> list[Message]:
        assert self._directory is not None
        replies = [self._heard(reply, malicious) for reply in replies]
        if not self._crafts and not self._claims:
            return replies
        reference = self._received(sent[0])
        d = self.layout.d
        as_weights = "reply" not in sent[0].content.config_records.get("config", {})
        omniscient = self.adversary.knowledge == "omniscient"
        asked = {self._directory.partition(message.metadata.dst_node_id) for message in sent}
        rows: dict[bool, list[tuple[int, int, Tensor, int]]] = {True: [], False: []}
        for position, reply in enumerate(replies):
            client = self._directory.find(reply.metadata.src_node_id)
            if client is None or client not in asked or not reply.has_content():
                continue
            if client not in malicious and not omniscient:
                continue
            asked.discard(client)
            try:
                record = next(iter(reply.content.array_records.values()))
                vector = flatten(record, self.layout, self.dtype).to(reference.device)
                count = int(next(iter(reply.content.metric_records.values()))["num-examples"])  # type: ignore[arg-type]
            except Exception:
                log.debug("client %d: its reply cannot be read and is left as it is", client)
                continue
            if as_weights:
                vector = vector - reference
            vector = self._step_of(vector)
            if count >= 0 and bool(torch.isfinite(vector).all()):
                rows[client in malicious].append((client, position, vector, count))
        own = sorted(rows[True], key=lambda row: row[0])
        if not own:
            return replies
        before = _updates(own, reference[:d], self.layout)
        honest = _updates(sorted(rows[False], key=lambda row: row[0]), reference[:d], self.layout)
        after, claimed = self.adversary.craft(
            before,
            honest,
            round=server_round,
            num_clients=len(sent),
            server_lr=self.server_lr,
            previous_reference=None if self._previous is None else self._previous[:d],
            server=self._server(before, honest, server_round),
            state=self.state,
        )
        self.acted |= not torch.equal(after, before.values) or not torch.equal(claimed, before.num_examples)
        for i, (_, position, vector, count) in enumerate(own):
            row = torch.cat([self._row_of(after[i].to(vector)), vector[d:]])
            replies[position] = self._replaced(replies[position], row, reference, as_weights, count, int(claimed[i]))
        return replies

    def _heard(self, reply: Message, malicious: set[int]) -> Message:
        """A reply without what a malicious client says of its training to the adversary alone.

        Clients that answer an estimator say nothing: there an attack with hooks of training counts as acting.
        """
        assert self._directory is not None
        if not reply.has_content() or self._directory.find(reply.metadata.src_node_id) not in malicious:
            return reply
        content = dict(reply.content)
        said = content.pop(ADVERSARY, None)
        if not isinstance(said, ConfigRecord):
            self.acted |= any(overrides(attack, hook) for attack in self.adversary.attacks for hook in LOCAL)
            return reply
        self.acted |= bool(said["acted"])
        return with_content(reply, RecordDict(content))

    def _step_of(self, vector: Tensor) -> Tensor:
        if self.estimating is None:
            return vector
        d = self.layout.d
        return torch.cat([self.estimating.to_steps(vector[None, :d])[0].to(vector.dtype), vector[d:]])

    def _row_of(self, step: Tensor) -> Tensor:
        return step if self.estimating is None else self.estimating.to_rows(step)

    def _replaced(
        self, reply: Message, row: Tensor, reference: Tensor, as_weights: bool, count: int, claimed: int
    ) -> Message:
        record = Flat(reference + row if as_weights else row, self.layout)
        key = next(iter(reply.content.array_records))
        content = RecordDict({name: part for name, part in reply.content.items() if name != key})
        content[key] = record if self.partitions_in_order else record.plain()
        if claimed != count:
            name = next(iter(reply.content.metric_records))
            content[name] = MetricRecord({**reply.content.metric_records[name], "num-examples": claimed})
        return with_content(reply, content)

    def _server(self, own: Updates, honest: Updates, server_round: int) -> Server | None:
        if self.preview is None or not self.adversary.knows_defense:
            return None
        preview, everyone = self.preview, [*own.client_ids, *honest.client_ids]
        order = sorted(range(len(everyone)), key=everyone.__getitem__)

        def server(rows: Tensor, claimed: Tensor) -> Tensor:
            values = torch.cat([rows.to(honest.values), honest.values])[order]
            counts = torch.cat([claimed, honest.num_examples])[order]
            extras = {}
            if "buffers" in own.extras:
                extras["buffers"] = torch.cat([own.extras["buffers"], honest.extras["buffers"]])[order]
            clients = [everyone[i] for i in order]
            updates = Updates(values, counts, clients, own.reference, extras=extras, layout=self.layout)
            return preview(updates, server_round)

        return server

    def _show(self, position: int, sent: list[Message], replies: list[Message]) -> None:
        assert self._directory is not None
        by_node = {reply.metadata.src_node_id: reply for reply in replies}
        for message in sent:
            client = self._directory.partition(message.metadata.dst_node_id)
            if self.adversary.knowledge != "omniscient" and not self.adversary.holds([client])[0]:
                continue
            reply = by_node.get(message.metadata.dst_node_id)
            seen = reply if reply is None or reply.has_error() else with_content(reply, _copied(reply.content))
            self.adversary.held(position, client).observe(with_content(message, _copied(message.content)), seen)


def _copied(content: RecordDict) -> RecordDict:
    """Each record copied, vectors too: torch has no read-only tensors, and who watches changes nothing."""
    return RecordDict({key: _copied_record(record) for key, record in content.items()})


def _copied_record(record: Any) -> Any:
    if isinstance(record, Flat):
        return Flat(record.vector.clone(), record.layout)
    other = record.copy()
    for name, array in list(other.items()):
        if isinstance(array, SharedArray):
            other[name] = SharedArray(array.tensor.clone())
    return other


def _round_of(message: Message) -> int:
    for record in message.content.config_records.values():
        if "server-round" in record:
            return int(record["server-round"])  # type: ignore[arg-type]
    return 0


def _updates(rows: list[tuple[int, int, Tensor, int]], reference: Tensor, layout: Layout) -> Updates:
    d = len(reference)
    matrix = torch.stack([row[2] for row in rows]) if rows else reference.new_zeros((0, d + layout.b))
    extras = {"buffers": matrix[:, d:]} if layout.b else {}
    counts = torch.tensor([float(row[3]) for row in rows], dtype=torch.float64)
    return Updates(matrix[:, :d], counts, [row[0] for row in rows], reference, extras=extras, layout=layout)
