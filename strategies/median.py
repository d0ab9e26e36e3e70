"""Coordinate-wise median: in every coordinate the middle value of the updates.

For an even number of clients the mean of the two middle values. Every client counts once, whatever number of
examples it claims.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, arXiv 1803.01498.
"""

from __future__ import annotations

import torch

from fedsim.order_statistics import mean_of_ranks
from fedsim.updates import Aggregate, Updates
from strategies.defense import Defense, Round, defense


@defense("median")
class Median(Defense):
    """The coordinate-wise median."""

    cost = "n·log²n·d"
    coordinatewise = True
    translation_equivariant = True
    scale_equivariant = True

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        n = len(updates)
        update = mean_of_ranks(updates.values, (n - 1) // 2, n // 2)
        return Aggregate(update, torch.full((n,), torch.nan, dtype=torch.float64))
