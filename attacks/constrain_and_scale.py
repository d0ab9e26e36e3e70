"""Constrain-and-scale: the backdoor is trained with a term that keeps the model inconspicuous.

    L = α·L_task + (1 − α)·L_anomaly

with L_anomaly what an anomaly detector would look at, against the received model w₀: ‖w − w₀‖² (``euclidean``), or
1 − cos(w, w₀) (``cosine``). α = 1 is plain training. The scaling of the paper's name is ``model_replacement``: put it
behind this attack in the list. The distance is squared, so that its gradient exists at w₀, where training starts.

Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, arXiv:1807.00459, eq. 4.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, LocalStep, attack


@attack("constrain_and_scale")
class ConstrainAndScale(Attack):
    """A loss that stays near the received model.

    Args:
        alpha: α, the task's share of the loss.
        anomaly: what is kept small, the squared ``euclidean`` distance to the received model or the ``cosine`` one.
    """

    cost = "d a local step"
    untargeted = False

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.7
    anomaly: Literal["euclidean", "cosine"] = "euclidean"

    def objective(self, loss: Tensor, parameters: Tensor, step: LocalStep) -> Tensor:
        reference = step.reference.to(parameters)
        if self.anomaly == "euclidean":
            anomaly = (parameters - reference).square().sum(dim=1)
        else:
            anomaly = 1 - torch.nn.functional.cosine_similarity(parameters, reference[None], dim=1, eps=1e-12)
        return self.alpha * loss + (1 - self.alpha) * anomaly
