"""Data sets of the Hugging Face hub, read through flwr-datasets.

Without a network, what an earlier run left in the hub's own cache is used; what is not there is reported at once.

Lhoest et al., "Datasets: a community library for natural language processing", EMNLP 2021; flwr-datasets.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from fedsim import rng
from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.reading import dataset_of, read_once
from fedsim.errors import DataMissing, FedsimError, nearest
from fedsim.registry import register

if TYPE_CHECKING:
    from numpy.typing import NDArray

PATIENCE = 5
"""Seconds that the hub has to answer."""


@dataclass(frozen=True)
class Hub:
    """A data set of the hub, or a folder laid out like one.

    Args:
        path: name on the hub (``owner/name``) or a local folder.
        subset: configuration of the data set.
        train: split that is divided among the clients.
        test: split that the server evaluates on; where there is none, ``test_share`` of the training split is held out.
        input: column of the inputs; by default the only one of images, or all columns of numbers together.
        label: column of the targets; by default the first of label, labels, fine_label, target, class, y.
        test_share: share that is held out where there is no test split.
    """

    path: str
    subset: str | None = None
    train: str = "train"
    test: str = "test"
    input: str | None = None
    label: str | None = None
    test_share: float = 0.2

    def load(self) -> Dataset:
        """Read it.

        Raises:
            DataMissing: the hub does not answer, or has no such data set.
        """
        return read_once(self, self._read)

    def _read(self) -> Dataset:
        with _reachable(self.path):
            splits = self._splits()
        train = splits[0]
        label = self.label or _first(
            ("label", "labels", "fine_label", "target", "class", "y"), train.column_names, self.path
        )
        images = [n for n, kind in train.features.items() if type(kind).__name__ == "Image"]
        inputs = [self.input] if self.input else images[:1] or [n for n in _numeric(train) if n != label]
        for column in (label, *inputs):
            if column not in train.column_names:
                known = train.column_names
                raise FedsimError(
                    f"{self.path}: no column '{column}'{nearest(column, known)}; columns: {', '.join(known)}"
                )
        x, y = zip(*(_arrays(split, inputs, label) for split in splits), strict=True)
        columns = {n: np.asarray(train[n]) for n in train.column_names if n not in (label, *inputs, *images)}
        columns = {n: values for n, values in columns.items() if values.ndim == 1}
        classes = getattr(train.features[label], "num_classes", None)
        if len(splits) == 2:
            return dataset_of(x[0], y[0], x[1], y[1], columns=columns, num_classes=classes, where=self.path)
        order = rng.stream(0, "data.hub.split").permutation(len(y[0]))
        test, rest = np.split(order, [int(self.test_share * len(order) + 1e-9)])
        test, rest = np.sort(test), np.sort(rest)
        held = {n: values[rest] for n, values in columns.items()}
        return dataset_of(
            x[0][rest], y[0][rest], x[0][test], y[0][test], columns=held, num_classes=classes, where=self.path
        )

    def _splits(self) -> list[Any]:
        from flwr_datasets import FederatedDataset

        source = FederatedDataset(dataset=self.path, subset=self.subset, partitioners={}, shuffle=False)
        train = source.load_split(self.train)
        try:
            return [train, source.load_split(self.test)]
        except (ValueError, KeyError):
            return [train]


@register("dataset", "huggingface")
class HuggingFace:
    """A named data set of the Hugging Face hub, or a local folder laid out like one.

    Args:
        path: name on the hub (``owner/name``) or a local folder.
        subset: configuration of the data set.
        train: split that is divided among the clients.
        test: split that the server evaluates on; where there is none, ``test_share`` of the training split is held out.
        input: column of the inputs; by default the only one of images, or all columns of numbers together.
        label: column of the targets; by default the first of label, labels, fine_label, target, class, y.
        test_share: share that is held out where there is no test split.
    """

    path: str
    subset: str | None = None
    train: str = "train"
    test: str = "test"
    input: str | None = None
    label: str | None = None
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2

    def info(self) -> DataInfo | None:
        """Unknown until the data set is read."""
        return None

    def load(self) -> Dataset:
        return Hub(self.path, self.subset, self.train, self.test, self.input, self.label, self.test_share).load()


@contextmanager
def _reachable(path: str) -> Iterator[None]:
    """Errors of the hub as one line; where it does not answer, only its cache is asked."""
    import datasets.config
    import huggingface_hub.constants as hub
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    datasets.utils.logging.set_verbosity_error()
    before = hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    offline = hub.HF_HUB_OFFLINE
    if not Path(path).exists() and not offline:
        try:
            HfApi().dataset_info(path, timeout=PATIENCE)
        except RepositoryNotFoundError as error:
            raise DataMissing(
                f"{path}: looked for a data set of this name on the Hugging Face hub, which has none that is public"
            ) from error
        except Exception:
            offline = True
    hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except FedsimError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        network = "the Hugging Face hub does not answer and its cache has no copy" if offline else reason
        raise DataMissing(
            f"{path}: looked for it on the Hugging Face hub: {network}; connect once, or give a local folder"
        ) from error
    finally:
        hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _arrays(split: Any, inputs: list[str], label: str) -> tuple[NDArray[Any], NDArray[Any]]:
    targets = np.asarray(split[label])
    if type(split.features[inputs[0]]).__name__ == "Image":
        return _images(split[inputs[0]]), targets
    columns = [np.asarray(split[name]) for name in inputs]
    values = columns[0] if len(columns) == 1 and columns[0].ndim > 1 else np.stack(columns, axis=1)
    return values, targets


def _images(column: Any) -> NDArray[Any]:
    """(n, C, H, W) bytes of a column of pictures, which must be of one size."""
    first = np.asarray(column[0])
    mode = "L" if first.ndim == 2 else "RGB"
    shape = (len(column), *first.shape[:2]) if mode == "L" else (len(column), *first.shape[:2], 3)
    pixels = np.empty(shape, dtype=np.uint8)
    for position, picture in enumerate(column):
        values = np.asarray(picture.convert(mode))
        if values.shape != shape[1:]:
            raise FedsimError(
                f"image {position} is {values.shape}, the first {shape[1:]}; accepted: images of one size"
            )
        pixels[position] = values
    return pixels[:, None] if mode == "L" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _numeric(split: Any) -> list[str]:
    return [
        n for n, kind in split.features.items() if str(getattr(kind, "dtype", "")).startswith(("float", "int", "uint"))
    ]


def _first(names: tuple[str, ...], columns: list[str], path: str) -> str:
    for name in names:
        if name in columns:
            return name
    raise FedsimError(f"{path}: no column of targets among {', '.join(columns)}; name it by the option 'label'")
