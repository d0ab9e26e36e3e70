"""Label skew: each class is divided among the clients by proportions from a Dirichlet distribution.

For every class c, p_c ~ Dir(α·1) over the clients, and client i gets the share p_{c,i} of its examples. α → 0 leaves
each class to one client, α → ∞ is iid.

Hsu, Qi & Brown, "Measuring the effects of non-identical data distribution for federated visual classification",
2019, 1909.06335; divided class by class as Li et al., ICDE 2022, 2102.02079.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from fedsim import rng
from fedsim.data.examples import Dataset, Shares
from fedsim.data.partition import Partition, by_owner
from fedsim.registry import register

if TYPE_CHECKING:
    from numpy.typing import NDArray


@register("partition", "dirichlet")
class Dirichlet(Partition):
    """Each class is divided among the clients by Dirichlet proportions.

    Args:
        alpha: concentration α; the smaller, the fewer labels a client sees.
        min_examples: examples that each client has at the least; who has fewer gets single examples, drawn by lot, of
            the clients that have the most.
    """

    alpha: Annotated[float, Field(gt=0)] = 0.5
    min_examples: Annotated[int, Field(ge=0)] = 1
    by_label = True
    skew = "labels, quantities"

    def least(self) -> int:
        return self.min_examples

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        self.refuse(dataset, clients)
        generator = rng.stream(seed, "partition.dirichlet")
        labels = dataset.train.targets.cpu().numpy()
        owner = np.empty(len(labels), dtype=np.int64)
        for label in range(dataset.info.num_classes):
            members = generator.permutation(np.flatnonzero(labels == label))
            owner[members] = np.repeat(
                np.arange(clients), proportional(proportions(generator, self.alpha, clients), len(members))
            )
        fill(owner, clients, self.min_examples, generator)
        return by_owner(owner, clients)


def proportions(generator: np.random.Generator, alpha: float, clients: int) -> NDArray[Any]:
    """(clients,) a draw of Dir(α·1); where α is so small that all its gammas underflow, all goes to one client."""
    drawn = generator.dirichlet(np.full(clients, alpha))
    if np.isfinite(drawn).all() and drawn.sum() > 0.5:
        return drawn
    alone = np.zeros(clients)
    alone[generator.integers(clients)] = 1.0
    return alone


def proportional(shares: NDArray[Any], total: int) -> NDArray[Any]:
    """(n,) whole numbers that add up to ``total``, in proportion to ``shares``: their cumulated borders rounded."""
    borders = np.rint(np.cumsum(shares) / shares.sum() * total).astype(np.int64)
    borders[-1] = total
    return np.diff(borders, prepend=0)


def fill(owner: NDArray[Any], clients: int, least: int, generator: np.random.Generator) -> None:
    """Change ``owner``, (n,), in place until each client owns ``least`` examples."""
    sizes = np.bincount(owner, minlength=clients)
    short = np.flatnonzero(sizes < least)
    if not len(short):
        return
    heap = [(-int(size), client) for client, size in enumerate(sizes) if size > least]
    heapq.heapify(heap)
    order, starts = np.argsort(owner, kind="stable"), np.concatenate([[0], np.cumsum(sizes)])
    held: dict[int, list[int]] = {}
    for client in short:
        for _ in range(least - int(sizes[client])):
            size, largest = heapq.heappop(heap)
            if largest not in held:
                held[largest] = generator.permutation(order[starts[largest] : starts[largest + 1]]).tolist()
            owner[held[largest].pop()] = client
            if -size - 1 > least:
                heapq.heappush(heap, (size + 1, largest))
