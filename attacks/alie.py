"""A little is enough: a shift of all coordinates that hides in the honest clients' spread.

Every malicious client sends μ − z·σ, μ and σ the coordinate-wise mean and standard deviation (ddof 0) of the updates
that the adversary knows: those of its own clients as they trained, of all clients if omniscient. With K clients asked
and f malicious, s = ⌊K/2 + 1⌋ − f honest ones must be won over for a majority, and

    z = Φ⁻¹((K − f − s) / (K − f)).

Where f is a majority already, s counts as 1. Under two known updates, or K < 3, rows stay as they are and the round
is counted in the attack's state as skipped. (ByzFL sends μ + τ·σ with ddof 1: z = −τ·√(n/(n − 1)) of n known updates.)

Baruch et al., "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019, arXiv:1902.06156,
algorithm 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import TYPE_CHECKING

from torch import Tensor

from attacks.attack import Attack, Craft, attack
from attacks.knowledge import needs_two_rows
from attacks.moments import deviation, mean, repeated
from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@attack("alie")
class ALIE(Attack):
    """μ − z·σ of the known updates.

    Args:
        z: how many standard deviations; computed from K and f where it is not given.
    """

    cost = "m·d, m the rows it knows"
    knowledge = "colluding"

    z: float | None = None

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from needs_two_rows(scenario, "alie")
        if self.z is None and scenario.attackers and scenario.cohort < 3:
            yield Fault("z", None, "a number where fewer than 3 clients are asked in a round", ("client.per_round",))

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        z = self.z if self.z is not None else z_max(ctx.num_clients, ctx.num_malicious)
        seen = ctx.seen()
        if len(seen) < 2 or not math.isfinite(z):
            return ctx.skip(rows)
        return repeated(mean(seen) - z * deviation(seen, correction=0), rows)


def z_max(clients: int, malicious: int) -> float:
    """z of K clients, f of them malicious; NaN where it does not exist."""
    honest = clients - malicious
    supporters = max(1, clients // 2 + 1 - malicious)
    if honest <= supporters:
        return math.nan
    return NormalDist().inv_cdf((honest - supporters) / honest)
