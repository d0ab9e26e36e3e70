"""Robust learning rate: the server steps backwards in every coordinate in which too few clients agree on a sign.

    v_j = |Σ_k sign(Δ_kj)|,   Δ_j = mean of the Δ_kj  if v_j ≥ θ,  else −mean of the Δ_kj

with the mean weighted by example count and the votes by head. A backdoor lives in coordinates that few clients move.

Ozdayi, Kantarcioglu & Gel, "Defending Against Backdoors in Federated Learning with Robust Learning Rate", AAAI 2021,
arXiv 2007.03767.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedsim.blocks import map_blocks
from fedsim.errors import Fault
from fedsim.updates import Aggregate, Updates, share
from strategies.defense import Defense, Round, defense

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("robust_learning_rate")
class RobustLearningRate(Defense):
    """The mean, its sign turned where the clients' signs disagree.

    Args:
        threshold: θ, the surplus of one sign over the other, as a share (float) or count (int) of the round's clients.
    """

    cost = "n·d"
    scale_equivariant = True

    threshold: Annotated[float, Field(ge=0, le=1)] | Annotated[int, Field(ge=0)] = 0.4

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        n = scenario.cohort
        if share(self.threshold, n) > n:
            yield Fault("threshold", self.threshold, f"at most {n}, the clients a round", ("client.per_round",))

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        n = len(updates)
        update, least = updates.mean(), share(self.threshold, n)

        def block(columns: slice) -> None:
            votes = updates.values[:, columns].sign().sum(dim=0).abs()
            update[columns] *= torch.where(votes >= least, 1, -1)

        map_blocks(block, n, updates.d, parallel=updates.values.device.type == "cpu")
        return Aggregate(update, torch.full((n,), torch.nan, dtype=torch.float64))
