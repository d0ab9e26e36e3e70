"""Coordinate-wise trimmed mean: in every coordinate the mean without the smallest and the largest values.

With b = ⌊trim·n⌋ (or ``trim`` itself, a count) the b smallest and the b largest values of each coordinate are cut;
every client counts once. Needs n > 2b.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, arXiv 1803.01498.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedsim.errors import Fault
from fedsim.order_statistics import mean_of_ranks
from fedsim.updates import Aggregate, Updates, share
from strategies.defense import Defense, Round, defense, require

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("trimmed_mean")
class TrimmedMean(Defense):
    """The coordinate-wise mean without the extremes.

    Args:
        trim: share (float) or count (int) of the clients that is cut on each side.
    """

    cost = "n·log²n·d"
    coordinatewise = True
    translation_equivariant = True
    scale_equivariant = True

    trim: Annotated[float, Field(ge=0, lt=0.5)] | Annotated[int, Field(ge=0)] = 0.1

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        n = scenario.cohort
        if n <= 2 * share(self.trim, n):
            accepted = f"at most {(n - 1) // 2} of {n} clients a round on each side"
            yield Fault("trim", self.trim, accepted, ("client.per_round",))

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        n = len(updates)
        cut = share(self.trim, n)
        require(n > 2 * cut, "trimmed_mean", f"{n} clients with {cut} cut on each side", f"more than {2 * cut} clients")
        update = mean_of_ranks(updates.values, cut, n - 1 - cut)
        return Aggregate(update, torch.full((n,), torch.nan, dtype=torch.float64))
