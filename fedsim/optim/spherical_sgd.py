"""SGD on the unit sphere that sends its last iterate: the control beside an average over the walk.

    θ ← (θ - η·P g) / |θ - η·P g|        P the projection onto the tangent space at θ

The walk is that of ``normalized_sgd``, which sends the average of its iterates.

Wei, Damian & Lee, ICLR 2026 (arXiv:2603.06028).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from fedsim.optim.elementwise import Positive, optimizer
from fedsim.optim.langevin import normalized, spherical_step


class SphericalSGD(torch.optim.Optimizer):
    """SGD of unit vectors, a parameter (d,) or each row of a (k, d) one.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: η.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; what ``closure``, which computes loss and gradients anew, gives."""
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                d = parameter.shape[-1]
                # Row by row: the bits of a row's sums then depend on nothing else.
                for theta, gradient in zip(parameter.view(-1, d), parameter.grad.view(-1, d), strict=True):
                    theta.copy_(spherical_step(normalized(theta), gradient.mul(-group["lr"])))
        return loss


@optimizer("spherical_sgd")
class ClientSphericalSGD:
    """SGD on the unit sphere, for planted directions; sends its last iterate, where ``normalized_sgd`` averages.

    Args:
        lr: learning rate η.
    """

    row_wise: ClassVar[bool] = True

    lr: Positive = 0.1

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> SphericalSGD:
        """The optimizer of these parameters, its learning rate times ``scale``."""
        return SphericalSGD(list(parameters), self.lr * scale)
