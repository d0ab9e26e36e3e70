"""Geometric median (RFA): the point with the smallest weighted sum of distances to the updates.

argmin_v Σ α_k ‖v − Δ_k‖, α_k ∝ example count, by the smoothed Weiszfeld algorithm:

    β_k = α_k / max(ν, ‖v − Δ_k‖),   v = Σ β_k Δ_k / Σ β_k

from the weighted mean until the weights stand still. v is always a mean of the updates, so the iterations run on
its n weights and the Gram matrix, in float64, and the whole costs one pass over the updates more than a mean. The paper
stops after three iterations and gives ν as a length; here ν is a share of the median distance, so that the rule has no
unit. ByzFL stops after three from zero, with ν = 0.1, all clients alike; its limit is ours.

Pillutla, Kakade & Harchaoui, "Robust Aggregation for Federated Learning", IEEE TSP 2022, arXiv 1912.13445.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedsim.blocks import gram
from fedsim.updates import Aggregate, Updates
from strategies.defense import Defense, Round, defense

STILL = 1e-11
"""Relative change of the weights at which the iterations end: a weight times its distance is what moves v."""


@defense("geometric_median")
class GeometricMedian(Defense):
    """The geometric median of the updates.

    Args:
        iterations: most Weiszfeld steps; the paper takes 3.
        smoothing: ν, as a share of the median distance between an update and the one in the middle.
    """

    cost = "n²·d"
    translation_equivariant = True
    scale_equivariant = True

    iterations: Annotated[int, Field(ge=1)] = 1000
    smoothing: Annotated[float, Field(gt=0)] = 1e-6

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        spread = updates.squared_distances().sqrt()
        middle = int(spread.median(dim=1).values.argmin())
        products = gram(updates.values, updates.values[middle])
        alpha = updates.num_examples / updates.num_examples.sum()
        nu = self.smoothing * float(spread[middle].median()) or self.smoothing * float(spread[middle].max())
        weights = alpha
        for _ in range(self.iterations):
            if nu == 0:
                break
            beta = alpha / distances(products, weights).clamp(min=nu)
            before, weights = weights, beta / beta.sum()
            if bool(((weights - before).abs() <= STILL * before).all()):
                break
        return Aggregate(updates.weighted_sum(weights), weights, {"score": distances(products, weights)})


def distances(products: Tensor, weights: Tensor) -> Tensor:
    """(n,) distances of the rows to Σ weights_j · row_j, from the rows' Gram matrix."""
    along = products @ weights
    return (weights @ along - 2 * along + products.diagonal()).clamp(min=0).sqrt()
