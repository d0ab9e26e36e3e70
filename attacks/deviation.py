"""Rows that leave the mean of the known updates along one direction, and how far they may go.

Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks import moments
from fedsim.updates import Updates

Direction = Literal["unit", "std", "sign"]


@dataclass(frozen=True)
class Spread:
    """The known updates around their mean.

    Args:
        mean: (d,) float64 μ.
        direction: (d,) float64 p.
        squared_distances: (n, n) float64 ‖Δ_i − Δ_j‖².
        squares: (n,) ‖μ − Δ_i‖².
        slopes: (n,) ⟨μ − Δ_i, p⟩.
        curvature: ‖p‖².
    """

    mean: Tensor
    direction: Tensor
    squared_distances: Tensor
    squares: Tensor
    slopes: Tensor
    curvature: Tensor

    @classmethod
    def of(cls, seen: Tensor, direction: Direction) -> Spread:
        """The spread of (n, d) rows, n ≥ 2."""
        mean = moments.mean(seen)
        if direction == "unit":
            norm = torch.linalg.vector_norm(mean)
            p = -mean / norm if float(norm) > 0 else torch.zeros_like(mean)
        elif direction == "std":
            p = -moments.deviation(seen, correction=1)
        else:
            p = -mean.sign()
        sums = moments.centred_sum(
            lambda piece, columns: torch.stack([piece.square().sum(1), -(piece @ p[columns])]), seen, mean
        ).cpu()
        pairs = Updates(seen, torch.ones(len(seen)), list(range(len(seen))), torch.zeros_like(seen[0]))
        return cls(
            mean,
            p,
            pairs.squared_distances(),
            sums[0],
            sums[1],
            (p @ p).cpu(),
        )

    def squared_from(self, gamma: float) -> Tensor:
        """(n,) squared distances of μ + γ·p from the known updates."""
        return self.squares + 2 * gamma * self.slopes + gamma * gamma * self.curvature

    def crafted(self, gamma: float, rows: Tensor) -> Tensor:
        """μ + γ·p in the place of every row."""
        return moments.repeated(self.mean + gamma * self.direction, rows)


def largest_gamma(distance: Callable[[float], float], bound: float, steps: int = 200) -> float:
    """The largest γ ≥ 0 with ``distance(γ)`` ≤ ``bound``, for a convex distance that grows without bound.

    0 where even the mean is out of bounds, or where the distance does not grow.
    """
    if bound <= 0 or distance(0.0) > bound:
        return 0.0
    inside, outside = 0.0, 1.0
    while distance(outside) <= bound:
        inside, outside = outside, outside * 2
        if outside > 1e30:
            return 0.0
    for _ in range(steps):
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        if distance(middle) <= bound:
            inside = middle
        else:
            outside = middle
    return inside
