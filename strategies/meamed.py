"""Mean around median: in every coordinate the mean of the n − f values that are closest to the median.

Every client counts once. Needs n > f.

Xie, Koyejo & Gupta, "Generalized Byzantine-tolerant SGD", 2018, arXiv 1802.10116.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedsim.errors import Fault
from fedsim.updates import Aggregate, Updates
from strategies.bulyan import around_median
from strategies.defense import Defense, Round, defense, require

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("meamed")
class Meamed(Defense):
    """The coordinate-wise mean around the median.

    Args:
        malicious: assumed number of malicious clients f in a round: so many values of each coordinate are left out.
    """

    cost = "n·log²n·d"
    coordinatewise = True
    translation_equivariant = True
    scale_equivariant = True

    malicious: Annotated[int, Field(ge=0)] = 1

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        n = scenario.cohort
        if n <= self.malicious:
            yield Fault("malicious", self.malicious, f"at most {n - 1} of {n} clients a round", ("client.per_round",))

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        n, f = len(updates), self.malicious
        require(n > f, "meamed", f"{n} clients with malicious = {f}", f"more than {f} clients")
        return Aggregate(around_median(updates.values, n - f), torch.full((n,), torch.nan, dtype=torch.float64))
