"""A plug-in for tests: a defense with three exchanges a round and memory on the clients."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from strategies.defense import TRAIN, Defense, Request, Round


class ThreeExchanges(Defense):
    """Asks how often each client was asked before, trains, then asks for a vote on the step's size.

    Args:
        shrink: factor on the step where most clients vote against it.
    """

    shrink: float = 0.5
    handlers = {"query.visits": "visits", "train.vote": "vote"}

    def exchanges(self, ctx: Round) -> Generator[Request, Any, None]:
        visits = yield Request("visits", "query.visits")
        counts = {reply.client: int(reply.content["visits"]["count"]) for reply in visits}
        ctx.state["visits"] = {str(client): count for client, count in counts.items()}
        ctx.records["hint"] = ConfigRecord({"most": max(counts.values())})
        updates = yield TRAIN
        assert ctx.aggregate is not None
        assert ctx.parameters is not None
        assert len(updates) > 0
        votes = yield Request("vote", "train.vote", parameters=ctx.parameters + ctx.aggregate.update)
        against = sum(float(reply.content["vote"]["loss"]) > 2.0 for reply in votes)
        ctx.state["against"] = against
        if against > len(votes) / 2:
            ctx.aggregate.update = ctx.aggregate.update * self.shrink

    def visits(self, node: Any, content: RecordDict) -> RecordDict:
        record = node.state.get("visits", MetricRecord({"count": 0}))
        node.state["visits"] = MetricRecord({"count": int(record["count"]) + 1})
        return RecordDict({"visits": node.state["visits"].copy()})

    def vote(self, node: Any, content: RecordDict) -> RecordDict:
        import torch

        examples = node.examples()
        loss = torch.nn.functional.cross_entropy(node.predict(examples.inputs), examples.targets)
        node.state["last"] = ArrayRecord({"head": loss.reshape(1)})
        return RecordDict({"vote": MetricRecord({"loss": float(loss)})})
