"""What all partitions have in common: a check against the scenario, and the identity as the client's view."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
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

    images = False
    """Whether the partition is made for images only."""

    skew = ""
    """In what the clients' data differ, for the catalogue."""

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
        info = known_info(scenario)
        if info is not None:
            train = max(info.train - getattr(scenario.data, "root", 0), 0)
            yield from self.faults(replace(info, train=train), scenario.data.clients)

    def faults(self, info: DataInfo, clients: int) -> Iterable[Fault]:
        """What does not fit a data set of this shape and size (``train`` = 0: unknown) and this many clients."""
        least = max(self.least(), 1)
        if info.train and not self.shares_examples and clients * least > info.train:
            each = f" with {least} examples each at the least" if least > 1 else ""
            accepted = f"up to {info.train // least}{each}: there are {info.train} training examples"
            yield Fault("/data.clients", clients, accepted, ("data.dataset", "data.partition"))
        if self.by_label and info.num_classes == 0:
            yield Fault("name", getattr(self, "name", ""), "a data set with classes to go with it", ("data.dataset",))
        if self.images and len(info.shape) != 3:
            accepted = f"images (C, H, W) to go with it; inputs are {info.shape}"
            yield Fault("name", getattr(self, "name", ""), accepted, ("data.dataset",))

    def refuse(self, dataset: Dataset, clients: int) -> None:
        """Raise the faults that :meth:`check` could not find before the data set was read.

        Raises:
            ScenarioError: there are some.
        """
        info = replace(dataset.info, train=len(dataset.train))
        faults = [replace(fault, key=rooted(fault.key)) for fault in self.faults(info, clients)]
        if faults:
            raise ScenarioError(faults)


def rooted(key: str) -> str:
    """A key of a partition's ``check`` as seen from the scenario's root."""
    return key[1:] if key.startswith("/") else f"data.partition.{key}".rstrip(".")


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


def known_info(scenario: Any) -> DataInfo | None:
    """What is known of the scenario's data set; None also where its own options are at fault (told elsewhere)."""
    spec = scenario.data.dataset
    try:
        info: DataInfo | None = registry.make("dataset", spec.name, **dict(spec.options)).info()
    except FedsimError:
        return None
    return info
