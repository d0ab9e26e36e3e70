"""Server optimizers: what the server does with the aggregated update Δ, which stands in for a negative gradient.

========  ==============================================================================
sgd       m = β m + Δ;  x = x + η m                              (η = 1, β = 0: FedAvg)
adagrad   v = v + Δ²;                          m = β₁ m + (1 − β₁) Δ;  x = x + η m / (√v + τ)
adam      v = β₂ v + (1 − β₂) Δ²;              m and x as above
yogi      v = v − (1 − β₂) Δ² sign(v − Δ²);    m and x as above
========  ==============================================================================

As in the paper, without bias correction, from m = 0 and v = τ²: the first steps of adam and yogi are up to
(1 − β₁)/√(1 − β₂) times as long as Adam's, which divides m by 1 − β₁ᵗ and v by 1 − β₂ᵗ. With ``bias_correction``
adam is Adam, from v = 0: on gradients (FedSGD) it takes the steps of central training. The state is float64, whatever
the parameters are.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295; sgd with momentum is FedAvgM,
Hsu, Qi & Brown 2019, arXiv 1909.06335; Kingma & Ba, "Adam", ICLR 2015, arXiv 1412.6980.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsim.blocks import exact
from fedsim.registry import register

server_optimizer = partial(register, "server_optimizer")

Rate = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Floor = Annotated[float, Field(gt=0)]


@server_optimizer("sgd")
class SGD:
    """Adds the aggregated update, times a learning rate, with momentum (FedAvgM).

    Args:
        lr: η, the server's learning rate; 1 with momentum 0 is FedAvg.
        momentum: β, the share of the last step that is kept.
    """

    reads: ClassVar[str] = "released"

    lr: Rate = 1.0
    momentum: Decay = 0.0

    def step(self, parameters: Tensor, update: Tensor, state: dict[str, Any], round: int) -> Tensor:
        """(d,) parameters after the round."""
        if self.momentum == 0.0:
            return parameters + self.lr * update if self.lr != 1.0 else parameters + update
        velocity = state["velocity"] = _kept(state, "velocity", update, 0.0) * self.momentum + exact(update)
        return _moved(parameters, velocity * self.lr)


class _Adaptive:
    """m and v in ``state``; what differs is how v moves."""

    lr: float
    beta_1: float
    tau: float

    def step(self, parameters: Tensor, update: Tensor, state: dict[str, Any], round: int) -> Tensor:
        """(d,) parameters after the round."""
        delta = exact(update)
        m = _kept(state, "m", delta, 0.0) * self.beta_1 + (1 - self.beta_1) * delta
        v = self.second_moment(_kept(state, "v", delta, self.tau**2), delta.square())
        state["m"], state["v"] = m, v
        return _moved(parameters, self.lr * m / (v.sqrt() + self.tau))

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        raise NotImplementedError


@server_optimizer("adagrad")
class Adagrad(_Adaptive):
    """FedAdagrad: steps shrink with the sum of squared updates.

    Args:
        lr: η, the server's learning rate.
        beta_1: decay of the mean m of updates; 0 as in the paper takes the update itself.
        tau: τ, degree of adaptivity: the floor of the divisor.
    """

    reads: ClassVar[str] = "released"

    lr: Rate = 0.1
    beta_1: Decay = 0.0
    tau: Floor = 1e-3

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


@server_optimizer("adam")
class Adam(_Adaptive):
    """FedAdam: the mean of the updates over the root of the mean of their squares.

    Args:
        lr: η, the server's learning rate.
        beta_1: β₁, decay of the mean m of updates.
        beta_2: β₂, decay of the mean v of their squares.
        tau: τ, degree of adaptivity: the floor of the divisor; ε of Adam.
        bias_correction: as in Kingma & Ba's Adam; false is the paper's FedAdam.
    """

    reads: ClassVar[str] = "released"

    lr: Rate = 0.1
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    tau: Floor = 1e-3
    bias_correction: bool = False

    def step(self, parameters: Tensor, update: Tensor, state: dict[str, Any], round: int) -> Tensor:
        """(d,) parameters after the round."""
        if not self.bias_correction:
            return super().step(parameters, update, state, round)
        delta = exact(update)
        m = _kept(state, "m", delta, 0.0) * self.beta_1 + (1 - self.beta_1) * delta
        v = self.second_moment(_kept(state, "v", delta, 0.0), delta.square())
        t = int(state.get("t", 0)) + 1
        state["m"], state["v"], state["t"] = m, v, t
        floor = (v / (1 - self.beta_2**t)).sqrt() + self.tau
        return _moved(parameters, self.lr * m / (1 - self.beta_1**t) / floor)

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta_2 * v + (1 - self.beta_2) * square


@server_optimizer("yogi")
class Yogi(_Adaptive):
    """FedYogi: as adam, with a second moment that moves by the size of the square, not of the difference.

    Args:
        lr: η, the server's learning rate.
        beta_1: β₁, decay of the mean m of updates.
        beta_2: β₂, 1 − β₂ is the step of the second moment v.
        tau: τ, degree of adaptivity: the floor of the divisor.
    """

    reads: ClassVar[str] = "released"

    lr: Rate = 0.1
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    tau: Floor = 1e-3

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.beta_2) * square * torch.sign(v - square)


def _kept(state: dict[str, Any], name: str, like: Tensor, start: float) -> Tensor:
    if name in state:
        kept: Tensor = state[name]
        return kept
    return torch.full_like(exact(like), start)


def _moved(parameters: Tensor, step: Tensor) -> Tensor:
    return (exact(parameters) + step).to(dtype=parameters.dtype, device=parameters.device)
