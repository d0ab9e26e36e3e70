"""A plug-in for tests: an adversary that watches every message and asks the server what its rows would do."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from flwr.app import Message
from torch import Tensor

from attacks.attack import Attack, Craft


class Watching(Attack):
    """Sends its rows turned, or beyond all limits, and notes what it saw.

    Args:
        huge: sends 1e30.
    """

    knowledge = "omniscient"
    knows_defense = True
    seen: ClassVar[list[tuple[str, int, bool]]] = []
    previews: ClassVar[dict[int, Tensor]] = {}
    received: ClassVar[dict[int, Tensor]] = {}

    huge: bool = False

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        sent = torch.full_like(rows, 1e30) if self.huge else -rows
        ctx.preview(torch.zeros_like(rows))
        self.previews[ctx.round] = ctx.preview(sent)
        self.received[ctx.round] = ctx.reference.clone()
        return sent

    def observe(self, message: Message, reply: Message | None) -> None:
        answered = reply is not None and reply.has_content()
        self.seen.append((message.metadata.message_type, message.metadata.dst_node_id, answered))
        for content in [message.content, *([reply.content] if reply is not None and answered else [])]:
            for record in content.metric_records.values():
                record.clear()
            content.clear()


class Overhearing(Watching):
    """Sees no more than its own clients do."""

    knowledge = "own"
    knows_defense = False

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        return -rows


def none_seen() -> Any:
    for noted in (Watching.seen, Watching.previews, Watching.received):
        noted.clear()
