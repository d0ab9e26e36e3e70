"""What one client has to do in one round: which examples it visits, in which order, in which batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacks.attack import Attack, Compromised
from fedsim import rng
from fedsim.client.memory import Memory
from fedsim.client.objective import class_mask
from fedsim.client.workload import Workload
from fedsim.data.examples import Examples
from fedsim.optim.batches import shuffled


@dataclass
class Job:
    """A client's training in a round.

    Args:
        client: partition id.
        round: the round, from 1.
        num_examples: examples that it trains on.
        source: where its batches are taken from.
        order: positions in ``source`` of all examples that it visits, step after step.
        sizes: examples in each step.
        compromised: who it is to the adversary, None if it is honest.
        augmenter: the generator of its augmentations.
        present: (C,) which classes it holds, where its loss asks.
        memory: its optimizer's state, where that is kept over rounds: at the start, and after training at its end.
        told: measures that its optimizer tells of, after training.
        poisoned: an attack has given it other examples than its own.
    """

    client: int
    round: int
    num_examples: int
    source: Examples
    order: NDArray[np.int64]
    sizes: list[int]
    compromised: Compromised | None
    augmenter: np.random.Generator | None
    present: Tensor | None = None
    memory: Memory = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    poisoned: bool = False

    @property
    def steps(self) -> int:
        return len(self.sizes)


def local_examples(
    workload: Workload,
    client: int,
    compromised: Compromised | None,
    attacks: Sequence[Attack],
    adapt: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Examples, NDArray[np.int64]]:
    """Where a client's examples lie, and at which positions: its view of them, poisoned if it is malicious."""
    rows = workload.rows(client)
    if workload.view is None and compromised is None and adapt is None:
        return workload.examples, rows
    examples = clean_examples(workload, client, adapt)
    if compromised is not None:
        compromised = compromised.holding(examples)
        for each in attacks:
            examples = each.poison(examples, compromised)
    return examples, np.arange(len(examples), dtype=np.int64)


def clean_examples(workload: Workload, client: int, adapt: Callable[[Tensor], Tensor] | None = None) -> Examples:
    """A copy of a client's view of its examples, as its adapter maps them."""
    examples = workload.examples.take(workload.rows(client))
    examples = examples if workload.view is None else workload.view(examples, client, workload.seed)
    return examples if adapt is None else Examples(adapt(examples.inputs), examples.targets)


def make_job(
    workload: Workload,
    client: int,
    round: int,
    compromised: Compromised | None,
    attacks: Sequence[Attack],
    adapt: Callable[[Tensor], Tensor] | None = None,
) -> Job:
    """The seeded work of a client: a new permutation each epoch, the short last batch kept; or its optimizer's own."""
    source, rows = local_examples(workload, client, compromised, attacks, adapt)
    poisoned = False
    if compromised is not None:
        own = clean_examples(workload, client, adapt)
        poisoned = not (torch.equal(source.inputs, own.inputs) and torch.equal(source.targets, own.targets))
        compromised = compromised.holding(own)
    n = len(rows)
    steps = workload.steps_of(n)
    if workload.straggler and steps:
        stream = rng.stream(workload.seed, "client.straggler", round=round, client=client)
        straggles, done = stream.random(2)
        if straggles < workload.straggler:
            steps = max(1, int(done * steps))
    draw = getattr(workload.optimizer, "batches", shuffled)
    order, sizes = draw(
        n, steps, workload.batch_size, rng.stream(workload.seed, "client.shuffle", round=round, client=client)
    )
    augmenter = (
        rng.stream(workload.seed, "client.augment", round=round, client=client) if workload.augmentations else None
    )
    asked = workload.loss is not None and workload.loss.masks
    present = class_mask(workload.num_classes, source.targets[as_index(rows, workload.device)]) if asked else None
    return Job(client, round, n, source, rows[order], sizes, compromised, augmenter, present, poisoned=poisoned)


def augment(workload: Workload, inputs: Tensor, job: Job) -> Tensor:
    """One batch of a client as its augmentations leave it."""
    for each in workload.augmentations:
        inputs = each.apply(inputs, job.augmenter)
    return inputs


def as_index(order: NDArray[np.int64], device: str) -> Tensor:
    return torch.from_numpy(order).to(device)
