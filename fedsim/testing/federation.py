"""A small federation of random data, to run clients without a scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch import Tensor, nn

from fedsim import flower, registry
from fedsim.client.app import FederatedClient
from fedsim.client.workload import Workload
from fedsim.data.examples import Examples, Shares
from fedsim.flower import Flat
from fedsim.updates import Layout

SHAPE, CLASSES = (1, 3, 4), 4


def mlp() -> nn.Module:
    """12-9-4 with a ReLU."""
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, CLASSES))


def workload(
    sizes: Sequence[int] = (10, 7, 0, 1),
    model: Callable[[], nn.Module] = mlp,
    optimizer: Any = None,
    seed: int = 7,
    **more: Any,
) -> Workload:
    """A workload of random examples of shape (1, 3, 4) in four classes.

    Args:
        sizes: examples of each client.
        model: makes the module.
        optimizer: an optimizer part; plain SGD with a rate of 0.1 if None.
        seed: the scenario's seed.
        more: further fields of the workload; batches of 4 and two epochs unless given.
    """
    generator = torch.Generator().manual_seed(3)
    n = sum(sizes)
    train = Examples(torch.randn(n, *SHAPE, generator=generator), torch.randint(0, CLASSES, (n,), generator=generator))
    positions = np.random.default_rng(0).permutation(n)
    shares = Shares.of(np.split(positions, np.cumsum(sizes)[:-1]))
    part = registry.make("optimizer", "sgd", lr=0.1) if optimizer is None else optimizer
    options = {"batch_size": 4, "epochs": 2, **more}
    return Workload(train, shares, model, Layout.of(model()), CLASSES, part, seed, **options)


def initial(load: Workload) -> Tensor:
    """(d + b,) of a freshly made model."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        module = load.model()
    return load.layout.flatten({**dict(module.named_parameters()), **dict(module.named_buffers())}, load.dtype)


def messages(
    load: Workload,
    vector: Tensor,
    clients: Sequence[int],
    *,
    round: int = 3,
    kind: str = "train",
    malicious: Sequence[int] = (),
    config: Mapping[str, Any] | None = None,
) -> tuple[list[Message], list[Context]]:
    """What a server sends to these clients, and their contexts."""
    flower.set_identity()
    arrays = Flat(vector, load.layout)
    sent, contexts = [], []
    for client in clients:
        content = RecordDict({"config": ConfigRecord({"server-round": round, "reply": "delta", **(config or {})})})
        content["arrays"] = arrays
        if client in malicious:
            rank = list(malicious).index(client)
            content["adversary"] = ConfigRecord({"rank": rank, "attackers": len(malicious)})
        sent.append(flower.send(content, client + flower.FIRST_NODE, kind))
        contexts.append(flower.context(client, load.clients))
    return sent, contexts


def replies(app: FederatedClient, vector: Tensor, clients: Sequence[int], **more: Any) -> list[Message]:
    """What these clients answer, trained in the chunks that the app plans."""
    sent, contexts = messages(app.workload, vector, clients, **more)
    answers: dict[int, Message] = {}
    for chunk in app.plan(sent, contexts):
        answers.update(zip(chunk, app.many([sent[i] for i in chunk], [contexts[i] for i in chunk]), strict=True))
    return [answers[i] for i in range(len(sent))]


def deltas(app: FederatedClient, vector: Tensor, clients: Sequence[int], **more: Any) -> Tensor:
    """(k, d + b) deltas of these clients.

    Raises:
        AssertionError: a client failed.
    """
    rows = []
    for reply in replies(app, vector, clients, **more):
        assert reply.has_content(), reply.error.reason
        record = reply.content["arrays"]
        assert isinstance(record, Flat)
        rows.append(record.vector)
    return torch.stack(rows)


def kept_rounds(load: Workload, cohorts: Sequence[Sequence[int]]) -> tuple[list[Tensor], dict[int, RecordDict]]:
    """Rounds of these clients, each of whom keeps its state: (k, d + b) deltas a round, and the states in the end.

    The model of the next round is that of this one's first client.

    Raises:
        AssertionError: a client failed.
    """
    app, vector, found = FederatedClient(load), initial(load), []
    kept: dict[int, RecordDict] = {}
    for number, clients in enumerate(cohorts, start=1):
        sent, contexts = messages(load, vector, clients, round=number)
        for client, context in zip(clients, contexts, strict=True):
            context.state.update(kept.get(client, {}))
        answers = app.many(sent, contexts)
        assert not any(each.has_error() for each in answers)
        kept |= {client: context.state for client, context in zip(clients, contexts, strict=True)}
        found.append(torch.stack([each.content["arrays"].vector for each in answers]))  # type: ignore[union-attr]
        vector = vector + found[-1][0]
    return found, kept
