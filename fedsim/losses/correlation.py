"""The correlation loss: minus the output times the target.

    ℓ(x, y) = -y · f(x)

On a single-index model f(x) = h_k(⟨θ, x⟩) minus its gradient is y · h_k'(⟨θ, x⟩) · x, the way up the correlation with
the target. It has no least value: it is for parameters that are kept on a sphere.

Wei, Damian & Lee, ICLR 2026 (arXiv:2603.06028); Ben Arous, Gheissari & Jagannath, "Online stochastic gradient descent
on non-convex losses from high-dimensional inference", JMLR 2021 (arXiv:2003.10409).
"""

from __future__ import annotations

from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.losses.loss import Loss, loss


@loss("correlation")
class Correlation(Loss):
    """Minus the output times the target, of numbers; for directions on the unit sphere."""

    def fit(self, num_classes: int) -> None:
        if num_classes:
            raise FedsimError(
                "client.loss: given a loss of numbers; accepted: 'cross_entropy', 'harmonic' or 'squared_error' for "
                "targets that are classes"
            )

    def example_losses(
        self, outputs: Tensor, targets: Tensor, num_classes: int, present: Tensor | None = None
    ) -> Tensor:
        products = outputs.reshape(targets.shape) * targets
        return -products.reshape(len(targets), -1).mean(1)
