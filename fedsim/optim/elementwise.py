"""The elementwise optimizers of torch.optim, by name.

They act on each number alone, so one optimizer steps a (k, d) tensor of k clients as k optimizers step k models,
bit for bit. Optimizers that look at a tensor's shape mix clients there: Muon orthogonalises a matrix, Adafactor
factors its second moments over rows and columns. Those are refused, see :data:`REFUSED`.

torch.optim, https://docs.pytorch.org/docs/stable/optim.html.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsim.errors import Fault
from fedsim.registry import register

optimizer = partial(register, "optimizer")

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]

REFUSED: dict[str, str] = {
    "muon": "orthogonalises whole matrices, so that a (k, d) tensor of k clients would mix them",
    "adafactor": "factors its moments over rows and columns, so that a (k, d) tensor of k clients would mix them",
    "lbfgs": "takes inner products over all its parameters and evaluates the loss several times a step",
    "sparseadam": "takes sparse gradients only",
}
"""Optimizers of torch.optim that are no parts here, and why."""


class Elementwise:
    """An optimizer of torch.optim whose options are this class's fields."""

    row_wise: ClassVar[bool] = True
    torch_class: ClassVar[type[torch.optim.Optimizer]]
    lr: float

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the torch class, without the learning rate."""
        return {name: value for name, value in vars(self).items() if name != "lr"}

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> torch.optim.Optimizer:
        """The optimizer of these parameters, its learning rate times ``scale``."""
        options: dict[str, Any] = {"lr": self.lr * scale, "foreach": False, **self.options()}
        return self.torch_class(list(parameters), **options)

    def plain_rate(self, scale: float = 1.0) -> float | None:
        """The learning rate if a step is parameters - rate · gradient and nothing else, else None."""
        return None


@optimizer("sgd")
class SGD(Elementwise):
    """Stochastic gradient descent.

    Args:
        lr: learning rate.
        momentum: share of the last step that is kept.
        dampening: share of the gradient that momentum leaves out.
        weight_decay: L2 penalty, added to the gradient.
        nesterov: look ahead along the momentum.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.SGD
    lr: Positive = 0.1
    momentum: NonNegative = 0.0
    dampening: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    nesterov: bool = False

    def check(self, scenario: Any) -> Iterable[Fault]:
        """Nesterov's step is defined with momentum and without dampening."""
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            yield Fault("nesterov", True, "false, or momentum above 0 and dampening 0 with it")

    def plain_rate(self, scale: float = 1.0) -> float | None:
        return self.lr * scale if not (self.momentum or self.weight_decay or self.nesterov) else None


@optimizer("adam")
class Adam(Elementwise):
    """Adam.

    Args:
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: L2 penalty, added to the gradient.
        amsgrad: divide by the largest second moment so far.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adam
    lr: Positive = 0.001
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    amsgrad: bool = False


@optimizer("adamw")
class AdamW(Elementwise):
    """Adam with decoupled weight decay.

    Args:
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: share of the parameters taken off in each step, times lr.
        amsgrad: divide by the largest second moment so far.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.AdamW
    lr: Positive = 0.001
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.01
    amsgrad: bool = False


@optimizer("rmsprop")
class RMSprop(Elementwise):
    """RMSprop.

    Args:
        lr: learning rate.
        alpha: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: L2 penalty, added to the gradient.
        momentum: share of the last step that is kept.
        centered: subtract the squared mean from the second moment.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.RMSprop
    lr: Positive = 0.01
    alpha: Decay = 0.99
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    momentum: NonNegative = 0.0
    centered: bool = False

    def check(self, scenario: Any) -> Iterable[Fault]:
        """A variance needs more than one gradient: of one it is rounding about zero, whose root may not exist."""
        if self.centered and self.alpha == 0:
            yield Fault("alpha", 0.0, "above 0 with centered = true")


@optimizer("adagrad")
class Adagrad(Elementwise):
    """Adagrad.

    Args:
        lr: learning rate.
        lr_decay: the rate of step t is lr / (1 + (t - 1) · lr_decay).
        weight_decay: L2 penalty, added to the gradient.
        initial_accumulator_value: what the sum of squares starts with.
        eps: added to the root of the sum of squares.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adagrad
    lr: Positive = 0.01
    lr_decay: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    initial_accumulator_value: NonNegative = 0.0
    eps: Positive = 1e-10


@optimizer("adadelta")
class Adadelta(Elementwise):
    """Adadelta.

    Args:
        lr: factor of the step.
        rho: decay of the averages of squares.
        eps: added below both roots.
        weight_decay: L2 penalty, added to the gradient.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adadelta
    lr: Positive = 1.0
    rho: Decay = 0.9
    eps: Positive = 1e-6
    weight_decay: NonNegative = 0.0


@optimizer("adamax")
class Adamax(Elementwise):
    """Adam in the infinity norm.

    Args:
        lr: learning rate.
        betas: decay of the first moment and of the norm.
        eps: added to the norm.
        weight_decay: L2 penalty, added to the gradient.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adamax
    lr: Positive = 0.002
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0


@optimizer("nadam")
class NAdam(Elementwise):
    """Adam with Nesterov momentum.

    Args:
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: L2 penalty, added to the gradient (see decoupled_weight_decay).
        momentum_decay: decay of the momentum over steps.
        decoupled_weight_decay: take the decay off the parameters, as AdamW does.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.NAdam
    lr: Positive = 0.002
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    momentum_decay: NonNegative = 0.004
    decoupled_weight_decay: bool = False


@optimizer("radam")
class RAdam(Elementwise):
    """Rectified Adam.

    Args:
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: L2 penalty, added to the gradient (see decoupled_weight_decay).
        decoupled_weight_decay: take the decay off the parameters, as AdamW does.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.RAdam
    lr: Positive = 0.001
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    decoupled_weight_decay: bool = False


@optimizer("asgd")
class ASGD(Elementwise):
    """SGD with a decaying rate; the model that is sent is the last iterate, not the average.

    Args:
        lr: learning rate.
        lambd: decay term.
        alpha: power of the decay of the rate.
        t0: step at which averaging starts.
        weight_decay: L2 penalty, added to the gradient.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.ASGD
    lr: Positive = 0.01
    lambd: NonNegative = 1e-4
    alpha: NonNegative = 0.75
    t0: Positive = 1e6
    weight_decay: NonNegative = 0.0


@optimizer("rprop")
class Rprop(Elementwise):
    """Resilient backpropagation: steps from the gradient's signs; meant for full batches.

    Args:
        lr: first step size.
        etas: factors of the step size where the sign flips, and where it stays.
        step_sizes: least and largest step size.
    """

    torch_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Rprop
    lr: Positive = 0.01
    etas: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=1)]] = (0.5, 1.2)
    step_sizes: tuple[Positive, Positive] = (1e-6, 50.0)
