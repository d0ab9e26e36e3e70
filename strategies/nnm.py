"""Nearest-neighbour mixing: every update becomes the mean of the n − f updates closest to it.

y_i = (1/(n − f)) Σ over the n − f nearest neighbours of Δ_i, itself among them. A pre-aggregation: any rule follows,
and with it reaches the best robustness order that is possible under heterogeneous data. Needs n > 2f.

Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", AISTATS 2023,
arXiv 2302.01772.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedsim.errors import Fault
from fedsim.updates import Updates, ranked
from strategies.bucketing import unmixed
from strategies.defense import Defense, Round, defense, require

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("nnm")
class NNM(Defense):
    """Every update is mixed with its nearest neighbours.

    Args:
        malicious: assumed number of malicious clients f in a round; needs n > 2f.
    """

    cost = "n²·d"
    translation_equivariant = True
    scale_equivariant = True

    malicious: Annotated[int, Field(ge=0)] = 1

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        n, f = scenario.cohort, self.malicious
        if n <= 2 * f:
            yield Fault("malicious", f, f"at most {(n - 1) // 2} of {n} clients a round", ("client.per_round",))
        yield from unmixed(scenario, "nnm")

    def transform(self, updates: Updates, ctx: Round) -> Updates:
        n, f = len(updates), self.malicious
        require(n > 2 * f, "nnm", f"{n} clients with malicious = {f}", f"more than 2·{f} clients")
        distances = updates.squared_distances().clone()
        distances.fill_diagonal_(-1.0)
        nearest = ranked(distances, updates)[:, : n - f]
        return updates.mix(torch.zeros(n, n, dtype=torch.float64).scatter_(1, nearest, 1 / (n - f)))
