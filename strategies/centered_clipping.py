"""Centered clipping: the last aggregate, moved by the clipped differences of the updates to it.

v_0 is the aggregate of the round before (0 in the first); L times

    v = v + (1/n) Σ_i (Δ_i − v) · min(1, τ / ‖Δ_i − v‖)

and the last v is the aggregate, which is kept for the next round. Every client counts once. The weight reported for a
client is its coefficient in v, divided by the sum of all clients' (the rest of v is memory).

Karimireddy, He & Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, arXiv 2012.10333.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from fedsim.blocks import exact, gram
from fedsim.updates import Aggregate, Updates
from strategies.defense import Defense, Round, defense
from strategies.geometric_median import distances


@defense("centered_clipping")
class CenteredClipping(Defense):
    """Updates clipped around the last aggregate.

    Args:
        radius: τ, the longest difference that counts whole.
        iterations: L, clipping steps a round.
    """

    cost = "n²·d"
    sees = "updates, its last aggregate"

    radius: Annotated[float, Field(gt=0)] = 10.0
    iterations: Annotated[int, Field(ge=1)] = 1

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        n = len(updates)
        start = ctx.state.get("center")
        if start is None:
            start = torch.zeros_like(exact(updates.reference))
        products = gram(updates.values, start)
        weights = torch.zeros(n, dtype=torch.float64)
        for _ in range(self.iterations):
            factors = (self.radius / distances(products, weights).clamp(min=1e-300)).clamp(max=1)
            weights = weights + (factors - factors.sum() * weights) / n
        center = exact(updates.weighted_sum(weights, out=torch.float64)) + (1 - float(weights.sum())) * start
        ctx.state["center"] = center
        update = center.to(dtype=updates.values.dtype, device=updates.values.device)
        return Aggregate(update, weights / weights.sum(), {"score": distances(products, weights)})
