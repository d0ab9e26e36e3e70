"""Inner product manipulation: the malicious rows point against the honest mean.

Every malicious client sends −ε·μ, μ the mean of the honest updates. A small ε hides near the honest updates and still
turns the inner product of the aggregate with the true direction.

Xie, Koyejo and Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI 2019
(PMLR 2020), arXiv:1903.03936.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Craft, attack
from attacks.moments import mean, repeated


@attack("ipm")
class IPM(Attack):
    """−ε times the mean of the honest updates.

    Args:
        epsilon: ε.
    """

    cost = "n·d"
    knowledge = "omniscient"

    epsilon: Annotated[float, Field(gt=0)] = 0.5

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        honest = ctx.honest()
        if len(honest) == 0:
            return ctx.skip(rows)
        return repeated(-self.epsilon * mean(honest), rows)
