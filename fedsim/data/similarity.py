"""Similarity: a share of the training set is dealt out uniformly, the rest sorted by label.

Of every client's examples the share γ is a uniform draw; the others are a piece of what remains, sorted by label. γ = 0
leaves each client one label or two neighbours, γ = 1 is iid. Sizes differ by one at the most.

Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning", ICML 2020, 1910.06378 ("s %
similarity"); ByzFL's ``gamma_similarity_niid``, González et al., 2025, 2505.24802.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim import rng
from fedsim.data.examples import Dataset, Shares
from fedsim.data.partition import Partition, by_owner, even_sizes
from fedsim.registry import register


@register("partition", "similarity")
class Similarity(Partition):
    """A share of each client's examples is a uniform draw, the rest comes from the set sorted by label.

    Args:
        gamma: the share γ that is dealt uniformly; 0: all sorted by label, 1: iid.
    """

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.5
    by_label = True
    skew = "labels"

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        self.refuse(dataset, clients)
        generator = rng.stream(seed, "partition.similarity")
        labels = dataset.train.targets.cpu().numpy()
        order = generator.permutation(len(labels))
        holder = generator.permutation(clients)
        uniform = round(self.gamma * len(labels))
        dealt = even_sizes(uniform, clients)
        rest = order[uniform:][np.argsort(labels[order[uniform:]], kind="stable")]
        owner = np.empty(len(labels), dtype=np.int64)
        owner[order[:uniform]] = np.repeat(holder, dealt)
        owner[rest] = np.repeat(holder, even_sizes(len(labels), clients) - dealt)
        return by_owner(owner, clients)
