"""Min-sum: as far as a row may go without being farther from all others together than a known one is.

Every malicious client sends μ + γ·p, with the largest γ ≥ 0 for which

    Σ_i ‖μ + γ·p − Δ_i‖² ≤ max_i Σ_j ‖Δ_i − Δ_j‖²

over the updates Δ_i that the adversary knows, with μ and p as in ``min_max``. γ is found by bisection. Under two
known updates the rows stay as they are, and the round is counted as skipped.

Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
Learning", NDSS 2021, section IV-C.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from attacks.attack import Attack, Craft, attack
from attacks.deviation import Direction, Spread, largest_gamma
from attacks.knowledge import needs_two_rows
from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@attack("min_sum")
class MinSum(Attack):
    """The largest deviation whose summed squared distances stay within those of the known updates.

    Args:
        direction: p, ``unit``, ``std`` or ``sign``.
    """

    cost = "m²·d, m the rows it knows"
    knowledge = "colluding"

    direction: Direction = "std"

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from needs_two_rows(scenario, "min_sum")

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        seen = ctx.seen()
        if len(seen) < 2:
            return ctx.skip(rows)
        spread = Spread.of(seen, self.direction)
        bound = float(spread.squared_distances.sum(1).max())
        gamma = largest_gamma(lambda g: float(spread.squared_from(g).sum()), bound)
        return spread.crafted(gamma, rows)
