"""Prototype averaging: each row of the head is averaged by the examples of its class that the clients hold.

    Δ_c = Σ_k n_kc Δ_kc / Σ_k n_kc           rows c of the head's weight (and bias): a class no client holds stays
    Δ   = Σ_k n_k Δ_k / Σ_k n_k              everything else

A row of a harmonic head is the prototype of its class. A client without examples of the class only pushes it away, and
here has no say in it; ``mask_absent`` of the loss ``harmonic`` is the other remedy. The counts n_kc are told by the
clients, in a message of their own before the training: they say what a client holds. One that lies moves its say
between the classes; over all of them it has the weight of its row (n_k, or what a filter in front has left of it).

Tan et al., "FedProto: Federated prototype learning across heterogeneous clients", AAAI 2022, arXiv 2105.00243, eq. 6
(a class's weights); Baek et al., "Harmonic loss trains interpretable AI models", 2025, arXiv 2502.01628.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from flwr.app import RecordDict

from fedsim.blocks import exact
from fedsim.errors import FedsimError
from fedsim.flower import as_record, as_tensors
from fedsim.losses.harmonic import class_counts
from fedsim.updates import Aggregate, Updates
from strategies.defense import TRAIN, Defense, Request, Round, defense, require
from strategies.output_layer import output_classes, output_weight

COUNTS, QUERY = "class_counts", "query.class_counts"


@defense("prototype_average")
class PrototypeAverage(Defense):
    """The head's rows averaged by the clients' examples of each class, all else by their examples.

    Without counts (a rule used alone, a preview before the first message) it is the mean by example count.
    """

    cost: ClassVar[str] = "n·d, and n·C counts"
    sees: ClassVar[str] = "updates, and the class counts that each client tells"
    handlers: ClassVar = {QUERY: "count"}
    translation_equivariant: ClassVar[bool] = False
    scale_equivariant: ClassVar[bool] = True

    def fit(self, num_classes: int) -> None:
        if num_classes < 2:
            accepted = "none for targets that are numbers: there are no classes"
            raise FedsimError(f"server.defenses: given 'prototype_average'; accepted: {accepted}")

    def exchanges(self, ctx: Round) -> Generator[Request, Any, None]:
        replies = yield Request("class counts", QUERY)
        told = {str(reply.client): as_tensors(reply.content.array_records[COUNTS])[COUNTS] for reply in replies}
        # What is no count counts for nothing: one client's NaN would be everybody's.
        ctx.state[COUNTS] = {client: each.double().nan_to_num(0, 0, 0).clamp(min=0) for client, each in told.items()}
        yield TRAIN

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        aggregate = super().combine(updates, ctx)
        told = ctx.state.get(COUNTS, {})
        if not told or updates.layout is None:
            return aggregate
        rows, given, classes = output_weight(updates), output_classes(updates), len(next(iter(told.values())))
        accepted = f"{classes}, one a class, in the last layer's weight"
        require(given == classes, "prototype_average: rows", given, accepted)
        shares = torch.stack([told.get(str(client), torch.zeros(classes).double()) for client in updates.client_ids])
        # A client's say over all classes is the weight that its row has by now, whatever it told.
        say = shares / shares.sum(1, keepdim=True).clamp(min=1) * updates.num_examples.cpu()[:, None]
        update = aggregate.update.clone()
        bias = slice(rows.stop, updates.layout.d)
        for block in [rows, bias] if bias.stop - bias.start == classes else [rows]:
            own = exact(updates.values[:, block]).cpu().reshape(len(updates), classes, -1)
            weights = say / torch.where(say.sum(0) > 0, say.sum(0), 1.0)
            update[block] = torch.einsum("kc,kcm->cm", weights, own).to(update).flatten()
        return replace(aggregate, update=update)

    def count(self, node: Any, content: RecordDict) -> RecordDict:
        """How many examples of each class a client holds."""
        counts = class_counts(node.examples().targets, node.workload.num_classes)
        return RecordDict({COUNTS: as_record({COUNTS: counts})})
