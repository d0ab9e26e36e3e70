"""PCGrad: clients as tasks; what of a gradient opposes another's is projected away.

For each client i, over the others j in random order: where ⟨g_i, g_j⟩ < 0, with g_j as it was sent,

    g_i ← g_i − ⟨g_i, g_j⟩ / ‖g_j‖² · g_j,    then    Δ = (1/K) Σ_i g_i.

The paper takes the sum; as a mean it is a step of a client's size. Gradients and updates g = −Δ give the same. Every
client counts once, and all is linear in the rows, so that it is done on their inner products.

Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, arXiv 2001.06782.
"""

from __future__ import annotations

import torch

from fedsim.updates import Aggregate, Updates
from strategies.defense import Defense, Round, defense


@defense("pcgrad")
class PCGrad(Defense):
    """Projection of conflicting updates."""

    cost = "n²·d + n³"
    sees = "updates"
    scale_equivariant = True

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        n = len(updates)
        order = sorted(range(n), key=updates.client_ids.__getitem__)
        scale = updates.gram.diagonal().max().clamp(min=1e-300)
        gram = updates.gram / scale
        draw = ctx.stream("order")
        coefficients = torch.eye(n, dtype=torch.float64)
        for i in order:
            mine = coefficients[i]
            for other in draw.permutation(n):
                j = order[int(other)]
                along = float(mine @ gram[:, j])
                if j != i and along < 0:
                    mine[j] -= along / float(gram[j, j])
        update = updates.weighted_sum(coefficients.mean(0))
        return Aggregate(update, torch.full((n,), torch.nan, dtype=torch.float64))
