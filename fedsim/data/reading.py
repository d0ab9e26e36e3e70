"""From arrays to a data set in memory: once per process, hashed, as float32 tensors (codes: int32)."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data import mapped
from fedsim.data.examples import DataInfo, Dataset, Examples
from fedsim.errors import FedsimError

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT = 4
"""Data sets that stay in memory; the one that was used longest ago goes first."""

_lock = threading.RLock()  # a data set made from another reads that one while it is read
_read: OrderedDict[Hashable, Dataset] = OrderedDict()
_kept: dict[Hashable, Dataset] = {}


def read_once(key: Hashable, read: Callable[[], Dataset], files: Sequence[Path] = ()) -> Dataset:
    """The data set of this key, read at its first use in this process.

    Args:
        key: the data set and its options.
        read: reads it.
        files: all that it is made of, if it is made of files: a changed one is read anew, and a large data set is
            decoded once a machine and memory-mapped, see :mod:`fedsim.data.mapped`.
    """
    with _lock:
        key = (key, *stamp(files)) if files else key
        if key in _kept:
            return _kept[key]
        if key not in _read:
            _read[key] = mapped.through(key, files, read) if files else read()
        _read.move_to_end(key)
        while len(_read) > KEPT:
            _read.popitem(last=False)
        return _read[key]


def keep(more: Mapping[Hashable, Dataset] | None = None) -> dict[Hashable, Dataset]:
    """Data sets in memory stay there for good, with ``more`` that another process has read.

    Returns:
        All that are kept, by the key under which they are found.
    """
    with _lock:
        _kept.update(_read)
        _kept.update(more or {})
        _read.clear()
        return dict(_kept)


def stamp(files: Iterable[Path]) -> tuple[Hashable, ...]:
    """What tells a changed file from the one that was read: path, size, time."""
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def home(name: str) -> Path:
    """Where the files of a data set are looked for: ``$FEDSIM_DATA/NAME``, by default in ``~/.cache/fedsim``."""
    root = os.environ.get("FEDSIM_DATA")
    if root:
        return Path(root).expanduser() / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "fedsim" / name


def dataset_of(
    x_train: NDArray[Any],
    y_train: NDArray[Any],
    x_test: NDArray[Any],
    y_test: NDArray[Any],
    *,
    columns: Mapping[str, NDArray[Any]] | None = None,
    num_classes: int | None = None,
    vocabulary: int = 0,
    facts: Mapping[str, str] | None = None,
    where: str = "data set",
) -> Dataset:
    """A data set of arrays: bytes are scaled to [0, 1], integer targets are classes, the rest is regression.

    Args:
        x_train: (n, …) inputs; grey images without a channel, (n, H, W), get one.
        y_train: (n,) targets.
        x_test: (m, …) inputs.
        y_test: (m,) targets.
        columns: further columns of the training examples, (n,) each.
        num_classes: classes, by default the highest label and one.
        vocabulary: where inputs are codes, how many there are; 0: inputs are numbers.
        facts: as of :class:`Dataset`.
        where: what errors call the data set.

    Raises:
        FedsimError: numbers of inputs and targets differ, shapes of training and test differ, labels below 0, codes
            that are none of the vocabulary.
    """
    for part, x, y in (("training", x_train, y_train), ("test", x_test, y_test)):
        if len(x) != len(y) or y.ndim != 1:
            raise FedsimError(f"{where}: {part} inputs {x.shape} and targets {y.shape}; accepted: (n, …) and (n,)")
        for array in (x, y):
            if array.dtype.kind not in "iubf":
                raise FedsimError(f"{where}: {part} values of type {array.dtype}; accepted: numbers")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise FedsimError(f"{where}: one training input is {x_train.shape[1:]}, one test input {x_test.shape[1:]}")
    classes = 0
    if y_train.dtype.kind in "iub":
        both = [y for y in (y_train, y_test) if len(y)]
        if any(int(y.min()) < 0 for y in both):
            raise FedsimError(f"{where}: labels start at {min(int(y.min()) for y in both)}; accepted: 0 and up")
        classes = max([num_classes or 0, *(int(y.max()) + 1 for y in both)])
    x_train, x_test = _with_channel(x_train), _with_channel(x_test)
    y_train, y_test = _plain_targets(y_train), _plain_targets(y_test)
    for x in (x_train, x_test) if vocabulary else ():
        if len(x) and not 0 <= int(x.min()) <= int(x.max()) < vocabulary:
            raise FedsimError(f"{where}: codes {x.min()} to {x.max()}; accepted: 0 to {vocabulary - 1}")
    inputs = _codes if vocabulary else _inputs
    train = Examples(inputs(x_train), _tensor(y_train, y_train.dtype.type))
    test = Examples(inputs(x_test), _tensor(y_test, y_test.dtype.type))
    info = DataInfo(tuple(train.inputs.shape[1:]), classes, len(train), len(test), vocabulary)
    key = fingerprint(x_train, y_train, x_test, y_test)
    return Dataset(train, test, info, dict(columns or {}), key, dict(facts or {}))


def fingerprint(*arrays: NDArray[Any]) -> str:
    """The sha256 of the arrays' types, shapes and bytes, in this order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _with_channel(array: NDArray[Any]) -> NDArray[Any]:
    return array[:, None] if array.ndim == 3 else array


def _plain_targets(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.int64 if array.dtype.kind in "iub" else np.float32)


def _inputs(array: NDArray[Any]) -> Tensor:
    tensor = _tensor(array, np.float32)
    return tensor.div_(255) if array.dtype == np.uint8 else tensor


def _codes(array: NDArray[Any]) -> Tensor:
    return _tensor(array, np.int32)


def _tensor(array: NDArray[Any], dtype: type) -> Tensor:
    """A tensor that owns its memory, so that nothing done to it reaches the array it came from."""
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))
