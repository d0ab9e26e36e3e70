"""How updates spread around a weighted mean of theirs, from their distances alone."""

from __future__ import annotations

import torch
from torch import Tensor


def centred_gram(squared_distances: Tensor, weights: Tensor | None = None) -> Tensor:
    """(…, n, n) inner products of the rows taken off their weighted mean: −½(D − D·w − w·D + w·D·w), Σw = 1.

    From accurate distances it is accurate also where rows lie close together far from the origin.

    Args:
        squared_distances: (…, n, n) float64.
        weights: (…, n) that sum to 1; the plain mean if absent.
    """
    if weights is None:
        n = squared_distances.shape[-1]
        weights = torch.full((n,), 1 / n, dtype=torch.float64)
    to_mean = (squared_distances * weights.unsqueeze(-2)).sum(-1)
    total = (to_mean * weights).sum(-1)[..., None, None]
    return -0.5 * (squared_distances - to_mean.unsqueeze(-1) - to_mean.unsqueeze(-2) + total)


def in_id_order(client_ids: list[int]) -> Tensor:
    """Positions of the rows by ascending partition id: the order in which rules that search go through them."""
    return torch.tensor(sorted(range(len(client_ids)), key=client_ids.__getitem__), dtype=torch.long)
