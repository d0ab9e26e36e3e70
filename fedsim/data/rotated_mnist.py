"""Rotated MNIST: each domain's digits are turned by an angle of its own, and one domain is left out for the test.

All of MNIST's images, shuffled, are dealt to the domains in turn, so that no image is in two of them; a domain's are
turned counter-clockwise by its angle. The domain left out is the test set; the others' angles are in column ``domain``.

Ghifary, Kleijn, Zhang & Balduzzi, "Domain generalization for object recognition with multi-task autoencoders", ICCV
2015, arXiv 1508.07680; the division: Gulrajani & Lopez-Paz, ICLR 2021, arXiv 2007.01434.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from fedsim import rng
from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.feature_shift import rotate
from fedsim.data.mnist import Mnist
from fedsim.data.reading import dataset_of, read_once
from fedsim.errors import Fault, FedsimError
from fedsim.registry import register

Angle = Annotated[float, Field(ge=-360, le=360)]


@register("dataset", "rotated_mnist")
class RotatedMnist:
    """MNIST's digits in domains, turned; ``partition = { name = "natural", column = "domain" }`` makes client = domain.

    Args:
        angles: degrees, counter-clockwise, one for each domain.
        left_out: the angle whose domain is the test set.
        examples: images of each domain; by default all that there are.
        seed: of the shuffle.
        folder: where MNIST's four idx files lie; by default as for ``mnist``.
    """

    angles: Annotated[list[Angle], Field(min_length=2)] = field(
        default_factory=lambda: [0.0, 15.0, 30.0, 45.0, 60.0, 75.0]
    )
    left_out: Angle = 75.0
    examples: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    folder: str | None = None

    def check(self, scenario: Any) -> Iterable[Fault]:
        """What about these domains cannot be."""
        if self.left_out not in self.angles:
            yield Fault("left_out", self.left_out, f"one of the angles: {', '.join(f'{a:g}' for a in self.angles)}")
        if len(set(self.angles)) < len(self.angles):
            yield Fault("angles", self.angles, "angles that differ")

    def info(self) -> DataInfo:
        plain = Mnist(folder=self.folder).info()
        sizes = self._sizes(plain.train + plain.test)
        test = sum(size for angle, size in zip(self.angles, sizes, strict=True) if angle == self.left_out)
        return DataInfo(plain.shape, plain.num_classes, sum(sizes) - test, test)

    def load(self) -> Dataset:
        faults = list(self.check(None))
        if faults:
            raise FedsimError("; ".join(fault.line("rotated_mnist") for fault in faults))
        plain = Mnist(folder=self.folder).load()
        options = (*self.angles, self.left_out, self.examples, self.seed)
        return read_once(("rotated_mnist", plain.fingerprint, *options), lambda: self._build(plain))

    def _sizes(self, images: int) -> list[int]:
        """Images of each domain: dealt in turn, then cut to ``examples``."""
        dealt = [len(range(k, images, len(self.angles))) for k in range(len(self.angles))]
        return dealt if self.examples is None else [min(size, self.examples) for size in dealt]

    def _build(self, plain: Dataset) -> Dataset:
        inputs = torch.cat([plain.train.inputs, plain.test.inputs])
        targets = torch.cat([plain.train.targets, plain.test.targets])
        order = rng.stream(self.seed, "data.rotated_mnist").permutation(len(targets))
        turned, labels = {}, {}
        for k, (angle, size) in enumerate(zip(self.angles, self._sizes(len(targets)), strict=True)):
            index = torch.from_numpy(order[k :: len(self.angles)][:size])
            turned[angle] = rotate(inputs[index], angle).clamp_(0, 1).numpy()
            labels[angle] = targets[index].numpy()
        kept = [angle for angle in self.angles if angle != self.left_out]
        return dataset_of(
            np.concatenate([turned[angle] for angle in kept]),
            np.concatenate([labels[angle] for angle in kept]),
            turned[self.left_out],
            labels[self.left_out],
            columns={"domain": np.repeat(kept, [len(labels[angle]) for angle in kept])},
            num_classes=10,
            where="rotated_mnist",
        )
