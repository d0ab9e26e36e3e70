"""What our own grids share: node ids by partition, states by partition, and running a chunk of messages.

Two kinds of app run on them. Ours (it has ``plan`` and ``many``) trains chunks of clients at once; any other
Flower ClientApp, a guest, is called once a message. A state is what a client left when it last answered: changes
of a client that failed, or whose reply came too late, are dropped, as on Flower's own engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Self

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedsim import flower, rng
from fedsim.errors import FedsimError

APP_RAISED, NODE_UNAVAILABLE, APP_CRASHED = 2, 5, 8
"""Flower's error codes."""


class EmbeddedGrid(Grid):
    """A Flower grid whose nodes are the partitions 0 … num_clients - 1.

    Args:
        app: the ClientApp that every node runs.
        num_clients: nodes; they cost nothing until they are sent a message.
        run_config: what each node's Context holds as ``run_config``.
        seed: if given, Python's, NumPy's and torch's global random states are seeded around each call of a guest
            by (seed, message type, group id, partition), and restored.
    """

    partitions_in_order = True

    def __init__(
        self, app: Any, num_clients: int, *, run_config: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> None:
        if num_clients < 1:
            raise FedsimError(f"num_clients: given {num_clients}; accepted: at least 1")
        flower.set_identity()
        self.app = app
        self.num_clients = num_clients
        self.run_config = dict(run_config or {})
        self.seed = seed
        self.client_state: dict[int, RecordDict] = {}
        self.incidents: list[dict[str, Any]] = []
        self._run = Run.create_empty(1)
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> range:
        return range(flower.FIRST_NODE, flower.FIRST_NODE + self.num_clients)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        sent = [flower.with_id(message) for message in messages]
        for reply in self.send_and_receive(sent):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(each) for each in message_ids if each in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies in the order of the messages; those that do not come within ``timeout`` seconds are left out."""
        sent = [flower.with_id(message) for message in messages]
        replies: list[Message | None] = [None] * len(sent)
        known = []
        for position, message in enumerate(sent):
            if message.metadata.dst_node_id in self.get_node_ids():
                known.append(position)
            else:
                reason = f"no node {message.metadata.dst_node_id} on this grid"
                replies[position] = flower.error_reply(message, reason, NODE_UNAVAILABLE)
        if known:
            self._exchange(sent, known, replies, timeout)
        return [flower.with_id(reply) for reply in replies if reply is not None]

    def close(self) -> None:
        """End the workers; the states stay."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(
        self, sent: Sequence[Message], known: Sequence[int], replies: list[Message | None], timeout: float | None
    ) -> None:
        """Fill in the replies to the messages at the positions ``known``."""
        raise NotImplementedError

    def _partition(self, message: Message) -> int:
        return message.metadata.dst_node_id - flower.FIRST_NODE

    def _context(self, message: Message) -> Context:
        """A Context with a copy of the client's state."""
        partition = self._partition(message)
        state = self.client_state.get(partition)
        copied = None if state is None else flower.owned_copy(state)
        return flower.context(partition, self.num_clients, self.run_config, copied)

    def _plan(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[list[int]]:
        """Positions of the messages in each chunk: the app's own plan; a guest's messages go one by one."""
        if is_guest(self.app):
            return [[position] for position in range(len(messages))]
        chunks = [list(chunk) for chunk in self.app.plan(messages, contexts)]
        if sorted(position for chunk in chunks for position in chunk) != list(range(len(messages))):
            raise FedsimError("the app's plan does not name every message once")
        return chunks

    def _keep_state(self, message: Message, reply: Message, state: RecordDict) -> None:
        if reply.has_error():
            return
        if state:
            self.client_state[self._partition(message)] = state
        else:
            self.client_state.pop(self._partition(message), None)


def is_guest(app: Any) -> bool:
    """Whether this is any ClientApp, not one of ours that takes chunks."""
    return not (hasattr(app, "plan") and hasattr(app, "many"))


def run_chunk(app: Any, messages: Sequence[Message], contexts: Sequence[Context], seed: int | None) -> list[Message]:
    """A reply or an Error reply for each message; a chunk that fails as a whole is run client by client."""
    if is_guest(app):
        return [_call_guest(app, message, ctx, seed) for message, ctx in zip(messages, contexts, strict=True)]

    before = [flower.owned_copy(ctx.state) for ctx in contexts]
    try:
        replies: list[Message] = app.many(messages, contexts)
        for message, reply in zip(messages, replies, strict=True):
            _check(message, reply)
        return replies
    except (Exception, SystemExit) as error:
        if len(messages) == 1:
            return [flower.error_reply(messages[0], repr(error), APP_RAISED)]
        for ctx, state in zip(contexts, before, strict=True):
            ctx.state = state
        return [run_chunk(app, [message], [ctx], seed)[0] for message, ctx in zip(messages, contexts, strict=True)]


def _call_guest(
    app: Callable[[Message, Context], Message], message: Message, context: Context, seed: int | None
) -> Message:
    meta = message.metadata
    if seed is None:
        states: Any = nullcontext()
    else:
        round = int(meta.group_id) if meta.group_id.isdecimal() else 0
        states = rng.global_states(
            seed, f"guest.{meta.message_type}", round=round, client=meta.dst_node_id - flower.FIRST_NODE
        )
    try:
        with states:
            reply = app(flower.with_content(message, flower.guest_content(message.content)), context)
        _check(message, reply)
        return reply
    except (Exception, SystemExit) as error:
        return flower.error_reply(message, repr(error), APP_RAISED)


def _check(message: Message, reply: object) -> None:
    if not isinstance(reply, Message):
        raise TypeError(f"the app returned {type(reply).__name__} instead of a Message")
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        raise ValueError("the app returned a Message that is not a reply to the one it was given")
