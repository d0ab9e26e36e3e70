"""Model replacement: the poisoned update, scaled so that averaging does not dilute it.

With K clients asked, f of them attacking and the server's learning rate η, each malicious row becomes
γ·Δ, γ = K / (η·f): the weighted mean of f such rows and K − f rows that cancel is Δ/η, one server step of which
puts the poisoned model in the global one's place. ``participation = "examples"`` takes the weights of the mean as
they are, γ = Σ n_i / (η · Σ_malicious n_i), which only an omniscient adversary knows. Only parameters are scaled;
buffers (batch-norm statistics) are sent as trained.

Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, arXiv:1807.00459, eq. 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Craft, attack
from attacks.knowledge import needs_omniscience
from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@attack("model_replacement")
class ModelReplacement(Attack):
    """The malicious update times K / (η_server · f).

    Args:
        scale: γ in place of the computed factor.
        participation: whether a row's part in the mean is counted in ``clients`` or in ``examples`` (omniscient only).
    """

    cost = "f·d"
    untargeted = False

    scale: Annotated[float, Field(gt=0)] | None = None
    participation: Literal["clients", "examples"] = "clients"

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        if self.participation == "examples" and self.scale is None:
            yield from needs_omniscience(scenario, "participation", self.participation)

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        return rows * self.factor(ctx)

    def factor(self, ctx: Craft) -> float:
        """γ of this round."""
        if self.scale is not None:
            return self.scale
        if self.participation == "clients":
            return ctx.num_clients / (ctx.server_lr * ctx.num_malicious)
        ctx.honest()
        own = float(ctx.num_examples.sum())
        others = 0.0 if ctx.honest_examples is None else float(ctx.honest_examples.sum())
        return (own + others) / (ctx.server_lr * own) if own > 0 else 1.0
