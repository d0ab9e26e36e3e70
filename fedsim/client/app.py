"""The node as a Flower ClientApp, with a batched interface beside Flower's: many messages, many replies.

Flower's handler is :meth:`FederatedClient.many` of one message, so that Flower's own engines run the same code.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from attacks.attack import Attack, Compromised, overrides
from attacks.held import Held
from fedsim import rng, runtime
from fedsim.client import reference
from fedsim.client.adapted import ADAPT, adapt_of, learn_adapter, learn_adapters
from fedsim.client.chunk import Chunk, Engine, rank
from fedsim.client.evaluation import measure
from fedsim.client.hooks import LOCAL, Hooks
from fedsim.client.job import Job, make_job
from fedsim.client.memory import recall, remember, signature
from fedsim.client.node import Node
from fedsim.client.orders import Order, Reader, alike, arrays_of, as_asked, client_of, config_of, reason
from fedsim.client.paths import choose
from fedsim.client.received import ADVERSARY, LEARN, learn
from fedsim.client.replica import Replica
from fedsim.client.searched import VECTORS
from fedsim.client.workload import Workload
from fedsim.errors import FedsimError
from fedsim.flower import Flat, error_reply

log = logging.getLogger("fedsim")

NodeHandler = Callable[[Node, RecordDict], RecordDict]
ManyHandler = Callable[[Sequence[Node], Sequence[RecordDict]], list[RecordDict | Exception]]
TRAIN = ("train", "train.default")
RELEASED = "fedsim.released"
CHUNK = 32
CHUNK_BYTES = 256 * 2**20
Outcome = tuple[Tensor, float, int, Mapping[str, float]]


class FederatedClient(ClientApp):
    """All nodes of a federation.

    Args:
        workload: what they train.
        attacks: what those do that the adversary marks.
        handlers: parts' own exchanges, ``train.NAME`` or ``query.NAME`` → ``(node, content) -> content``.
        unasked: types of message that are answered by an error: what they ask for would leave without noise.
        releases: rounds for each of which a client answers one message of a type, in order: a second answer would have
            noise of its own, which no epsilon counts. None: as often as it is asked.
        drawn: with ``releases``, how many rounds of a type each client answers at most: those that epsilon counts.
        knowledge: the adversary's.
    """

    def __init__(
        self,
        workload: Workload,
        attacks: Sequence[Attack] = (),
        handlers: Mapping[str, NodeHandler] | None = None,
        unasked: Sequence[str] = (),
        releases: int | None = None,
        drawn: Sequence[int] | None = None,
        knowledge: str = "colluding",
    ) -> None:
        super().__init__()
        self.workload, self.attacks, self.knowledge = workload, tuple(attacks), knowledge
        self.held = Held(self.attacks, knowledge)
        self.handlers: dict[str, NodeHandler] = {"query.partition": _partition, LEARN: learn, **(handlers or {})}
        if workload.adapter is not None:
            self.handlers[ADAPT] = learn_adapter
        self.together: dict[str, ManyHandler] = {}
        if hasattr(workload.adapter, "fit_together") and workload.path != "reference":
            self.together[ADAPT] = learn_adapters
        self.hooks = Hooks(self.held)
        self.separate = any(overrides(each, hook) for each in self.attacks for hook in LOCAL)
        self.reader = Reader(workload)
        self.path = choose(workload)
        self.exchanged = self.handlers.keys() - {"query.partition", LEARN}
        self.unasked, self.releases, self.drawn = tuple(unasked), releases, drawn
        self._threads = threading.local()
        self.train()(self._alone)
        self.evaluate()(self._alone)
        for name in self.handlers:
            category, _, action = name.partition(".")
            {"train": self.train, "query": self.query, "evaluate": self.evaluate}[category](action)(self._alone)

    def __reduce__(self) -> tuple[Any, ...]:
        given = (self.workload, self.attacks, self.handlers, self.unasked, self.releases, self.drawn, self.knowledge)
        return (FederatedClient, given)

    def attacks_of(self, compromised: Compromised | None) -> list[Attack]:
        """The attacks as this client has them; none where it is honest."""
        return [] if compromised is None else self.held.of(compromised.client)

    def _alone(self, message: Message, context: Context) -> Message:
        return self.many([message], [context])[0]

    def plan(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[list[int]]:
        """Positions of the messages that make a chunk each, longest work first; never depends on workers."""
        clients = [client_of(context) for context in contexts]
        steps = [self.workload.steps_of(int(self.workload.shares.sizes[client])) for client in clients]
        groups: dict[tuple[str, bool], list[int]] = {}
        for position in sorted(range(len(messages)), key=lambda i: (-steps[i], clients[i])):
            message = messages[position]
            marked = self.separate and message.has_content() and ADVERSARY in message.content
            groups.setdefault((message.metadata.message_type, marked), []).append(position)
        chunks = []
        for (kind, _), positions in groups.items():
            count = self._chunks(len(positions), kind)
            chunks += [positions[start::count] for start in range(count)]
        return chunks

    def _chunks(self, n: int, kind: str) -> int:
        """How many chunks n clients make: two for every 32 where they train together, bounded in bytes."""
        if kind not in TRAIN:
            return min(n, 2 * -(-n // CHUNK))
        if self.path.engine is None:
            return n
        vectors = VECTORS if self.workload.searches else self.workload.objective.objectives
        row = self.workload.layout.d * self.workload.dtype.itemsize * vectors
        largest = max(1, CHUNK_BYTES // max(1, row))
        return min(n, max(2 * -(-n // CHUNK), -(-n // largest)))

    def many(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """A reply for each message, an Error reply where its client failed."""
        runtime.worker_thread()
        replies: dict[int, Message] = {}
        orders: list[Order] = []
        received: dict[int, Tensor] = {}
        asked: dict[str, dict[int, Node]] = {}
        for position, (message, context) in enumerate(zip(messages, contexts, strict=True)):
            kind = message.metadata.message_type
            try:
                if kind in self.unasked:
                    raise FedsimError("an answer to this would leave without noise")
                self._count(message, context)
                if kind in TRAIN:
                    order = self.reader.order(position, message, context, received)
                    if self._drops_out(order.client, order.round):
                        replies[position] = error_reply(message, "dropped out")
                    else:
                        orders.append(order)
                    continue
                node = self._node(message, context, received)
                if (kind.startswith("train.") or kind in self.exchanged) and self._drops_out(node.client, node.round):
                    replies[position] = error_reply(message, "dropped out")
                elif kind in self.together:
                    asked.setdefault(kind, {})[position] = node
                else:
                    replies[position] = self._answer(message, node)
            except Exception as error:
                replies[position] = error_reply(message, self._told(error))
        for kind, nodes in asked.items():
            replies.update(self._answers(kind, nodes, messages))
        for group in alike(orders, self.separate):
            for order, outcome in zip(group, self._train(group), strict=True):
                message = messages[order.position]
                if isinstance(outcome, Exception):
                    replies[order.position] = error_reply(message, self._told(outcome))
                else:
                    replies[order.position] = self._reply(message, order, *outcome)
        return [replies[position] for position in range(len(messages))]

    def _count(self, message: Message, context: Context) -> None:
        """Lets each round be asked for once; Flower keeps the count with the node's state of the run."""
        kind = message.metadata.message_type
        if self.releases is None or kind.partition(".")[0] != "train":
            return
        asked = int(cast(int, config_of(message.content).get("server-round", 0)))
        told = cast(ConfigRecord, context.state.setdefault(RELEASED, ConfigRecord()))
        last = int(cast(int, told.get(kind, 0)))
        if not last < asked <= self.releases:
            raise FedsimError(f"given round {asked}; accepted: {last + 1} to {self.releases}, each once")
        most = self.releases if self.drawn is None else int(self.drawn[client_of(context)])
        answered = int(cast(int, told.get(f"{kind}.answered", 0)))
        if answered >= most:
            raise FedsimError(f"given one round more than this client's {most}; accepted: those that epsilon counts")
        told[kind], told[f"{kind}.answered"] = asked, answered + 1

    def _told(self, error: Exception) -> str:
        """What a client says of its failure: an exception's words may quote its data."""
        if self.workload.secrecy == "none":
            return reason(error)
        log.debug("a client failed", exc_info=error)
        return "failed; its words stay on the client"

    def _drops_out(self, client: int, round: int) -> bool:
        if not self.workload.dropout:
            return False
        stream = rng.stream(self.workload.seed, "client.dropout", round=round, client=client)
        return bool(stream.random() < self.workload.dropout)

    def _train(self, orders: list[Order]) -> list[Outcome | Exception]:
        """Each client's (delta, loss, examples, what its optimizer tells), or why it failed.

        A chunk that fails is tried client by client.
        """
        outcomes: dict[int, Outcome | Exception] = {}
        work: list[tuple[Order, Job]] = []
        for order in orders:
            try:
                adapt = adapt_of(self.workload, order.state)
                attacks = self.attacks_of(order.compromised)
                job = make_job(self.workload, order.client, order.round, order.compromised, attacks, adapt)
                self._poisoned(job)
                if self.workload.adapter is not None and job.steps and adapt is None:
                    raise ValueError("has no adapter: it was not asked to learn one, or could not")
            except Exception as error:
                outcomes[order.position] = error
                continue
            if job.steps:
                if self.workload.optimizer_state == "persist":
                    job.memory = recall(order.state)
                work.append((order, job))
            else:
                outcomes[order.position] = (torch.zeros_like(order.vector), 0.0, 0, {})
        if self.path.engine is None:
            outcomes.update((order.position, self._loop(order, job)) for order, job in work)
        else:
            # An optimizer that searches keeps a single number for each row: all clients train in one tensor.
            for alike_work in ([work] if work else []) if self.workload.searches else _by_memory(work):
                outcomes.update(self._together(alike_work))
        return [outcomes[order.position] for order in orders]

    def _poisoned(self, job: Job) -> None:
        """Whether an attack has changed something of the client's work begins with its examples."""
        self.hooks.touched.discard(job.client)
        if job.poisoned:
            self.hooks.touched.add(job.client)

    def _together(self, work: list[tuple[Order, Job]]) -> dict[int, Outcome | Exception]:
        work = sorted(work, key=lambda each: rank(each[1]))
        first = work[0][0]
        try:
            chunk = Chunk(
                self.engine,
                self.workload,
                [job for _, job in work],
                first.vector,
                self.hooks,
                first.scale,
                first.proximal,
                first.references,
            )
            rows, losses = chunk.train()
        except Exception as error:
            if len(work) == 1:
                return {first.position: error}
            log.warning("a chunk of %d clients failed (%s); trying them one by one", len(work), reason(error))
            alone: dict[int, Outcome | Exception] = {}
            for order, _ in work:
                alone.update(zip([order.position], self._train([order]), strict=True))
            return alone
        for order, job in work:
            remember(order.state, job.memory)
        return {
            order.position: (row, loss, job.num_examples, job.told)
            for (order, job), row, loss in zip(work, rows.unbind(), losses, strict=True)
        }

    def _loop(self, order: Order, job: Job) -> Outcome | Exception:
        try:
            delta, loss = reference.train(
                self.replica, job, order.vector, self.hooks, order.scale, order.proximal, order.references
            )
        except Exception as error:
            return error
        remember(order.state, job.memory)
        return delta, loss, job.num_examples, job.told

    @property
    def engine(self) -> Engine:
        """This thread's own engine of the stacked or the vmap path."""
        if not hasattr(self._threads, "engine"):
            if self.path.engine is None:
                raise FedsimError("the reference path trains without an engine")
            self._threads.engine = self.path.engine()
        return cast(Engine, self._threads.engine)

    @property
    def replica(self) -> Replica:
        """This thread's own module."""
        if not hasattr(self._threads, "replica"):
            self._threads.replica = Replica(self.workload)
        return cast(Replica, self._threads.replica)

    def _reply(
        self, message: Message, order: Order, delta: Tensor, loss: float, examples: int, told: Mapping[str, float]
    ) -> Message:
        config = config_of(message.content)
        vector = delta if config.get("reply") == "delta" else order.vector + delta
        counted = examples if self.workload.tells_counts else 1
        metrics = MetricRecord({"num-examples": counted})
        if self.workload.secrecy != "server" and (examples or counted == 0):
            metrics.update({"loss": loss, **told})
        content = RecordDict({"arrays": Flat(vector, self.workload.layout), "metrics": metrics})
        if order.compromised is not None:
            content[ADVERSARY] = ConfigRecord({"acted": order.client in self.hooks.touched})
        return Message(as_asked(message, content), reply_to=message)

    def _node(self, message: Message, context: Context, received: dict[int, Tensor]) -> Node:
        content, client = message.content, client_of(context)
        round = int(cast(int, config_of(content).get("server-round", 0)))
        vector = self.reader.vector(content, received) if arrays_of(content) is not None else None
        compromised = self.reader.compromised(content, client, round, vector)
        return Node(self, client, round, vector, context.state, compromised)

    def _answer(self, message: Message, node: Node) -> Message:
        kind = message.metadata.message_type
        if kind in ("evaluate", "evaluate.default"):
            answer = RecordDict({"metrics": measure(node)})
        elif kind in self.handlers:
            answer = self.handlers[kind](node, message.content)
        else:
            raise ValueError(f"no handler '{kind}'; handlers: train, evaluate, {', '.join(self.handlers)}")
        return Message(as_asked(message, answer), reply_to=message)

    def _answers(self, kind: str, nodes: Mapping[int, Node], messages: Sequence[Message]) -> dict[int, Message]:
        """The replies of clients, by the positions of their messages, whose handler takes them all at once."""
        found = {}
        answers = self.together[kind](list(nodes.values()), [messages[position].content for position in nodes])
        for position, answer in zip(nodes, answers, strict=True):
            message = messages[position]
            if isinstance(answer, Exception):
                found[position] = error_reply(message, self._told(answer))
            else:
                found[position] = Message(as_asked(message, answer), reply_to=message)
        return found


def _by_memory(work: list[tuple[Order, Job]]) -> list[list[tuple[Order, Job]]]:
    """Clients that can train in one tensor: those whose optimizers have made as many steps."""
    groups: dict[Any, list[tuple[Order, Job]]] = {}
    for order, job in work:
        groups.setdefault(signature(job.memory), []).append((order, job))
    return list(groups.values())


def _partition(node: Node, content: RecordDict) -> RecordDict:
    return RecordDict({"partition": MetricRecord({"partition-id": node.client})})
