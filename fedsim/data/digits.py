"""The data set that is always there: 1,797 handwritten digits of 8 × 8 pixels.

They come with scikit-learn, so that fedsim runs without a download. A fifth of each class, always the same, is the
test set.

Alpaydin & Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998; scikit-learn's load_digits.
"""

from __future__ import annotations

import numpy as np

from fedsim import rng
from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.reading import dataset_of, read_once
from fedsim.registry import register


@register("dataset", "digits")
class Digits:
    """1,797 handwritten digits of 8 × 8 pixels, from scikit-learn; always at hand."""

    def info(self) -> DataInfo:
        return DataInfo((1, 8, 8), 10, train=1438, test=359)

    def load(self) -> Dataset:
        return read_once("digits", _read)


def _read() -> Dataset:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    order = rng.stream(0, "data.digits.split").permutation(len(labels))
    test = np.sort(
        np.concatenate([each[: round(0.2 * len(each))] for each in (order[labels[order] == c] for c in range(10))])
    )
    train = np.setdiff1d(np.arange(len(labels)), test)
    return dataset_of(inputs[train], labels[train], inputs[test], labels[test], num_classes=10, where="digits")
