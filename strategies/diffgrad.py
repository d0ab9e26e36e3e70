"""diffGrad on the server: Adam on the aggregated update, whose step shrinks where the update has stopped changing.

With g = −Δ, the aggregated update as a negative gradient, and g_0 = 0:

    m = β₁ m + (1 − β₁) g,   v = β₂ v + (1 − β₂) g²,   ξ = sigmoid(|g_{t−1} − g|)
    x = x − η · √(1 − β₂^t)/(1 − β₁^t) · ξ · m / (√v + ε)

t counts the rounds in which there was an update. The state is float64, whatever the parameters are. On a network ξ
hardly leaves ½: show adam at half the rate beside it.

Dubey et al., "diffGrad: An Optimization Method for Convolutional Neural Networks", IEEE TNNLS 2020, arXiv 1909.11015.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.blocks import exact
from fedsim.optim.diffgrad import friction
from strategies.server_optimizer import Decay, Floor, Rate, server_optimizer


@server_optimizer("diffgrad")
class DiffGrad:
    """Adam with bias correction and diffGrad's friction on every coordinate.

    Args:
        lr: η, the server's learning rate.
        beta_1: β₁, decay of the first moment.
        beta_2: β₂, decay of the second moment.
        eps: ε, added to the root of the second moment.
    """

    reads: ClassVar[str] = "released"

    lr: Rate = 0.01
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    eps: Floor = 1e-8

    def step(self, parameters: Tensor, update: Tensor, state: dict[str, Any], round: int) -> Tensor:
        """(d,) parameters after the round."""
        gradient = -exact(update)
        zeros = torch.zeros_like(gradient)
        t = int(state.get("t", 0)) + 1
        m = self.beta_1 * state.get("m", zeros) + (1 - self.beta_1) * gradient
        v = self.beta_2 * state.get("v", zeros) + (1 - self.beta_2) * gradient.square()
        xi = friction(state.get("previous", zeros), gradient)
        state |= {"t": torch.tensor(t), "m": m, "v": v, "previous": gradient}
        rate = self.lr * math.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        moved: Tensor = exact(parameters) - rate * xi * m / (v.sqrt() + self.eps)
        return moved.to(dtype=parameters.dtype, device=parameters.device)
