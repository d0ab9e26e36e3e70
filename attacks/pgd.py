"""PGD: a malicious client that never leaves a ball around the model that it received.

After every ``every``-th local step and after the last one, its parameters w are projected on ‖w − w_0‖₂ ≤ ε, w_0 the
parameters received. ε is the same in every round and under every defense. Norms are taken in float64; buffers are not
projected.

Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020, arXiv:2007.05084,
section 4; Sun et al., "Can You Really Backdoor Federated Learning?", 2019, arXiv:1911.07963.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, LocalStep, attack
from fedsim.blocks import exact


@attack("pgd")
class PGD(Attack):
    """Projection of the malicious client's parameters.

    Args:
        epsilon: ε, radius of the ball.
        every: local steps from one projection to the next; the last step always projects.
    """

    cost = "d every k local steps"
    untargeted = False

    epsilon: Annotated[float, Field(gt=0)] = 2.0
    every: Annotated[int, Field(ge=1)] = 10

    @torch.no_grad()
    def after_step(self, parameters: Tensor, step: LocalStep) -> None:
        due = step.last.to(parameters.device)
        if step.step % self.every == 0:
            due = torch.ones_like(due)
        reference = exact(step.reference)
        for row in due.nonzero().flatten().tolist():
            difference = exact(parameters[row]) - reference
            norm = float(torch.linalg.vector_norm(difference))
            if norm > self.epsilon:
                projected = reference + difference * (self.epsilon / norm)
                parameters[row] = projected.to(parameters.dtype).to(parameters.device)
