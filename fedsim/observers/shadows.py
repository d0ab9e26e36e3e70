"""Shadow models: many models, each trained on a random half of a pool, all as one chunk of clients.

A shadow model trains as a client of the scenario does, with its optimizer and loss, alone and for as many steps as it
is told. Shadow models come in pairs of complementary halves, so that each example is in exactly half of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedsim import flower
from fedsim.client.app import FederatedClient
from fedsim.client.workload import Workload
from fedsim.data.examples import Examples, Shares
from fedsim.errors import FedsimError
from fedsim.flower import Flat

BLOCK = 1000
"""Examples in one forward pass."""


def halves(models: int, examples: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """(models, examples) who is trained on what; models 2i and 2i + 1 have complementary halves.

    Args:
        models: an even number.
        examples: in the pool.
        generator: of the division.
    """
    inside = np.zeros((models, examples), dtype=np.bool_)
    for pair in range(models // 2):
        inside[2 * pair, generator.permutation(examples)[: examples // 2]] = True
        inside[2 * pair + 1] = ~inside[2 * pair]
    return inside


def train(
    workload: Workload, pool: Examples, inside: NDArray[np.bool_], start: Tensor, steps: int, seed: int, **other: Any
) -> list[Tensor]:
    """The (d + b,) shadow models.

    Args:
        workload: how clients train.
        pool: examples, of which each model gets its part.
        inside: (k, n) who gets which.
        start: (d + b,) model from which all start.
        steps: local steps of each.
        seed: of their shuffles.
        other: fields of the workload that are different for them (an optimizer, a batch size).

    Raises:
        FedsimError: a model cannot be trained.
    """
    alone = replace(
        workload,
        train=pool,
        shares=Shares.of([np.flatnonzero(row) for row in inside]),
        seed=seed,
        steps=steps,
        epochs=None,
        holdout=0.0,
        dropout=0.0,
        straggler=0.0,
        regularizers=(),
        optimizer_state="reset",
        secrecy="none",
        view=None,
        path="auto",
        **other,
    )
    app = FederatedClient(alone)
    content = RecordDict(
        {"arrays": Flat(start, workload.layout), "config": ConfigRecord({"server-round": 1, "reply": "weights"})}
    )
    messages = [flower.send(content, client + flower.FIRST_NODE, "train") for client in range(len(inside))]
    contexts = [flower.context(client, len(inside)) for client in range(len(inside))]
    found: dict[int, Tensor] = {}
    for chunk in app.plan(messages, contexts):
        replies = app.many([messages[i] for i in chunk], [contexts[i] for i in chunk])
        for i, reply in zip(chunk, replies, strict=True):
            if reply.has_error():
                raise FedsimError(f"a shadow model cannot be trained: {reply.error.reason}")
            found[i] = flower.flatten(reply.content["arrays"], workload.layout, start.dtype)  # type: ignore[arg-type]
    return [found[i] for i in range(len(inside))]


def logits(workload: Workload, model: Tensor, examples: Examples) -> NDArray[np.float64]:
    """(n, C) outputs of a (d + b,) model, in evaluation mode."""
    module = workload.fresh_module().eval()
    workload.layout.load(module, model)
    with torch.no_grad():
        blocks = [
            module(workload.inputs(examples.inputs[i : i + BLOCK])).double().cpu()
            for i in range(0, len(examples), BLOCK)
        ]
    found: NDArray[np.float64] = torch.cat(blocks).numpy()
    return found
