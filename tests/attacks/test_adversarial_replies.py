"""Through the grid: crafted rows and claimed counts reach the server under the client that sent them, and no other."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from attacks.adversary import Adversary
from fedsim import registry
from fedsim.flower import FIRST_NODE, Flat, send
from fedsim.grids.adversarial import AdversarialGrid
from fedsim.grids.local import LocalGrid
from fedsim.updates import Layout

LAYOUT = Layout((("weight", (3,)),), (("running", (2,), "float32"),))


class Counts:
    """Client i replies with i + 1 in every number, from 10 + i examples."""

    def plan(self, messages: list[Message], contexts: list[Context]) -> list[list[int]]:
        return [[i] for i in range(len(messages))]

    def many(self, messages: list[Message], contexts: list[Context]) -> list[Message]:
        replies = []
        for message, context in zip(messages, contexts, strict=True):
            client = int(context.node_config["partition-id"])
            arrays = Flat(torch.full((5,), client + 1.0), LAYOUT)
            content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 10 + client})})
            replies.append(Message(content, reply_to=message))
        return replies


def round_of(adversary: Adversary, cohort: list[int], server_lr: float = 1.0) -> dict[int, tuple[list[float], int]]:
    """Client → (numbers, example count) as the server gets them."""
    config = ConfigRecord({"server-round": 1, "reply": "delta", "scale": 1.0})
    with LocalGrid(Counts(), num_clients=12) as inner:
        grid = AdversarialGrid(inner, adversary, LAYOUT, 12, server_lr=server_lr)
        messages = [
            send(RecordDict({"arrays": Flat(torch.zeros(5), LAYOUT), "config": config}), client + FIRST_NODE, "train")
            for client in cohort
        ]
        replies = list(grid.send_and_receive(messages))
    return {
        reply.metadata.src_node_id - FIRST_NODE: (
            reply.content["arrays"].vector.tolist(),
            int(reply.content["metrics"]["num-examples"]),
        )
        for reply in replies
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("knowledge", ["own", "colluding", "omniscient"])
def test_rows_and_counts_stay_with_their_clients(seed, knowledge):
    flip = registry.make("attack", "sign_flip", scale=2.0)
    adversary = Adversary([flip], 12, count=4, knowledge=knowledge, claim=1000, seed=seed)
    cohort = [7, 2, 11, 0, 5, 9, 3, 10]
    attackers = set(adversary.pool.tolist()) & set(cohort)
    found = round_of(adversary, cohort)
    assert set(found) == set(cohort)
    for client, (numbers, count) in found.items():
        value = client + 1.0
        if client in attackers:
            assert numbers == [-2 * value] * 3 + [value] * 2
            assert count == 1000
        else:
            assert numbers == [value] * 5
            assert count == 10 + client


def test_model_replacement_counts_those_asked_and_leaves_buffers():
    replacement = registry.make("attack", "model_replacement")
    adversary = Adversary([replacement], 12, count=3, seed=2)
    cohort = [*adversary.pool.tolist()[:2], *[c for c in range(12) if c not in adversary.pool][:6]]
    found = round_of(adversary, cohort, server_lr=0.5)
    for client in adversary.pool.tolist()[:2]:
        value = client + 1.0
        assert found[client][0] == [value * 8 / (0.5 * 2)] * 3 + [value] * 2
