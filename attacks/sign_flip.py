"""Sign flip: malicious clients send what takes the model back.

A malicious client trains honestly and sends −s·Δ (``of = "own"``), or the omniscient adversary sends −s·μ from all
its clients, μ the mean of the honest updates (``of = "mean"``).

Damaskinos et al., "Asynchronous Byzantine Machine Learning (the case of SGD)", ICML 2018, arXiv:1802.07928;
Li et al., "RSA: Byzantine-Robust Stochastic Aggregation Methods", AAAI 2019, arXiv:1811.03761.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Craft, attack
from attacks.knowledge import needs_omniscience
from attacks.moments import mean, repeated
from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@attack("sign_flip")
class SignFlip(Attack):
    """The update with its sign turned.

    Args:
        scale: s, how many times the update is sent back.
        of: ``own``, each client's own update, or ``mean``, the mean of the honest ones (needs omniscience).
    """

    cost = "f·d"

    scale: Annotated[float, Field(gt=0)] = 1.0
    of: Literal["own", "mean"] = "own"

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        if self.of == "mean":
            yield from needs_omniscience(scenario, "of", self.of)

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        if self.of == "own":
            return -self.scale * rows
        honest = ctx.honest()
        if len(honest) == 0:
            return ctx.skip(rows)
        return repeated(-self.scale * mean(honest), rows)
