"""Few labels a client: each client holds k labels, and each label is divided evenly among those that hold it.

Labels are dealt so that their holders' numbers differ by one at the most: client after client takes the k labels that
have the fewest holders so far, ties by lot. In ``shards`` a client may get the same label twice; here it never does.

Li, Diao, Chen & He, "Federated learning on non-IID data silos: an experimental study", ICDE 2022, 2102.02079 (#C = k).
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


@register("partition", "labels_per_client")
class LabelsPerClient(Partition):
    """Each client holds a fixed number of labels.

    Args:
        labels: how many, k; together the clients must be able to hold every label.
    """

    labels: Annotated[int, Field(ge=1)] = 2
    by_label = True
    skew = "labels"

    def faults(self, info: DataInfo, clients: int) -> Iterable[Fault]:
        yield from super().faults(info, clients)
        classes = info.num_classes
        if classes and self.labels > classes:
            yield Fault("labels", self.labels, f"up to {classes}, the labels there are", ("data.dataset",))
        elif classes and self.labels * clients < classes:
            accepted = f"at least {-(-classes // clients)}, so that {clients} clients hold all {classes} labels"
            yield Fault("labels", self.labels, accepted, ("data.dataset", "data.clients"))

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        self.refuse(dataset, clients)
        generator = rng.stream(seed, "partition.labels_per_client")
        targets, classes = dataset.train.targets.cpu().numpy(), dataset.info.num_classes
        holders: list[list[int]] = [[] for _ in range(classes)]
        for client in generator.permutation(clients):
            held = np.array([len(each) for each in holders])
            for label in np.lexsort((generator.random(classes), held))[: self.labels]:
                holders[label].append(int(client))
        owner = np.empty(len(targets), dtype=np.int64)
        for label, mine in enumerate(holders):
            members = generator.permutation(np.flatnonzero(targets == label))
            owner[members] = np.repeat(generator.permutation(mine), even_sizes(len(members), len(mine)))
        fill(owner, clients, 1, generator)
        return by_owner(owner, clients)
