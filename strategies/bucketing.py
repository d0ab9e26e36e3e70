"""Bucketing: clients are shuffled into buckets of s, and the buckets' means go on in their place.

y_b = mean of the s updates in bucket b, under a new random permutation of the clients in every round. The ⌈n/s⌉ means
vary less than the updates do, at the price of more malicious ones among them: up to f of ⌈n/s⌉. A pre-aggregation: any
rule follows. Every bucket carries the same weight, and stands in the rule under its smallest partition id.

Karimireddy, He & Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022,
arXiv 2006.09365, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedsim.errors import Fault
from fedsim.updates import Updates
from strategies.defense import Defense, Round, defense
from strategies.spread import in_id_order

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

REMEMBERING = ("fldetector", "foolsgold", "sam_gs", "prototype_average")
"""Rules that keep what each client sent in earlier rounds, or has told beside."""


@defense("bucketing")
class Bucketing(Defense):
    """Means of random buckets in place of the updates.

    Args:
        size: s, updates in a bucket; the last one may hold fewer.
    """

    cost = "n·d"
    translation_equivariant = True
    scale_equivariant = True

    size: Annotated[int, Field(ge=1)] = 2

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from unmixed(scenario, "bucketing")

    def transform(self, updates: Updates, ctx: Round) -> Updates:
        n = len(updates)
        shuffled = in_id_order(updates.client_ids)[torch.from_numpy(ctx.stream("buckets").permutation(n))]
        buckets = [shuffled[start : start + self.size] for start in range(0, n, self.size)]
        mixing = torch.zeros(n, n, dtype=torch.float64)
        first = []
        for bucket in buckets:
            row = min(bucket.tolist(), key=updates.client_ids.__getitem__)
            mixing[row, bucket] = 1 / len(bucket)
            first.append(row)
        mixed = updates.mix(mixing).rows(sorted(first, key=updates.client_ids.__getitem__))
        return mixed.replace(num_examples=torch.ones(len(first), dtype=torch.float64))


def unmixed(scenario: Scenario, mixer: str) -> Iterator[Fault]:
    """The rules behind a mixer that would keep a mean of several clients as what one of them sent."""
    names = [part.name for part in scenario.server.defenses]
    for position, name in enumerate(names):
        if name in REMEMBERING and mixer in names[:position]:
            accepted = (
                f"none behind '{mixer}', whose rows are of several clients: it goes by what each one sent or told"
            )
            yield Fault(f"/server.defenses[{position}]", name, accepted)
