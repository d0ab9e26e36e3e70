"""Label skew at equal sizes: every client has a mixture of labels of its own, and as many examples as the others.

Client i draws its mixture q_i ~ Dir(α·p), p the classes' shares of the training set, and then its labels from q_i, all
clients side by side, until the set is dealt out: where more examples of a class are wanted than are left, they go by
lot, and those who got none draw again from what their mixture gives the other classes (from what is left, where it
gives them nothing). α → 0 leaves a client one label as long as there are examples of it, α → ∞ is iid. Since the whole
set is dealt out, few clients are less skewed than their q_i. Sizes differ by one at the most. With C balanced classes
each has the concentration α/C. ``dirichlet`` divides classes among clients instead, so that sizes differ as well.

Hsu, Qi & Brown, "Measuring the effects of non-identical data distribution for federated visual classification", 2019,
1909.06335; dealt out side by side as Acar et al., "Federated learning based on dynamic regularization", ICLR 2021,
2111.04263.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from fedsim import rng
from fedsim.data.examples import Dataset, Shares
from fedsim.data.partition import Partition, by_owner, even_sizes
from fedsim.registry import register

if TYPE_CHECKING:
    from numpy.typing import NDArray


@register("partition", "balanced_dirichlet")
class BalancedDirichlet(Partition):
    """Each client has Dirichlet proportions of labels, all have the same number of examples.

    Args:
        alpha: concentration α; the smaller, the fewer labels a client sees.
    """

    alpha: Annotated[float, Field(gt=0)] = 1.0
    by_label = True
    skew = "labels"

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        self.refuse(dataset, clients)
        generator = rng.stream(seed, "partition.balanced_dirichlet")
        labels = dataset.train.targets.cpu().numpy()
        left = np.bincount(labels, minlength=dataset.info.num_classes)
        stacks = [generator.permutation(np.flatnonzero(labels == label)) for label in range(len(left))]
        mixtures = np.stack([mixture(generator, self.alpha * left / left.sum()) for _ in range(clients)])
        needs = generator.permutation(even_sizes(len(labels), clients))
        owner = np.empty(len(labels), dtype=np.int64)
        while needs.any():
            waiting = np.repeat(np.arange(clients), needs)
            wanted = _drawn(generator, np.where(left > 0, mixtures, 0.0), left, waiting)
            for label in np.unique(wanted):
                served = generator.permutation(waiting[wanted == label])[: left[label]]
                owner[stacks[label][left[label] - len(served) : left[label]]] = served
                left[label] -= len(served)
                needs -= np.bincount(served, minlength=clients)
        return by_owner(owner, clients)


def mixture(generator: np.random.Generator, concentrations: NDArray[Any]) -> NDArray[Any]:
    """(C,) a draw of Dir(concentrations), 0 where these are; one class has all where all their gammas underflow."""
    used = np.flatnonzero(concentrations > 0)
    found, share = np.zeros(len(concentrations)), concentrations[used] / concentrations[used].sum()
    drawn = generator.dirichlet(concentrations[used])
    found[used] = drawn if drawn.sum() > 0.5 else generator.multinomial(1, share)
    return found


def _drawn(
    generator: np.random.Generator, mixtures: NDArray[Any], left: NDArray[Any], clients: NDArray[Any]
) -> NDArray[Any]:
    """A label for each of these clients from its mixture; from what is left, in proportion, where that is empty."""
    empty = mixtures.sum(axis=1) <= 0
    mixtures[empty] = left
    borders = np.cumsum(mixtures, axis=1)
    points = generator.random(len(clients)) * borders[clients, -1]
    last = mixtures.shape[1] - 1 - np.argmax(mixtures[:, ::-1] > 0, axis=1)
    # Where all shares are next to 0 a point is rounded up to the last border.
    labels: NDArray[Any] = np.minimum((borders[clients] <= points[:, None]).sum(axis=1), last[clients])
    return labels
