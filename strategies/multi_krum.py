"""Multi-Krum: the mean of the m updates closest to their nearest neighbours.

Scores as in Krum, s_i = sum of the n − f − 2 smallest squared distances; the m updates with the lowest s_i are
averaged, all with the same weight, as in the paper (Flower weights them by example count). m = n − f unless given;
m = 1 is Krum. (ByzFL sums n − f − 1 distances: its scores for f are ours for f − 1.)

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017,
arXiv 1703.02757.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedsim.errors import Fault
from fedsim.updates import Selection, Updates, lowest, share
from strategies.defense import Defense, Round, defense, require
from strategies.krum import neighbour_scores, too_many

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("multi_krum")
class MultiKrum(Defense):
    """The mean of the most central updates.

    Args:
        malicious: assumed number of malicious clients f in a round; needs n > 2f + 2.
        keep: m, a share (float) or count (int) of the round's clients; n − f if absent.
    """

    cost = "n²·d"
    translation_equivariant = True
    scale_equivariant = True

    malicious: Annotated[int, Field(ge=0)] = 1
    keep: Annotated[float, Field(gt=0, le=1)] | Annotated[int, Field(ge=1)] | None = None

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from too_many(self.malicious, scenario)
        if self.keep is not None and not 1 <= share(self.keep, scenario.cohort) <= scenario.cohort:
            accepted = f"1 to {scenario.cohort} clients a round, or the share that they are"
            yield Fault("keep", self.keep, accepted, ("client.per_round",))

    def select(self, updates: Updates, ctx: Round) -> Selection:
        n, f = len(updates), self.malicious
        require(n > 2 * f + 2, "multi_krum", f"{n} clients with malicious = {f}", f"more than 2·{f} + 2 clients")
        keep = n - f if self.keep is None else max(1, min(n, share(self.keep, n)))
        scores = neighbour_scores(updates.squared_distances(), n - f - 2)
        return Selection.equal(lowest(scores, keep, updates), updates, scores)
