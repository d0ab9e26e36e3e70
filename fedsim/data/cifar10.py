"""CIFAR-10: 60,000 colour images, 32 × 32, ten classes.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.data import npz
from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.hub import Hub
from fedsim.data.reading import dataset_of, home, read_once
from fedsim.errors import DataMissing, FedsimError
from fedsim.registry import register

if TYPE_CHECKING:
    from numpy.typing import NDArray

HUB = Hub("uoft-cs/cifar10", input="img", label="label")
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
ARCHIVE = "cifar-10-python.tar.gz"
INNER = "cifar-10-batches-py"


@register("dataset", "cifar10")
class Cifar10:
    """60,000 colour images of 32 × 32 pixels, ten classes.

    Args:
        folder: where its "python version" lies, unpacked or as the archive cifar-10-python.tar.gz, or a cifar10.npz; by
            default fedsim's own folder (``$FEDSIM_DATA/cifar10``), then the hub.
    """

    folder: str | None = None

    def info(self) -> DataInfo:
        return DataInfo((3, 32, 32), 10, train=50000, test=10000)

    def load(self) -> Dataset:
        place = Path(self.folder).expanduser() if self.folder else home("cifar10")
        for folder in (place, place / INNER):
            files = [folder / name for name in BATCHES]
            if all(file.is_file() for file in files):
                return read_once("cifar10", lambda files=files: _of([f.read_bytes() for f in files]), files)  # type: ignore[misc]
        if (place / ARCHIVE).is_file():
            archive = place / ARCHIVE
            return read_once("cifar10", lambda: _of(_unpacked(archive)), [archive])
        if (place / "cifar10.npz").is_file():
            file = place / "cifar10.npz"
            return npz.load(file, channels_last=npz.shape_of(file, "x_train")[-1] == 3)
        where = str(place)
        if self.folder is None:
            try:
                return HUB.load()
            except DataMissing:
                where += " and on the Hugging Face hub"
        raise DataMissing(
            f"cifar10: looked for data_batch_1 … 5 and test_batch, {ARCHIVE} or cifar10.npz in {where}; connect to the "
            f"hub once, or name the folder that holds one of them: dataset = {{ name = 'cifar10', folder = '…' }}"
        )


class _Plain(pickle.Unpickler):
    """Reads pickles of NumPy arrays and plain values, and calls nothing else."""

    ALLOWED = frozenset(
        [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
        + [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise FedsimError(f"cifar10: a batch file asks for {module}.{name}; accepted: NumPy arrays alone")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_batch(content: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images (n, 3, 32, 32) and labels (n,) of a batch file.

    Raises:
        FedsimError: it is no such file.
    """
    try:
        batch = _Plain(io.BytesIO(content), encoding="bytes").load()
        plain = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        return np.asarray(plain["data"], dtype=np.uint8).reshape(-1, 3, 32, 32), np.asarray(
            plain["labels"], dtype=np.int64
        )
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, AttributeError, TypeError, IndexError) as error:
        raise FedsimError(f"cifar10: a batch file cannot be read: {error}; get it anew") from error


def _of(contents: list[bytes]) -> Dataset:
    *train, (x_test, y_test) = (read_batch(content) for content in contents)
    x_train, y_train = (np.concatenate(each) for each in zip(*train, strict=True))
    return dataset_of(x_train, y_train, x_test, y_test, num_classes=10, where="cifar10")


def _unpacked(archive: Path) -> list[bytes]:
    try:
        with tarfile.open(archive) as tar:
            files = (tar.extractfile(f"{INNER}/{name}") for name in BATCHES)
            return [file.read() for file in files if file is not None]
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise FedsimError(f"{archive}: cannot be read: {error}; get it anew") from error
