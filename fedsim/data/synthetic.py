"""A synthetic classification task of any size: one Gaussian cloud for each class.

x ~ N(μ_c, I) with the class means at the distance ``separation`` from each other, exactly so while features ≥ classes:
two classes can then be told apart with probability Φ(separation / 2), and no better.

Hastie, Tibshirani & Friedman, "The elements of statistical learning", §4.3.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim import rng
from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.reading import dataset_of, read_once
from fedsim.registry import register


@register("dataset", "synthetic_classification")
class SyntheticClassification:
    """Gaussian clouds, one for each class, as many of one class as of another.

    Args:
        examples: training examples.
        test: test examples.
        features: dimensions of an input.
        classes: classes.
        separation: distance between two class means, in standard deviations.
        label_noise: share of the training labels that are replaced by another class; the test set stays clean.
        data_seed: other seeds give other tasks; independent of the scenario's seed.
    """

    examples: Annotated[int, Field(ge=1)] = 2000
    test: Annotated[int, Field(ge=1)] = 500
    features: Annotated[int, Field(ge=1)] = 20
    classes: Annotated[int, Field(ge=2)] = 10
    separation: Annotated[float, Field(ge=0)] = 4.0
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    data_seed: Annotated[int, Field(ge=0)] = 0

    def info(self) -> DataInfo:
        return DataInfo((self.features,), self.classes, self.examples, self.test)

    def load(self) -> Dataset:
        options = (
            self.examples,
            self.test,
            self.features,
            self.classes,
            self.separation,
            self.label_noise,
            self.data_seed,
        )
        return read_once(("synthetic_classification", *options), self._make)

    def _make(self) -> Dataset:
        directions = rng.stream(self.data_seed, "data.synthetic.means").standard_normal((self.features, self.classes))
        if self.features >= self.classes:
            directions = np.linalg.qr(directions)[0]
        else:
            directions /= np.linalg.norm(directions, axis=0)
        means = (directions.T * self.separation / np.sqrt(2)).astype(np.float32)
        arrays = []
        for split, size in (("train", self.examples), ("test", self.test)):
            draw = rng.stream(self.data_seed, f"data.synthetic.{split}")
            labels = draw.permutation(np.arange(size) % self.classes)
            inputs = draw.standard_normal((size, self.features), dtype=np.float32)
            inputs += means[labels]
            arrays += [inputs, labels]
        draw = rng.stream(self.data_seed, "data.synthetic.label_noise")
        wrong = draw.permutation(self.examples)[: int(self.label_noise * self.examples + 1e-9)]
        arrays[1][wrong] = (arrays[1][wrong] + draw.integers(1, self.classes, len(wrong))) % self.classes
        return dataset_of(*arrays, num_classes=self.classes, where="synthetic_classification")
