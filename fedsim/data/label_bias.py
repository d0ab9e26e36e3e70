"""Label bias: one group of clients a label, in which that label is more frequent than elsewhere.

The clients are divided by lot into as many groups as there are labels, L. An example of label l goes to group l with
probability q, to each other group with probability (1 - q) / (L - 1), and in its group to a client drawn uniformly.
q = 1 / L is iid, q = 1 leaves each group its own label. Studies of Byzantine attacks call q the degree of non-iid.

Fang, Cao, Jia & Gong, "Local model poisoning attacks to Byzantine-robust federated learning", USENIX Security 2020,
1911.11815; Cao et al., "FLTrust", NDSS 2021, 2012.13995.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from fedsim import rng
from fedsim.data.dirichlet import fill
from fedsim.data.examples import DataInfo, Dataset, Shares
from fedsim.data.partition import Partition, by_owner, even_sizes
from fedsim.errors import Fault
from fedsim.registry import register

if TYPE_CHECKING:
    from collections.abc import Iterable


@register("partition", "label_bias")
class LabelBias(Partition):
    """In each group of clients one label is more frequent than elsewhere.

    Args:
        bias: probability q that an example goes to the group of its label; 1 / labels is iid.
    """

    bias: Annotated[float, Field(ge=0, le=1)] = 0.5
    by_label = True
    skew = "labels"

    def faults(self, info: DataInfo, clients: int) -> Iterable[Fault]:
        yield from super().faults(info, clients)
        if clients < info.num_classes:
            accepted = f"at least {info.num_classes}: a group of clients for each label"
            yield Fault("/data.clients", clients, accepted, ("data.dataset", "data.partition"))

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        self.refuse(dataset, clients)
        generator = rng.stream(seed, "partition.label_bias")
        labels, groups = dataset.train.targets.cpu().numpy(), dataset.info.num_classes
        group = labels.astype(np.int64)
        if groups > 1:
            stray = generator.random(len(labels)) >= self.bias
            group = (group + stray * generator.integers(1, groups, len(labels))) % groups
        sizes = even_sizes(clients, groups)
        place = np.cumsum(sizes) - sizes
        drawn = place[group] + generator.integers(0, sizes[group])
        owner = generator.permutation(clients)[drawn].astype(np.int64)
        fill(owner, clients, 1, generator)
        return by_owner(owner, clients)
