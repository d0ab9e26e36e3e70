"""Weak differential privacy: updates are clipped, and the new model gets a little Gaussian noise.

    Δ_i · min(1, C / ‖Δ_i‖),   then   w = w + server step + N(0, σ²·I)

The noise is far too small for a privacy guarantee, and fedsim claims none for it; it is to wash small backdoors out.
The clipping comes before whatever rule follows, the noise after the server's step, once a round. (FedML's simulator
configures this defense and never adds the noise: a run without effect. Here a round in which nothing changed is said.)

Sun et al., "Can You Really Backdoor Federated Learning?", 2019, arXiv 1911.07963.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedsim.updates import Updates
from strategies.defense import Defense, Round, defense
from strategies.noise import noisy
from strategies.norm_bound import shortened


@defense("weak_dp")
class WeakDP(Defense):
    """Clipped updates, and noise on the model.

    Args:
        radius: C, largest Euclidean norm of an update.
        noise: σ, standard deviation of the noise on each parameter of the new model.
    """

    cost = "n·d"
    sees = "updates, the model"

    sensitivity = "row clip"

    radius: Annotated[float, Field(gt=0)] = 5.0
    noise: Annotated[float, Field(ge=0)] = 0.002

    def transform(self, updates: Updates, ctx: Round) -> Updates:
        return shortened(updates, self.radius)

    def finish(self, parameters: Tensor, ctx: Round) -> Tensor:
        return noisy(parameters, self.noise, ctx)
