"""SGD on the unit sphere that sends its last iterate: the control beside an average over the walk.

    θ ← (θ - η·P g) / |θ - η·P g|        P the projection onto the tangent space at θ

The walk is that of ``normalized_sgd``, which sends the average of its iterates.

Wei, Damian & Lee, ICLR 2026 (arXiv:2603.06028).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from fedsim.optim.elementwise import Positive, optimizer
from fedsim.optim.langevin import NormalizedSGD


class SphericalSGD(NormalizedSGD):
    """The walk of :class:`NormalizedSGD`, whose last iterate is what it leaves."""

    def upload(self, parameter: Tensor) -> Tensor:
        """θ itself."""
        return parameter.detach().clone()


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
