"""Independent, identically distributed: every client's examples are a uniform draw.

Without ``examples`` the training set is dealt out, each example to one client. With it, every client draws that many
examples from the whole set, whatever the others hold: populations of millions, each client a sample of its own, cost
one array of 32-bit positions.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017, 1602.05629.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from fedsim import rng
from fedsim.data.examples import DataInfo, Dataset, Shares
from fedsim.data.partition import Partition, by_sizes, even_sizes
from fedsim.errors import Fault
from fedsim.registry import register

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

BLOCK = 1 << 22
"""Numbers that are drawn at once: bounds the memory beside the result."""


@register("partition", "iid")
class Iid(Partition):
    """Every client holds a uniform draw of the training set.

    Args:
        examples: examples that each client draws from the whole set, none of them twice, independently of the other
            clients; by default the set is dealt out instead, in sizes that differ by one at the most.
    """

    examples: Annotated[int, Field(ge=1)] | None = None
    skew = "nothing"

    def __post_init__(self) -> None:
        self.shares_examples = self.examples is not None

    def faults(self, info: DataInfo, clients: int) -> Iterable[Fault]:
        yield from super().faults(info, clients)
        if self.examples is not None and info.train and self.examples > info.train:
            yield Fault("examples", self.examples, f"up to {info.train}, the training examples there are")

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        self.refuse(dataset, clients)
        total = len(dataset.train)
        if self.examples is None:
            order = rng.stream(seed, "partition.iid").permutation(total)
            return by_sizes(order, even_sizes(total, clients))
        indices = np.empty((clients, self.examples), dtype=np.int32)
        rows = max(1, BLOCK // (self.examples if 2 * self.examples <= total else total))
        for block, start in enumerate(range(0, clients, rows)):
            drawn = draw(rng.stream(seed, "partition.iid.draw", client=block), rows, self.examples, total)
            indices[start : start + rows] = drawn[: clients - start]
        return Shares(indices.reshape(-1), np.arange(clients + 1, dtype=np.int64) * self.examples)


def draw(generator: np.random.Generator, rows: int, size: int, total: int) -> NDArray[Any]:
    """(rows, size) positions below ``total``, ascending without repetition in each row, every such row equally likely.

    Up to half of the set, numbers are drawn until ``size`` different ones are there, all rows at once; beyond that each
    row is the beginning of a permutation.
    """
    if 2 * size > total:
        order = generator.permuted(np.broadcast_to(np.arange(total, dtype=np.int32), (rows, total)), axis=1)
        return np.sort(order[:, :size], axis=1)
    drawn = np.sort(generator.integers(0, total, (rows, size), dtype=np.int32), axis=1)
    open_rows = np.arange(rows)
    while True:
        again = np.zeros((len(open_rows), size), dtype=bool)
        again[:, 1:] = drawn[open_rows, 1:] == drawn[open_rows, :-1]
        some = again.any(axis=1)
        if not some.any():
            return drawn
        open_rows, again = open_rows[some], again[some]
        values = drawn[open_rows]
        values[again] = generator.integers(0, total, int(again.sum()), dtype=np.int32)
        drawn[open_rows] = np.sort(values, axis=1)
