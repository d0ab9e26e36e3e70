"""The reference path against a loop written out by hand, and what a node answers."""

from __future__ import annotations

import math

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import nn

from fedsim import flower, registry, rng
from fedsim.client.app import FederatedClient
from fedsim.client.workload import Workload
from fedsim.flower import Flat
from fedsim.testing import federation
from fedsim.testing.federation import initial, mlp, replies

SEED = 7


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 2, padding=2), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(20, 4),
    )  # fmt: skip


def workload(sizes=(10, 7, 0, 1), **more) -> Workload:
    return federation.workload(sizes, path="reference", **more)


def by_hand(load: Workload, vector: torch.Tensor, client: int, round: int = 3) -> torch.Tensor:
    module = load.model().to(memory_format=torch.channels_last)
    load.layout.load(module, vector)
    options = vars(load.optimizer)
    optimizer = type(load.optimizer).torch_class(module.parameters(), **options)
    rows = load.shares[client]
    generator = rng.stream(SEED, "client.shuffle", round=round, client=client)
    for _ in range(load.epochs):
        order = generator.permutation(len(rows))
        for start in range(0, len(rows), load.batch_size):
            chosen = torch.as_tensor(rows[order[start : start + load.batch_size]], dtype=torch.long)
            inputs = load.train.inputs[chosen]
            if any(isinstance(each, nn.Conv2d) for each in module.modules()):
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs), load.train.targets[chosen]).backward()
            optimizer.step()
    after = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return load.layout.flatten(after) - vector


@pytest.mark.parametrize("model", [mlp, cnn])
@pytest.mark.parametrize(
    ("optimizer", "options"), [("sgd", {"lr": 0.1}), ("sgd", {"lr": 0.1, "momentum": 0.9}), ("adam", {"lr": 0.01})]
)
def test_equals_a_plain_loop_bit_for_bit(model, optimizer, options):
    torch.set_num_threads(1)
    load = workload(sizes=(10, 7), model=model, optimizer=registry.make("optimizer", optimizer, **options))
    vector = initial(load)
    for client, reply in enumerate(replies(FederatedClient(load), vector, [0, 1])):
        assert torch.equal(reply.content["arrays"].vector, by_hand(load, vector, client))
        assert reply.content["metrics"]["num-examples"] == [10, 7][client]
        assert math.isfinite(reply.content["metrics"]["loss"])


def test_a_client_without_examples_sends_zeros():
    load = workload()
    reply = replies(FederatedClient(load), initial(load), [2])[0]
    assert not reply.content["arrays"].vector.any()
    assert reply.content["metrics"]["num-examples"] == 0


def test_the_received_vector_is_never_written():
    load = workload(model=cnn, sizes=(10, 7))
    vector = initial(load)
    before = vector.clone()
    replies(FederatedClient(load), vector, [0, 1])
    replies(FederatedClient(load), vector, [0, 1], kind="evaluate")
    assert torch.equal(vector, before)


def test_flower_arrays_are_answered_with_flower_arrays_and_weights():
    load = workload()
    app, vector = FederatedClient(load), initial(load)
    delta = replies(app, vector, [0])[0].content["arrays"].vector
    content = RecordDict({"arrays": Flat(vector, load.layout).plain(), "config": ConfigRecord({"server-round": 3})})
    reply = app(flower.send(content, 2, "train"), flower.context(0, 4))
    arrays = reply.content["arrays"]
    assert type(arrays) is ArrayRecord
    assert torch.allclose(flower.flatten(arrays, load.layout), vector + delta)


def test_a_malformed_message_is_an_error_reply():
    load = workload()
    app = FederatedClient(load)
    reply = app(
        flower.send(RecordDict({"config": ConfigRecord({"server-round": 1})}), 2, "train"), flower.context(0, 4)
    )
    assert reply.has_error()
    assert "no arrays" in reply.error.reason


def test_partition_and_own_handlers_with_state():
    load = workload()

    def count(node, content):
        seen = int(node.state["seen"]["n"]) + 1 if "seen" in node.state else 1
        node.state["seen"] = ConfigRecord({"n": seen})
        outputs = node.predict(node.examples().inputs)
        return RecordDict({"out": ConfigRecord({"seen": seen, "rows": len(outputs), "round": node.round})})

    app = FederatedClient(load, handlers={"query.count": count})
    content = RecordDict({"config": ConfigRecord({"server-round": 5}), "arrays": Flat(initial(load), load.layout)})
    context = flower.context(1, 4)
    first = app(flower.send(content, 3, "query.count"), context)
    second = app(flower.send(content, 3, "query.count"), context)
    assert dict(first.content["out"]) == {"seen": 1, "rows": 7, "round": 5}
    assert second.content["out"]["seen"] == 2
    answer = app(flower.send(RecordDict(), 3, "query.partition"), context)
    assert answer.content["partition"]["partition-id"] == 1
    assert isinstance(answer, Message)
