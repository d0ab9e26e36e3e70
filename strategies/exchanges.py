"""Messages between server and clients: a round's training, and the exchanges that parts ask for around it.

A part asks by a generator (``exchanges`` of a defense, ``afterwards`` of an estimator, ``before`` of an analysis): it
yields a :class:`~strategies.defense.Request` and is sent the valid replies, ascending in partition id. Replies pass
checks of their own (:mod:`strategies.validity`); every other one is a fault of the round.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.errors import FedsimError, UpdatesError
from fedsim.flower import Directory, Flat, send
from fedsim.updates import Layout
from strategies.defense import TRAIN, Reply, Request, Round
from strategies.validity import SECOND, InvalidReply, check_answer, form, uninvited, usual


class Post:
    """Writes messages to clients, and tells whose a reply is.

    Args:
        layout: parameters (d) and buffers (b) of the model.
        clients: how many there are.
        scale: round → factor on the clients' learning rate.
    """

    def __init__(self, layout: Layout, clients: int, scale: Callable[[int], float]) -> None:
        self.layout, self.clients, self.scale = layout, clients, scale
        self._grid: Grid | None = None
        self._directory: Directory | None = None

    def connect(self, grid: Grid) -> None:
        """From now on through this grid."""
        if self._grid is not grid:
            self._grid, self._directory = grid, Directory(grid, self.clients)

    @property
    def grid(self) -> Grid:
        assert self._grid is not None
        return self._grid

    @property
    def directory(self) -> Directory:
        assert self._directory is not None
        return self._directory

    def messages(
        self, kind: str, cohort: Sequence[int], vector: Tensor, records: dict[str, Any], server_round: int
    ) -> list[Message]:
        """The same content for each client: the (d + b,) vector, the round's settings, further records."""
        config = ConfigRecord(
            {"server-round": server_round, "reply": "delta", "scale": float(self.scale(server_round))}
        )
        parts = {"arrays": Flat(vector, self.layout), "config": config, **records}
        if not self.directory.ours:
            parts = {key: part.plain() if isinstance(part, Flat) else part for key, part in parts.items()}
        content = RecordDict(parts)
        return [send(content, self.directory.node(client), kind, group=str(server_round)) for client in cohort]

    def sender(self, reply: Message) -> int:
        """The partition that answers; -1 for a node that is not of this federation."""
        partition = self.directory.find(reply.metadata.src_node_id)
        return -1 if partition is None else partition


class Exchanges:
    """The exchanges of one round.

    Args:
        post: connected before the first exchange.
        vector: (d + b,) what is sent where a request names no parameters.
        cohort: partition ids, asked where a request names none.
        faults: (client, reason), to which those of the exchanges are added.
        limit: largest magnitude of a number in a valid reply.
        timeout: seconds to wait for replies.
    """

    def __init__(
        self,
        post: Post,
        vector: Tensor,
        cohort: Sequence[int],
        faults: list[tuple[int, str]],
        *,
        limit: float,
        timeout: float,
    ) -> None:
        self.post, self.vector, self.cohort, self.faults = post, vector, cohort, faults
        self.limit, self.timeout = limit, timeout

    def advance(self, talk: Generator[Request, Any, None], first: Any, ctx: Round, *, until_train: bool) -> None:
        """Play a part's requests until it yields ``TRAIN`` (or, after the training, until it ends).

        Raises:
            FedsimError: it yields ``TRAIN`` never, or twice.
            UpdatesError: nobody has answered validly.
        """
        answer = first
        while True:
            try:
                request = talk.send(answer)
            except StopIteration:
                if until_train:
                    raise FedsimError(f"defense '{ctx.part}': its exchanges ended without yielding TRAIN") from None
                return
            if request is TRAIN:
                if not until_train:
                    raise FedsimError(f"defense '{ctx.part}': its exchanges yield TRAIN twice")
                return
            answer = self._play(request, ctx)

    def played(self, talk: Generator[Request, list[Reply], Any], ctx: Round) -> Any:
        """What a part's exchanges end with.

        Raises:
            UpdatesError: nobody has answered validly.
        """
        replies = None
        while True:
            try:
                request = talk.send(replies) if replies is not None else next(talk)
            except StopIteration as end:
                return end.value
            replies = self._play(request, ctx)

    def _play(self, request: Request, ctx: Round) -> list[Reply]:
        cohort = self.cohort if request.cohort is None else [int(client) for client in request.cohort]
        vector = self.vector
        if request.parameters is not None:
            vector = torch.cat([request.parameters.to(vector), vector[self.post.layout.d :]])
        messages = self.post.messages(request.handler, cohort, vector, dict(request.records), ctx.round)
        answered: dict[int, Reply] = {}
        refused: dict[int, str] = {}
        for reply in self.post.grid.send_and_receive(messages=messages, timeout=self.timeout):
            client = self.post.sender(reply)
            if client not in cohort:
                self.faults.append((client, f"{request.name}: {uninvited(reply)}"))
            elif client in answered or client in refused:
                self.faults.append((client, f"{request.name}: {SECOND}"))
            else:
                try:
                    check_answer(reply, self.limit)
                    answered[client] = Reply(client, reply.content)
                except InvalidReply as error:
                    refused[client] = str(error)
        if request.uniform:
            forms = {client: form(reply.content) for client, reply in answered.items()}
            expected = usual(forms.values())
            for client in [client for client, found in forms.items() if found != expected]:
                refused[client] = "its records are not like those of most clients"
                del answered[client]
        refused |= dict.fromkeys(set(cohort) - answered.keys() - refused.keys(), "no reply")
        self.faults += [(client, f"{request.name}: {refused[client]}") for client in sorted(refused)]
        if cohort and not answered:
            raise UpdatesError(f"{request.name}: no valid reply")
        return [answered[client] for client in sorted(answered)]
