"""Coloured MNIST: a colour that predicts the label better than the digit does, until it does not.

Images are MNIST's, every second row and column (14 × 14), in one of two channels. The label y says whether the digit is
below 5 and is flipped with probability 0.25; the colour is y flipped with a probability e that is the domain's own: 0.2
and 0.1 in training, 0.9 in the test. A classifier of the digit is right in 75 % of all domains, one of the colour in 80
and 90 %, then 10.

The first five sixths of MNIST's training images, shuffled, are dealt to the training domains in turn (column
``domain``: 0, 1, …), the last sixth is the test domain; MNIST's own test images are not used, as in the original.

Arjovsky, Bottou, Gulrajani & Lopez-Paz, "Invariant risk minimization", 2019, arXiv 1907.02893.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from fedsim import rng
from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.mnist import Mnist
from fedsim.data.reading import dataset_of, read_once
from fedsim.registry import register

if TYPE_CHECKING:
    from numpy.typing import NDArray

Probability = Annotated[float, Field(ge=0, le=1)]


@register("dataset", "cmnist")
class ColouredMnist:
    """MNIST in two colours, two classes; ``partition = { name = "natural", column = "domain" }`` makes client = domain.

    Args:
        flips: e of each training domain, the probability that the colour is not the label's.
        test_flip: e of the test domain.
        label_noise: probability that the label is not the digit's.
        seed: of the shuffle and all flips.
        folder: where MNIST's four idx files lie; by default as for ``mnist``.
    """

    flips: Annotated[list[Probability], Field(min_length=1)] = field(default_factory=lambda: [0.2, 0.1])
    test_flip: Probability = 0.9
    label_noise: Probability = 0.25
    seed: Annotated[int, Field(ge=0)] = 0
    folder: str | None = None

    def info(self) -> DataInfo:
        plain = Mnist(folder=self.folder).info()
        height, width = plain.shape[1:]
        held_out = plain.train // 6
        return DataInfo((2, (height + 1) // 2, (width + 1) // 2), 2, plain.train - held_out, held_out)

    def load(self) -> Dataset:
        plain = Mnist(folder=self.folder).load()
        options = (*self.flips, self.test_flip, self.label_noise, self.seed)
        return read_once(("cmnist", plain.fingerprint, *options), lambda: self._build(plain))

    def _build(self, plain: Dataset) -> Dataset:
        draw = rng.stream(self.seed, "data.cmnist")
        images, digits = plain.train.inputs[:, 0].numpy(), plain.train.targets.numpy()
        cut = len(digits) - len(digits) // 6
        order = draw.permutation(cut)
        domain = np.arange(cut) % len(self.flips)
        flip = np.asarray(self.flips)[domain]
        train = coloured(images[order], digits[order], flip, draw, self.label_noise)
        test = coloured(images[cut:], digits[cut:], self.test_flip, draw, self.label_noise)
        return dataset_of(*train, *test, columns={"domain": domain}, num_classes=2, where="cmnist")


def coloured(
    images: NDArray[Any],
    digits: NDArray[Any],
    flip: float | NDArray[Any],
    draw: np.random.Generator,
    label_noise: float = 0.25,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Grey images (n, H, W) and digits (n,) → coloured images (n, 2, ⌈H/2⌉, ⌈W/2⌉) and labels (n,) in {0, 1}.

    Args:
        images: grey.
        digits: 0 to 9.
        flip: e, one for all or one each.
        draw: of the flips.
        label_noise: probability that a label is flipped.
    """
    labels = (digits < 5) ^ (draw.random(len(digits)) < label_noise)
    colours = labels ^ (draw.random(len(digits)) < flip)
    small = images[:, ::2, ::2]
    result = np.zeros((len(small), 2, *small.shape[1:]), dtype=images.dtype)
    result[np.arange(len(small)), colours.astype(np.int64)] = small
    return result, labels.astype(np.int64)
