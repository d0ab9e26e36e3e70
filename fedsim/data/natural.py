"""The partition that the data bring along: a column says who made each example.

Caldas et al., "LEAF: a benchmark for federated settings", 2018, 1812.01097.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import rng
from fedsim.data.dirichlet import proportional
from fedsim.data.examples import Dataset, Shares
from fedsim.data.partition import Partition, by_owner
from fedsim.errors import Fault, ScenarioError, nearest
from fedsim.registry import register

if TYPE_CHECKING:
    from numpy.typing import NDArray


@register("partition", "natural")
class Natural(Partition):
    """One client for each value of a column (a writer, a hospital, a user).

    With fewer clients than values, whole values are dealt to the clients by lot, as many to each; with more there is an
    error.

    Args:
        column: a column of the data set beside inputs and targets, or ``target``.
    """

    column: str
    skew = "as the data"

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        self.refuse(dataset, clients)
        values, group = np.unique(column(dataset, self.column), return_inverse=True)
        if clients > len(values):
            accepted = f"up to {len(values)}, the different values of column '{self.column}'"
            raise ScenarioError([Fault("data.clients", clients, accepted)])
        if clients == len(values):
            return by_owner(group, clients)
        holders = np.repeat(np.arange(clients), proportional(np.ones(clients), len(values)))
        return by_owner(rng.stream(seed, "partition.natural").permutation(holders)[group], clients)


def column(dataset: Dataset, name: str) -> NDArray[Any]:
    """A column of the training examples.

    Raises:
        ScenarioError: there is none of this name.
    """
    if name == "target":
        return dataset.train.targets.cpu().numpy()
    if name not in dataset.columns:
        known = ["target", *dataset.columns]
        raise ScenarioError([Fault("data.partition.column", name, f"{', '.join(known)}{nearest(name, known)}")])
    return dataset.columns[name]
