"""RM3: the coordinate-wise median of the last three rounds' mean updates.

    Δ = median(mean_t, mean_{t−1}, mean_{t−2}),   nothing in the first two rounds

with means weighted by example count. What only one round wants does not enter the model; on mini-batches the rule keeps
a model from memorising. The weights reported are those of this round's mean. The server's step has no momentum: one
would let each median in again in the rounds after it, and what is wanted thrice no longer decides alone.

Chatterjee & Zielinski, "Making Coherence Out of Nothing At All: Measuring the Evolution of Gradient Alignment", 2020,
arXiv 2008.01217; "On the Generalization Mystery in Deep Learning", 2022, arXiv 2203.10036 (RM3).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from fedsim import registry
from fedsim.errors import Fault
from fedsim.updates import Aggregate, Updates
from strategies.defense import Defense, Round, defense

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

ROUNDS = 3
MOMENTUM = ("momentum", "beta_1")
"""Options of a server's optimizer by which earlier rounds' updates stay in its step."""


@defense("rm3")
class RM3(Defense):
    """The median over three rounds of the mean update."""

    cost = "n·d"
    sees = "updates, the means of two earlier rounds"
    scale_equivariant = True

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        """The rule has momentum 0."""
        step = scenario.server.optimizer
        part = registry.get("server_optimizer", step.name)
        for name in MOMENTUM:
            given = step.options.get(name, getattr(part, name, 0.0))
            if given:
                accepted = "0 behind server.defenses = 'rm3', whose medians a momentum would mix"
                yield Fault(f"/server.optimizer.{name}", given, accepted, ("server.defenses",))

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        result = super().combine(updates, ctx)
        means = [*ctx.state.get("means", {}).values(), result.update][-ROUNDS:]
        ctx.state["means"] = {str(age): mean for age, mean in enumerate(means)}
        if len(means) < ROUNDS:
            return Aggregate(torch.zeros_like(result.update), result.weights)
        return Aggregate(torch.stack(means).median(dim=0).values, result.weights)
