"""One iteration of gradient-normalized smoothness for k clients at once, each with its own γ, trials and steps.

The rows of (k, d) go through :func:`fedsim.optim.gns.search` in step: those that still try ask for their losses, and
for their products with the Hessian, together. A row that has accepted its trial, or whose system is solved, waits and
changes no more. :class:`fedsim.optim.gns_step.GNS` is what each row is held against.

Semenov, Jaggi & Doikov, "Gradient-Normalized Smoothness for Optimization with Approximate Hessians", ICLR 2026
(arXiv:2506.13710), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.optim.gns import SMALLEST, TRIALS

GAMMA = "0.gamma"
"""Where a client's memory holds γ: with the first parameter, as a single number."""

Product = Callable[[Tensor], Tensor]


class Problem(Protocol):
    """The functions of k clients; ``rows`` (r,) are positions in increasing order."""

    def evaluate(self, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's f (r,) and g (r, d) at x (r, d)."""

    def products(self, rows: Tensor, x: Tensor) -> Product:
        """(r, d) v → each row's Hv (r, d) at x (r, d)."""


class RowsGNS:
    """The optimizer of k clients.

    Args:
        gammas: (k,) float64 γ of each client.
        curvature: H, "exact" (by products) or "zero".
        tolerance: below this norm of the gradient a row stays.
        accuracy: residual at which conjugate gradients stop, relative to the gradient.
    """

    def __init__(self, gammas: Tensor, curvature: Literal["exact", "zero"], tolerance: float, accuracy: float) -> None:
        self.gammas, self.curvature, self.tolerance, self.accuracy = gammas, curvature, tolerance, accuracy

    def memory(self, row: int) -> dict[str, Tensor]:
        """What a client remembers."""
        return {GAMMA: self.gammas[row].cpu().clone()}

    @torch.no_grad()
    def step(self, problem: Problem, x: Tensor) -> Tensor:
        """One step of the first r rows, from x (r, d) in any precision: (r, d) float64.

        Raises:
            FedsimError: a loss or a gradient that is not finite.
        """
        x, active = x.double(), len(x)
        everyone = torch.arange(active, device=x.device)
        f, g = _finite(*problem.evaluate(everyone, x))
        size, gamma, moved = g.square().sum(1).sqrt(), self.gammas[:active].clone(), x.clone()
        trying, product = everyone[size >= self.tolerance], None
        for _ in range(TRIALS):
            if not len(trying):
                break
            shift = size[trying] / (gamma[trying] + SMALLEST)
            if self.curvature == "zero":
                direction, definite = g[trying] / shift[:, None], torch.ones_like(trying, dtype=torch.bool)
            else:
                product = product or problem.products(trying, x[trying])
                direction, definite = conjugate_gradients(product, shift, g[trying], self.accuracy)
            asked = trying[definite]
            accepted = torch.zeros_like(definite)
            if len(asked):
                trial = x[asked] - direction[definite]
                f_trial, g_trial = problem.evaluate(asked, trial)
                enough = f[asked] - f_trial >= g_trial.square().sum(1) / (8 * shift[definite])
                accepted[definite] = enough
                moved[asked[enough]] = trial[enough]
            done = trying[accepted]
            self.gammas[done] = 2 * gamma[done]
            if len(done):
                trying, product = trying[~accepted], None
            gamma[trying] /= 2
        return moved


def conjugate_gradients(product: Product, shift: Tensor, g: Tensor, accuracy: float) -> tuple[Tensor, Tensor]:
    """(H + λI)⁻¹ g of each row, (r, d), and (r,) whether H + λI bends upwards along all that was searched.

    Args:
        product: (r, d) v → Hv.
        shift: (r,) λ.
        g: (r, d).
        accuracy: residual at which a row is done, relative to g.
    """
    solution, residual, direction = torch.zeros_like(g), g.clone(), g.clone()
    square = residual.square().sum(1)
    enough = accuracy**2 * square
    definite = torch.ones_like(square, dtype=torch.bool)
    for _ in range(10 * g.shape[1]):
        active = definite & ~(square <= enough)
        if not active.any():
            break
        curved = product(direction) + shift[:, None] * direction
        bend = (direction * curved).sum(1)
        definite = definite & (~active | (bend > 0))
        active = (active & definite)[:, None]
        along = (square / bend)[:, None]
        solution = torch.where(active, solution + along * direction, solution)
        residual = torch.where(active, residual - along * curved, residual)
        square, last = residual.square().sum(1), square
        direction = torch.where(active, residual + (square / last)[:, None] * direction, direction)
    return solution, definite


def _finite(f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    finite = torch.isfinite(f) & torch.isfinite(g).all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise FedsimError(
            f"gns: x0: given a point with f = {float(f[row])} and |g| = {float(g[row].norm())}; accepted: finite"
        )
    return f, g
