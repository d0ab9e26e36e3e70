"""Examples, data sets, and which client holds which of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Examples:
    """Labelled examples: inputs (n, …) float, in [0, 1] for images, or int32 codes; targets (n,) int64 (classes) or float."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Tensor | NDArray[Any]) -> Examples:
        """The examples at these positions."""
        where = torch.as_tensor(index, dtype=torch.long, device=self.targets.device)
        return Examples(self.inputs.index_select(0, where), self.targets.index_select(0, where))


@dataclass(frozen=True)
class DataInfo:
    """What can be said of a data set before it is read.

    Args:
        shape: of one input, e.g. (1, 28, 28) or (8,).
        num_classes: classes of the target; 0 for regression.
        train: training examples, 0 if unknown.
        test: test examples, 0 if unknown.
        vocabulary: codes that an input may hold, 0 and up; 0 where inputs are numbers to calculate with.
    """

    shape: tuple[int, ...]
    num_classes: int
    train: int = 0
    test: int = 0
    vocabulary: int = 0


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Args:
        train: what is divided among the clients.
        test: what the server evaluates on.
        info: shapes and sizes.
        columns: further columns of the training examples, (n,) each, for a natural partition.
        fingerprint: sha256 of the bytes of all examples, part of the run's key.
        facts: what else the record of a run should say, in words by name, e.g. the hash of a text.
    """

    train: Examples
    test: Examples
    info: DataInfo
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    fingerprint: str = ""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shares:
    """Which examples each client holds: two index arrays, however many clients there are.

    Args:
        indices: positions in the training set, client after client.
        offsets: (clients + 1,); client i holds ``indices[offsets[i]:offsets[i + 1]]``.
    """

    indices: NDArray[Any]
    offsets: NDArray[Any]

    @classmethod
    def of(cls, lists: Sequence[NDArray[Any]]) -> Shares:
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(each) for each in lists], out=offsets[1:])
        indices = np.concatenate(lists) if lists else np.zeros(0, dtype=np.int64)
        return cls(indices.astype(np.int32 if len(indices) and indices.max() < 2**31 else np.int64), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> NDArray[Any]:
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[client] for client in range(len(self)))

    @cached_property
    def sizes(self) -> NDArray[Any]:
        """(clients,) examples of each client; read-only."""
        sizes = np.diff(self.offsets)
        sizes.flags.writeable = False
        return sizes
