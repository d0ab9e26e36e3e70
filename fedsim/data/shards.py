"""Pathological label skew: the training set is sorted by label and cut into shards, of which each client gets a few.

With two shards a client, most clients see two classes.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017, 1602.05629.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim import rng
from fedsim.data.examples import Dataset, Shares
from fedsim.data.partition import Partition, by_owner, even_sizes
from fedsim.registry import register


@register("partition", "shards")
class Shards(Partition):
    """Each client gets a few pieces of the training set sorted by label.

    Args:
        shards: pieces for each client; their sizes differ by one example at the most.
    """

    shards: Annotated[int, Field(ge=1)] = 2
    by_label = True
    skew = "labels"

    def least(self) -> int:
        return self.shards

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        self.refuse(dataset, clients)
        generator = rng.stream(seed, "partition.shards")
        labels = dataset.train.targets.cpu().numpy()
        shuffled = generator.permutation(len(labels))
        order = shuffled[np.argsort(labels[shuffled], kind="stable")]
        pieces = clients * self.shards
        holder = generator.permutation(np.repeat(np.arange(clients), self.shards))
        owner = np.empty(len(labels), dtype=np.int64)
        owner[order] = np.repeat(holder, even_sizes(len(labels), pieces))
        return by_owner(owner, clients)
