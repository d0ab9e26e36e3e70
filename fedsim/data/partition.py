"""What all partitions have in common: a check against the scenario, and the identity as the client's view."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import registry
from fedsim.data.examples import DataInfo, Dataset, Examples, Shares
from fedsim.errors import Fault, FedsimError, ScenarioError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Partition:
    """Base of all partitions: ``assign`` says who holds what, ``view`` how a client sees what it holds."""

    shares_examples = False
    """Whether several clients may hold the same example; then there may be more clients than examples."""

    by_label = False
    """Whether the partition goes by class labels, so that a regression cannot be divided by it."""

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        """Who holds which of the training examples."""
        raise NotImplementedError

    def view(self, examples: Examples, client: int, seed: int) -> Examples:
        """A client's examples (all of them, in the order of its share) as the client sees them."""
        return examples

    def least(self) -> int:
        """Examples that each client gets at the least."""
        return 1

    def check(self, scenario: Any) -> Iterable[Fault]:
        """What about this partition does not fit the scenario."""
        info = _info(scenario)
        if info is None:
            return
        yield from self.faults(info, scenario.data.clients)

    def faults(self, info: DataInfo, clients: int) -> Iterable[Fault]:
        """What does not fit a data set of this shape and size and this many clients."""
        least = self.least()
        if info.train and not self.shares_examples and clients * max(least, 1) > info.train:
            limit = info.train // max(least, 1)
            each = f" with {least} examples each at the least" if least > 1 else ""
            yield Fault("data.clients", clients, f"up to {limit}{each}: there are {info.train} training examples")
        if self.by_label and info.num_classes == 0:
            yield Fault(
                "data.partition", getattr(self, "name", "partition"), "a data set with classes: this one has none"
            )

    def refuse(self, dataset: Dataset, clients: int) -> None:
        """Raise the faults that :meth:`check` could not find before the data set was read.

        Raises:
            ScenarioError: there are some.
        """
        faults = list(self.faults(dataset.info, clients))
        if faults:
            raise ScenarioError(faults)


def by_owner(owner: NDArray[Any], clients: int) -> Shares:
    """Shares from the client that owns each example, (n,)."""
    offsets = np.zeros(clients + 1, dtype=np.int64)
    np.cumsum(np.bincount(owner, minlength=clients), out=offsets[1:])
    return Shares(np.argsort(owner, kind="stable").astype(np.int32), offsets)


def by_sizes(order: NDArray[Any], sizes: NDArray[Any]) -> Shares:
    """Shares that cut ``order``, (n,), into pieces of these sizes."""
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return Shares(order.astype(np.int32), offsets)


def even_sizes(examples: int, clients: int) -> NDArray[Any]:
    """Sizes that differ by one at the most, the larger ones first."""
    return examples // clients + (np.arange(clients) < examples % clients).astype(np.int64)


def _info(scenario: Any) -> DataInfo | None:
    """What is known of the scenario's data set; None also where its own options are at fault (they are told elsewhere)."""
    spec = scenario.data.dataset
    try:
        info: DataInfo | None = registry.make("dataset", spec.name, **dict(spec.options)).info()
    except FedsimError:
        return None
    return info
