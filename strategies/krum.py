"""Krum: the single update closest to its nearest neighbours.

For every client i, s_i = sum of the n − f − 2 smallest squared distances to the other updates; the update with the
lowest s_i becomes the aggregate. Tolerates f malicious clients if n > 2f + 2. (ByzFL sums n − f − 1 distances: its
f is our f + 1.)

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017,
arXiv 1703.02757.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import Tensor

from fedsim.errors import Fault
from fedsim.updates import Selection, Updates, lowest
from strategies.defense import Defense, Round, defense, require

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("krum")
class Krum(Defense):
    """The most central single update.

    Args:
        malicious: assumed number of malicious clients f in a round; needs n > 2f + 2.
    """

    cost = "n²·d"
    translation_equivariant = True
    scale_equivariant = True

    malicious: Annotated[int, Field(ge=0)] = 1

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from too_many(self.malicious, scenario)

    def select(self, updates: Updates, ctx: Round) -> Selection:
        require(
            len(updates) > 2 * self.malicious + 2,
            "krum",
            f"{len(updates)} clients with malicious = {self.malicious}",
            f"more than 2·{self.malicious} + 2 clients",
        )
        scores = neighbour_scores(updates.squared_distances(), len(updates) - self.malicious - 2)
        return Selection.of(lowest(scores, 1, updates), updates, scores)


def neighbour_scores(squared_distances: Tensor, neighbours: int) -> Tensor:
    """(n,) sum of each row's ``neighbours`` smallest squared distances to the others."""
    ordered = squared_distances.sort(dim=1).values
    return ordered[:, 1 : neighbours + 1].sum(dim=1)


def too_many(malicious: int, scenario: Scenario) -> Iterable[Fault]:
    """A fault where a round has n ≤ 2f + 2 clients."""
    n = scenario.cohort
    if n <= 2 * malicious + 2:
        most = f"at most {(n - 3) // 2}" if n >= 3 else "which no f does"
        yield Fault("malicious", malicious, f"n > 2f + 2 with n = {n} clients a round: {most}", ("client.per_round",))
