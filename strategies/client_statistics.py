"""The server's side of a regularizer: it asks the clients for statistics, and sends their means with the training.

A round with ``references = "fresh"``: parameters down, statistics at them up (a second time where the part's mean needs
it), then the training with the means. ``lagged``: the training first, with the means of the last round, then the
statistics at the parameters from which it began. A part that needs nothing of the others asks nothing; its weight in
the round rides on the training message.

Hemati et al., "Understanding Hessian alignment for domain generalization", ICCV 2023, arXiv 2308.11778.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fedsim.client.orders import REGULARIZER
from fedsim.flower import as_record, as_tensors
from fedsim.losses.regularizer import DOMAINS, WEIGHT, Regularizer
from strategies.defense import TRAIN, Defense, Reply, Request, Round

STATISTICS, MEANS, DRAWN, COUNT = "statistics", "means", "draws", "num-examples"


class ClientStatistics(Defense):
    """Stands behind the defenses, without a stage of its own.

    Args:
        part: the regularizer.
        position: its place among the regularizers.
    """

    def __init__(self, part: Regularizer, position: int) -> None:
        self.part, self.position = part, position
        self.name = f"regularizer.{position}"
        self.query = f"query.regularizer_{position}"
        self.own_handlers: Mapping[str, str] = {self.query: "answer"}

    def exchanges(self, ctx: Round) -> Generator[Request, Any, None]:
        """Statistics before the training, or after it."""
        if type(self.part).statistics is Regularizer.statistics:
            self._tell(ctx, {DOMAINS: torch.tensor(float(ctx.num_clients))})
            yield TRAIN
        elif self.part.references == "fresh":
            self._tell(ctx, (yield from self._means(ctx, None)))
            yield TRAIN
        else:
            if MEANS in ctx.state:
                self._tell(ctx, ctx.state[MEANS])
            yield TRAIN
            ctx.state[MEANS] = yield from self._means(ctx, ctx.parameters)

    def _tell(self, ctx: Round, means: Mapping[str, Tensor]) -> None:
        weight = {WEIGHT: torch.tensor(self.part.weight_in(ctx.round))}
        ctx.records[f"{REGULARIZER}{self.position}"] = as_record({**means, **weight})

    def _means(self, ctx: Round, parameters: Tensor | None) -> Generator[Request, list[Reply], dict[str, Tensor]]:
        draws = self.part.draws(ctx.stream("draws"))
        told = {DRAWN: as_record(draws)} if draws else {}
        means = self._mean((yield Request(self.name, self.query, told, parameters=parameters)))
        if self.part.second:
            records = {MEANS: as_record(means)}
            means |= self._mean((yield Request(f"{self.name}, again", self.query, records, parameters=parameters)))
        return means | draws

    def _mean(self, replies: list[Reply]) -> dict[str, Tensor]:
        """The mean over clients that hold examples, added in float64, and over how many."""
        counted = [(float(reply.content.metric_records["metrics"][COUNT]), reply) for reply in replies]  # type: ignore[arg-type]
        counts, replies = [count for count, _ in counted if count > 0], [reply for count, reply in counted if count > 0]
        weights = counts if self.part.average == "examples" else [1.0] * len(counts)
        total = max(sum(weights), 1.0)
        sums: dict[str, Tensor] = {}
        for reply, weight in zip(replies, weights, strict=True):
            for name, value in as_tensors(reply.content.array_records[STATISTICS]).items():
                share = value.double() * (weight / total)
                sums[name] = sums[name] + share if name in sums else share
        kind = as_tensors(replies[0].content.array_records[STATISTICS]) if replies else {}
        means = {name: each.to(kind[name].dtype) for name, each in sums.items()}
        return {**means, DOMAINS: torch.tensor(float(len(replies)))}

    def answer(self, node: Any, content: RecordDict) -> RecordDict:
        """A client's statistics of the received model on its own examples; zeros, which count for nothing, of none."""
        examples, workload = node.examples(), node.workload
        seen = (*node.head_view(examples.inputs), examples.targets)
        if not len(examples):
            seen = tuple(each.new_zeros(1, *each.shape[1:]) for each in seen)
        features, logits, targets = seen
        means = content.get(MEANS)
        if isinstance(means, ArrayRecord):
            named = {name: workload.inputs(each) for name, each in as_tensors(means).items()}
            found = self.part.again(features, logits, named)
        else:
            loss = workload.example_loss(logits, targets).mean()
            drawn = content.get(DRAWN)
            told = as_tensors(drawn) if isinstance(drawn, ArrayRecord) else {}
            found = self.part.statistics(features, logits, targets, loss, told)
        if not len(examples):
            found = {name: torch.zeros_like(each) for name, each in found.items()}
        return RecordDict({STATISTICS: as_record(found), "metrics": MetricRecord({COUNT: len(examples)})})
