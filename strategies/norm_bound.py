"""Norm bounding: no update is longer than a given radius.

Δ_i · min(1, radius / ‖Δ_i‖), before whatever rule follows. It bounds what one client can do to a mean, and what a
scaled (model replacement) update gains; it does not look for malicious ones.

Sun et al., "Can You Really Backdoor Federated Learning?", 2019, arXiv 1911.07963.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsim.updates import Updates
from strategies.defense import Defense, Round, defense


@defense("norm_bound")
class NormBound(Defense):
    """Every update is shortened to the radius.

    Args:
        radius: largest Euclidean norm of an update.
    """

    cost = "n·d"

    sensitivity = "row clip"

    radius: Annotated[float, Field(gt=0)] = 5.0

    def transform(self, updates: Updates, ctx: Round) -> Updates:
        return shortened(updates, self.radius)


def shortened(updates: Updates, radius: float) -> Updates:
    """The updates with rows longer than the radius cut to it; the object itself where none is."""
    long = (updates.norms > radius).nonzero().flatten()
    if len(long) == 0:
        return updates
    values = updates.values.clone()
    for row in long.tolist():
        values[row] *= radius / float(updates.norms[row])
    return updates.replace(values=values)
