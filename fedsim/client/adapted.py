"""A client's personal adapter: learned in an exchange of its own, kept in the client's state, never sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fedsim import rng
from fedsim.client.randomness import seeded_globally
from fedsim.client.workload import Workload
from fedsim.flower import as_record, as_tensors

if TYPE_CHECKING:
    from fedsim.client.node import Node

RECORD, REFERENCE, ADAPT = "client.adapter", "reference", "query.adapter"
"""Key of the map in a client's state; record and type of the message that brings the reference."""

Adapt = Callable[[Tensor], Tensor]


def adapt_of(workload: Workload, state: RecordDict) -> Adapt | None:
    """The client's map of inputs; None where it has none."""
    record = state.get(RECORD)
    if workload.adapter is None or not isinstance(record, ArrayRecord):
        return None
    part, learned = workload.adapter, as_tensors(record)

    def adapt(inputs: Tensor) -> Tensor:
        mapped: Tensor = part.apply(learned, workload.inputs(inputs))
        return mapped

    return adapt


def learn_adapter(node: Node, content: RecordDict) -> RecordDict:
    """The client's handler: learn the map, unless it has one or holds nothing, from its own inputs to the reference.

    Raises:
        ValueError: it holds one example alone.
    """
    workload = node.workload
    told = RecordDict({"metrics": MetricRecord({"num-examples": len(workload.rows(node.client))})})
    if RECORD in node.state:
        return told
    examples = node.clean()
    if len(examples) == 0:
        return told
    if len(examples) < 2:
        raise ValueError("holds 1 example; a map is learned from 2 or more")
    reference = workload.inputs(as_tensors(content.array_records[REFERENCE])["inputs"])
    seed, key = workload.seed, {"round": node.round, "client": node.client}
    with seeded_globally(rng.integer(seed, "client.adapter.init", **key)):
        before = workload.adapter.first(examples.inputs)
    batches = rng.integer(seed, "client.adapter.batches", **key)
    learned = workload.adapter.fit(before, examples.inputs, reference, batches)
    node.state[RECORD] = as_record({name: each.to("cpu", torch.float64) for name, each in learned.items()})
    return told
