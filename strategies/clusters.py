"""Clusters of clients, the same whatever the order of the rows: rows go in by partition id, labels come back by row.

scikit-learn brings pandas with it, 150 MB that a run without clusters does not need: it is imported where clusters
are sought.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from fedsim.updates import Updates
from strategies.spread import in_id_order


def density(distances: Tensor, updates: Updates, smallest: int, *, single: bool = True) -> Tensor:
    """(n,) HDBSCAN labels from (n, n) distances, −1 for outliers.

    Args:
        distances: symmetric, zero on the diagonal.
        updates: whose rows they lie between.
        smallest: clients of the smallest cluster, two at least.
        single: whether all clients may be one cluster.
    """
    from sklearn.cluster import HDBSCAN

    order = in_id_order(updates.client_ids)
    given = distances[order[:, None], order]
    given = (given + given.T) / 2
    scale = float(given.max())
    if scale <= 0:
        return torch.zeros(len(updates), dtype=torch.long)
    found = HDBSCAN(
        metric="precomputed", min_cluster_size=smallest, min_samples=1, allow_single_cluster=single, copy=True
    ).fit((given / scale).numpy())
    return _placed(found.labels_, order)


def mean_shift(features: Tensor, updates: Updates) -> Tensor:
    """(n,) mean-shift labels of (n, k) features, bandwidth from the median neighbour; −1 for orphans."""
    from sklearn.cluster import MeanShift, estimate_bandwidth

    order = in_id_order(updates.client_ids)
    given = features[order].numpy()
    bandwidth = float(estimate_bandwidth(given, quantile=0.5))
    if bandwidth <= 0:
        return torch.zeros(len(updates), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = MeanShift(bandwidth=bandwidth, cluster_all=False).fit(given)
    return _placed(found.labels_, order)


def k_means(features: Tensor, updates: Updates, clusters: int, seed: int) -> tuple[Tensor, float]:
    """(n,) labels of the best of ten k-means runs on (n, k) features, and the sum of squares within the clusters."""
    from sklearn.cluster import KMeans

    order = in_id_order(updates.client_ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = KMeans(clusters, n_init=10, random_state=seed % 2**32).fit(features[order].numpy())
    return _placed(found.labels_, order), float(found.inertia_)


def gap(features: Tensor, updates: Updates, most: int, generator: np.random.Generator, draws: int = 10) -> int:
    """Tibshirani's gap statistic: the fewest clusters k with gap(k) ≥ gap(k + 1) − s(k + 1), at most ``most``."""
    from sklearn.cluster import KMeans

    order = in_id_order(updates.client_ids)
    given = features[order].numpy()
    low, high = given.min(axis=0), given.max(axis=0)
    if not (high > low).any():
        return 1
    given = (given - low) / np.where(high > low, high - low, 1)
    references = generator.random((draws, *given.shape)) * (high > low)
    most = max(1, min(most, len(np.unique(given, axis=0)) - 1))
    seed = int(generator.integers(2**31))

    def within(points: np.ndarray[tuple[int, int], np.dtype[np.float64]], clusters: int) -> float:
        inertia = float(KMeans(clusters, n_init=5, random_state=seed).fit(points).inertia_)
        return float(np.log(max(inertia, 1e-12)))

    before: float | None = None
    for clusters in range(1, most + 2):
        if clusters > len(np.unique(given, axis=0)):
            break
        logs = np.array([within(points, clusters) for points in references])
        here = float(logs.mean()) - within(given, clusters)
        error = float(logs.std()) * (1 + 1 / draws) ** 0.5
        if before is not None and before >= here - error:
            return clusters - 1
        before = here
    return most


def largest(labels: Tensor, updates: Updates) -> Tensor:
    """(n,) bool, the rows of the largest cluster (of several that with the smallest partition id); none without one."""
    named = labels[labels >= 0]
    if len(named) == 0:
        return torch.zeros(len(labels), dtype=torch.bool)
    counts = torch.bincount(named)
    for row in in_id_order(updates.client_ids).tolist():
        label = int(labels[row])
        if label >= 0 and counts[label] == counts.max():
            return labels == label
    raise AssertionError("the largest cluster has no row")


def _placed(labels: np.ndarray[tuple[int], np.dtype[np.int64]], order: Tensor) -> Tensor:
    placed = torch.empty(len(order), dtype=torch.long)
    placed[order] = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    return placed
