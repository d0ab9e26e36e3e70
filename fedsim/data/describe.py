"""A partition in numbers: how many examples of each label each client holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.data.examples import Dataset, Shares

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 10


def partition_table(dataset: Dataset, shares: Shares) -> NDArray[Any]:
    """(clients, labels) examples of each label that each client holds; a regression's targets fall into ten bins.

    The columns are named by :func:`labels_of`.
    """
    groups = _groups(dataset)
    labels = len(labels_of(dataset))
    client = np.repeat(np.arange(len(shares)), shares.sizes)
    cells = client * labels + groups[shares.indices]
    return np.bincount(cells, minlength=len(shares) * labels).reshape(len(shares), labels)


def labels_of(dataset: Dataset) -> list[str]:
    """Names of the columns of :func:`partition_table`: the classes, or the bins' upper ends."""
    if dataset.info.num_classes:
        return [str(label) for label in range(dataset.info.num_classes)]
    return [f"≤ {end:.3g}" for end in [*_ends(dataset), float(dataset.train.targets.max())]]


def _ends(dataset: Dataset) -> list[float]:
    """Inner borders between the bins of a regression's targets, deciles without repetition."""
    deciles = np.quantile(dataset.train.targets.cpu().numpy(), np.arange(1, BINS) / BINS)
    return [float(end) for end in np.unique(deciles)]


def _groups(dataset: Dataset) -> NDArray[Any]:
    targets = dataset.train.targets.cpu().numpy()
    groups: NDArray[Any] = targets if dataset.info.num_classes else np.searchsorted(_ends(dataset), targets)
    return groups
