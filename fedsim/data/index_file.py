"""A partition from a file of index arrays, for a division that was made elsewhere.

JSON: a list of lists of positions in the training set, client after client. NPZ: either ``indices`` and ``offsets``
(client i holds ``indices[offsets[i]:offsets[i + 1]]``), or one array for each client, in the order of the numbers in
their names (``0``, ``client_1``, ``arr_2``).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.data.examples import Dataset, Shares
from fedsim.data.partition import Partition
from fedsim.errors import Fault, FedsimError, Said, ScenarioError
from fedsim.registry import register

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fedsim.scenario import Scenario


@register("partition", "file")
class IndexFile(Partition):
    """Who holds what stands in a .json or .npz file.

    Args:
        path: the file: a JSON list of lists of positions, or NPZ arrays (``indices`` and ``offsets``, or one a client).
        shared: whether the file may give an example to several clients.
        partial: whether the file may leave out examples, which then nobody holds.
    """

    path: str
    shared: bool = False
    partial: bool = False
    skew = "as the file says"

    def __post_init__(self) -> None:
        self.shares_examples = self.shared

    def check(self, scenario: Scenario) -> Iterator[Fault]:
        yield from super().check(scenario)
        if not Path(self.path).expanduser().is_file():
            yield Fault("path", self.path, "a .json or .npz file of positions; there is no such file")

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        self.refuse(dataset, clients)
        shares = read(Path(self.path).expanduser())
        if len(shares) != clients:
            raise self._fault(f"holds {len(shares)} clients", f"data.clients = {clients}")
        counts = self._counts(shares, len(dataset.train))
        if (counts == 0).any() and not self.partial:
            missing = int((counts == 0).sum())
            raise self._fault(f"leaves out {missing} examples", "all of them, or partial = true")
        return shares

    def _fault(self, given: str, accepted: str) -> ScenarioError:
        return ScenarioError([Fault("data.partition.path", Said(f"{Path(self.path).name}: {given}"), accepted)])

    def _counts(self, shares: Shares, total: int) -> NDArray[Any]:
        indices = shares.indices
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < total:
            accepted = f"0 to {total - 1}, the training examples that data.root leaves"
            raise self._fault(f"positions {indices.min()} to {indices.max()}", accepted)
        for client, mine in enumerate(shares):
            if len(np.unique(mine)) < len(mine):
                raise self._fault(f"client {client} holds an example twice", "each once")
        counts = np.bincount(indices, minlength=total)
        if (counts > 1).any() and not self.shared:
            several = int((counts > 1).sum())
            raise self._fault(f"{several} examples have several clients", "one, or shared = true")
        return counts


def read(file: Path) -> Shares:
    """The shares in a file.

    Raises:
        FedsimError: there is no such file, or it holds something else.
    """
    try:
        if file.suffix == ".json":
            return Shares.of([_positions(each) for each in json.loads(file.read_text())])
        with np.load(file, allow_pickle=False) as arrays:
            if {"indices", "offsets"} <= set(arrays):
                offsets = _positions(arrays["offsets"])
                if (
                    len(offsets) == 0
                    or offsets[0]
                    or (np.diff(offsets) < 0).any()
                    or offsets[-1] != len(arrays["indices"])
                ):
                    raise ValueError("offsets must rise from 0 to the number of indices")
                return Shares(_positions(arrays["indices"]), offsets)
            return Shares.of([_positions(arrays[name]) for name in sorted(arrays, key=_number)])
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise FedsimError(f"{file}: given {error}; accepted: a .json or .npz file of index arrays") from error


def write(file: Path, shares: Shares) -> None:
    """Write shares as an .npz file that :func:`read` understands."""
    np.savez_compressed(file, indices=shares.indices, offsets=shares.offsets)


def _positions(values: Any) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{array.dtype} numbers of shape {array.shape}, where whole numbers of shape (n,) belong")
    return array.astype(np.int64)


def _number(name: str) -> int:
    found = re.search(r"\d+$", name)
    if not found:
        raise ValueError(f"an array '{name}' without a client's number in its name")
    return int(found.group())
