"""RFLBAT: updates are drawn into the plane of their two main directions, and the odd clusters there are dropped.

1. PCA of the updates to two dimensions; clients whose summed distance to the others exceeds ε₁ times the median leave.
2. k-means with the number of clusters from the gap statistic. A cluster's likeness is the median over its members of
   their mean cosine (of the whole updates) within it; backdoored updates resemble each other more than honest ones do,
   so the cluster with the smallest likeness stays (a cluster of one counts 1).
3. Of that cluster those whose summed distance exceeds ε₂ times the median leave; the mean of the rest.

A median of an even number is the lower of the middle two.

Wang, Zhai, Yang & Yan, "RFLBAT: A Robust Federated Learning Algorithm against Backdoor Attack", 2022, arXiv 2201.03772.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsim.updates import Selection, Updates
from strategies.clusters import gap, k_means
from strategies.defense import Defense, Round, defense
from strategies.foolsgold import cosines
from strategies.spread import centred_gram


@defense("rflbat")
class RFLBAT(Defense):
    """The least self-similar cluster in the plane of the two main directions.

    Args:
        first: ε₁, summed distance that passes before clustering, as a multiple of the median.
        second: ε₂, the same within the cluster that stays.
        clusters: most clusters that are tried.
    """

    cost = "n²·d + n³"

    first: Annotated[float, Field(gt=1)] = 10.0
    second: Annotated[float, Field(gt=1)] = 4.0
    clusters: Annotated[int, Field(ge=1)] = 8

    def select(self, updates: Updates, ctx: Round) -> Selection:
        plane = main_plane(updates.squared_distances())
        kept = _near(plane, torch.arange(len(updates)), self.first)
        rows = updates.rows(kept)
        count = gap(plane[kept], rows, self.clusters, ctx.stream("gap"))
        if count > 1:
            labels, _ = k_means(plane[kept], rows, count, int(ctx.stream("k_means").integers(2**31)))
            angles = cosines(rows.values)
            members = [(labels == label).nonzero().flatten() for label in range(count)]
            likeness = [_likeness(angles[index][:, index]) for index in members if len(index)]
            kept = kept[[index for index in members if len(index)][likeness.index(min(likeness))]]
        kept = _near(plane, kept, self.second)
        return Selection.of(kept, updates, (plane - plane[kept].mean(dim=0)).norm(dim=1))


def main_plane(squared_distances: Tensor) -> Tensor:
    """(n, 2) coordinates of the updates along their two principal directions, each with its first nonzero one > 0."""
    values, vectors = torch.linalg.eigh(centred_gram(squared_distances))
    plane = vectors * values.clamp(min=0).sqrt()
    plane = plane[:, -2:].flip(1)
    if plane.shape[1] < 2:
        plane = torch.cat([plane, torch.zeros_like(plane)], dim=1)
    largest = plane.gather(0, plane.abs().argmax(dim=0, keepdim=True))
    turned: Tensor = plane * torch.where(largest < 0, -1.0, 1.0)
    return turned


def _near(plane: Tensor, index: Tensor, factor: float) -> Tensor:
    """Those of the rows ``index`` whose summed distance to the others is at most ``factor`` times the median."""
    sums = torch.cdist(plane[index], plane[index]).sum(dim=1)
    return index[sums <= factor * sums.median()]


def _likeness(angles: Tensor) -> float:
    return 1.0 if len(angles) <= 1 else float(angles.mean(dim=1).median())
