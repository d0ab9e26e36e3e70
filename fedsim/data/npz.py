"""Any data set as one .npz file of NumPy arrays.

It holds ``x_train``, ``y_train``, ``x_test``, ``y_test``, as Keras lays out its own; further arrays with one value for
each training example become columns, by which a natural partition can go.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.reading import dataset_of, read_once
from fedsim.errors import DataMissing, FedsimError
from fedsim.registry import register

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@register("dataset", "npz")
class Npz:
    """An .npz file with x_train, y_train, x_test and y_test.

    Args:
        path: the file.
        channels_last: whether images are (n, H, W, C) in the file.
    """

    path: str
    channels_last: bool = False

    def info(self) -> DataInfo | None:
        """Shapes and sizes, without reading the inputs."""
        file = Path(self.path).expanduser()
        if not file.is_file():
            return None
        train, test = shape_of(file, "x_train"), shape_of(file, "x_test")
        shape = (train[3], *train[1:3]) if self.channels_last and len(train) == 4 else train[1:]
        labels = [each for each in (_read(file, ["y_train", "y_test"])) if each.size]
        classes = max(int(y.max()) + 1 for y in labels) if labels and all(y.dtype.kind in "iub" for y in labels) else 0
        return DataInfo((1, *shape) if len(shape) == 2 else shape, classes, train[0], test[0])

    def load(self) -> Dataset:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise DataMissing(f"npz: looked for the file {file}, which is not there; give the path of an .npz file")
        return load(file, self.channels_last)


def load(file: Path, channels_last: bool = False) -> Dataset:
    """The data set in an .npz file."""

    def read() -> Dataset:
        x_train, y_train, x_test, y_test = _read(file, list(ARRAYS))
        with np.load(file, allow_pickle=False) as arrays:
            others = {name: arrays[name] for name in arrays if name not in ARRAYS}
        columns = {name: array for name, array in others.items() if array.shape == (len(x_train),)}
        if channels_last and x_train.ndim == 4:
            x_train, x_test = x_train.transpose(0, 3, 1, 2), x_test.transpose(0, 3, 1, 2)
        return dataset_of(x_train, y_train, x_test, y_test, columns=columns, where=str(file))

    return read_once(("npz", channels_last), read, [file])


def shape_of(file: Path, name: str) -> tuple[int, ...]:
    """Shape of an array in an .npz file, from its header."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return tuple(header(stream)[0])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise FedsimError(f"{file}: {_reason(error)}; accepted: an .npz file with {', '.join(ARRAYS)}") from error


def _read(file: Path, names: list[str]) -> list[NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return [arrays[name].squeeze(-1) if _is_column(name, arrays[name]) else arrays[name] for name in names]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise FedsimError(f"{file}: {_reason(error)}; accepted: an .npz file with {', '.join(ARRAYS)}") from error


def _is_column(name: str, array: NDArray[Any]) -> bool:
    return name.startswith("y_") and array.ndim == 2 and array.shape[1] == 1


def _reason(error: Exception) -> str:
    return str(error.args[0]).splitlines()[0] if error.args else type(error).__name__
