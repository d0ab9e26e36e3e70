"""Federated averaging: the mean of the updates, weighted by example count.

Δ = Σ_k n_k Δ_k / Σ_k n_k. No defense: the baseline, and the way to end a list of filters explicitly.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
arXiv 1602.05629.
"""

from __future__ import annotations

from fedsim.updates import Aggregate, Updates
from strategies.defense import Defense, Round, defense


@defense("fedavg")
class FedAvg(Defense):
    """The mean weighted by example count."""

    cost = "n·d"
    translation_equivariant = True
    scale_equivariant = True
    sensitivity = "sum"

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        return super().combine(updates, ctx)
