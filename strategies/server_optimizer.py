"""Server optimizers: what the server does with the aggregated update Δ, which stands in for a negative gradient.

========  ==================================================================================
sgd       m = β m + Δ;  x = x + η m                                  (η = 1, β = 0: x + Δ, FedAvg)
adagrad   v = v + Δ²;   m = β₁ m + (1 − β₁) Δ;  x = x + η m / (√v + τ)
adam      v = β₂ v + (1 − β₂) Δ²;               m, x as above
yogi      v = v − (1 − β₂) Δ² sign(v − Δ²);     m, x as above
========  ==================================================================================

As in the paper there is no bias correction unless asked for, v starts at ``initial`` (τ² unless given), and adagrad
has β₁ = 0 by default. The state is float64, whatever the parameters are.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fedsim.blocks import exact
from fedsim.registry import register

server_optimizer = partial(register, "server_optimizer")

Rate = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


@server_optimizer("sgd")
class SGD:
    """Adds the aggregated update, times a learning rate, with momentum (FedAvgM).

    Args:
        lr: η, the server's learning rate; 1 with momentum 0 is FedAvg.
        momentum: β, the share of the last step that is kept.
    """

    lr: Rate = 1.0
    momentum: Decay = 0.0

    def step(self, parameters: Tensor, update: Tensor, state: dict[str, Any], round: int) -> Tensor:
        """(d,) parameters after the round."""
        if self.momentum == 0.0:
            return parameters + self.lr * update if self.lr != 1.0 else parameters + update
        velocity = _float64(state, "velocity", update, 0.0)
        velocity = state["velocity"] = velocity * self.momentum + exact(update)
        return _moved(parameters, velocity * self.lr)


def _float64(state: dict[str, Any], name: str, like: Tensor, start: float) -> Tensor:
    if name in state:
        kept: Tensor = state[name]
        return kept
    return torch.full_like(exact(like), start)


def _moved(parameters: Tensor, step: Tensor) -> Tensor:
    return (exact(parameters) + step).to(dtype=parameters.dtype, device=parameters.device)
