"""CAGrad: near the mean update, the one that helps the client worst off the most.

With g_0 the mean of the K updates, d solves  max_d min_k ⟨g_k, d⟩  with  ‖d − g_0‖ ≤ c‖g_0‖. By its dual,

    w = argmin over the simplex of  ⟨g_w, g_0⟩ + c‖g_0‖·‖g_w‖,    g_w = Σ w_k g_k,    d = g_0 + c‖g_0‖ · g_w/‖g_w‖.

c = 0 is the mean. The authors' code divides d by 1 + c² (``rescale``). Every client counts once; the dual has n numbers
and needs the rows' inner products alone.

Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021, arXiv 2110.14048.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fedsim.updates import Aggregate, Updates
from strategies.defense import Defense, Round, defense

FLOOR = 1e-16
"""Added below the root of ‖g_w‖², where the rows' mean square is 1: the dual is smooth then."""


@defense("cagrad")
class CAGrad(Defense):
    """Conflict-averse mean of the updates.

    Args:
        c: radius around the mean, as a share of its length.
        rescale: divide by 1 + c², as the authors' code does.
    """

    cost = "n²·d + n³ a step of the dual"
    sees = "updates"
    scale_equivariant = True

    c: Annotated[float, Field(ge=0, lt=1)] = 0.4
    rescale: bool = True

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        n = len(updates)
        order = torch.tensor(sorted(range(n), key=updates.client_ids.__getitem__))
        gram = updates.gram[order][:, order].numpy()
        scale = float(np.trace(gram)) / n
        coefficients = np.full(n, 1 / n)
        if scale > 0 and self.c:
            gram = gram / scale
            weights = solve(gram, self.c)
            length = math.sqrt(float(weights @ gram @ weights) + FLOOR)
            coefficients = coefficients + self.c * math.sqrt(max(0.0, float(gram.mean()))) / length * weights
        if self.rescale:
            coefficients = coefficients / (1 + self.c**2)
        spread = torch.zeros(n, dtype=torch.float64)
        spread[order] = torch.from_numpy(coefficients)
        return Aggregate(updates.weighted_sum(spread), torch.full((n,), torch.nan, dtype=torch.float64))


def solve(gram: NDArray[np.float64], c: float) -> NDArray[np.float64]:
    """(n,) w of the dual, for inner products (n, n) of mean diagonal 1."""
    from scipy.optimize import minimize

    n = len(gram)
    mean = gram.mean(0)
    radius = c * math.sqrt(max(0.0, float(gram.mean())))

    def dual(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        along = gram @ w
        length = math.sqrt(max(0.0, float(w @ along)) + FLOOR)
        return float(w @ mean) + radius * length, mean + radius * along / length

    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(n)}
    start = np.full(n, 1 / n)
    found = minimize(
        dual, start, jac=True, bounds=[(0, 1)] * n, constraints=simplex, method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 200},
    )  # fmt: skip
    weights: NDArray[np.float64] = np.clip(found.x, 0, 1)
    if not np.isfinite(weights).all() or weights.sum() <= 0:
        return start
    normed: NDArray[np.float64] = weights / weights.sum()
    return normed
