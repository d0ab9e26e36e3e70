"""A client's personal adapter: learned in an exchange of its own, kept in the client's state, never sent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fedsim import rng
from fedsim.client.orders import reason
from fedsim.client.randomness import seeded_globally
from fedsim.client.workload import Workload
from fedsim.flower import as_record, as_tensors

if TYPE_CHECKING:
    from fedsim.client.node import Node

log = logging.getLogger("fedsim")

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
    start = _start(node, content)
    if start is not None:
        _keep(node, node.workload.adapter.fit(*start))
    return _told(node)


def learn_adapters(nodes: Sequence[Node], contents: Sequence[RecordDict]) -> list[RecordDict | Exception]:
    """What :func:`learn_adapter` does, for many clients at once; the answer of each, or why it failed.

    Clients whose maps cannot be learned together are tried one by one.
    """
    answers: list[RecordDict | Exception] = []
    starts: dict[int, Any] = {}
    for i, (node, content) in enumerate(zip(nodes, contents, strict=True)):
        try:
            start = _start(node, content)
        except Exception as error:
            answers.append(error)
            continue
        answers.append(_told(node))
        if start is not None:
            starts[i] = start
    if not starts:
        return answers
    try:
        maps = nodes[0].workload.adapter.fit_together(list(starts.values()))
    except Exception as error:
        if len(starts) == 1:
            return [error if i in starts else answer for i, answer in enumerate(answers)]
        log.warning("the maps of %d clients failed (%s); trying them one by one", len(starts), reason(error))
        for i in starts:
            answers[i] = learn_adapters([nodes[i]], [contents[i]])[0]
        return answers
    for i, learned in zip(starts, maps, strict=True):
        _keep(nodes[i], learned)
    return answers


def _start(node: Node, content: RecordDict) -> tuple[Any, Tensor, Tensor, int] | None:
    """What the fit of the client's map is given; None where there is nothing to learn."""
    workload = node.workload
    if RECORD in node.state:
        return None
    examples = node.clean()
    if len(examples) == 0:
        return None
    if len(examples) < 2:
        raise ValueError("holds 1 example; a map is learned from 2 or more")
    reference = workload.inputs(as_tensors(content.array_records[REFERENCE])["inputs"])
    seed, key = workload.seed, {"round": node.round, "client": node.client}
    with seeded_globally(rng.integer(seed, "client.adapter.init", **key)):
        before = workload.adapter.first(examples.inputs)
    return before, examples.inputs, reference, rng.integer(seed, "client.adapter.batches", **key)


def _keep(node: Node, learned: Mapping[str, Tensor]) -> None:
    node.state[RECORD] = as_record({name: each.to("cpu", torch.float64) for name, each in learned.items()})


def _told(node: Node) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"num-examples": len(node.workload.rows(node.client))})})
