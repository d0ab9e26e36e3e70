"""A noisy linear teacher: the regression on which the theory of generalization error is exact.

    y = ⟨w, x⟩ + ε,    x ~ N(0, I/N),    w ~ N(0, σ_w² I),    ε ~ N(0, σ_ε²),

N inputs, P examples; inputs and targets are not standardised, since their variances are the theory's clock.

Advani & Saxe, "High-dimensional dynamics of generalization error in neural networks", 2017, arXiv 1710.03667.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim import rng
from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.reading import dataset_of, read_once
from fedsim.registry import register

Count = Annotated[int, Field(ge=1)]
Variance = Annotated[float, Field(ge=0)]


@register("dataset", "teacher_student")
class TeacherStudent:
    """A linear function of Gaussian inputs of variance 1/N, with noise on the targets.

    Args:
        inputs: N.
        examples: P, training examples.
        test: test examples.
        signal: σ_w², variance of the teacher's weights.
        noise: σ_ε², variance of the noise on a target.
        data_seed: other seeds give other tasks; independent of the scenario's seed.
    """

    inputs: Count = 200
    examples: Count = 200
    test: Count = 4000
    signal: Variance = 1.0
    noise: Variance = 0.2
    data_seed: Annotated[int, Field(ge=0)] = 0

    def info(self) -> DataInfo:
        return DataInfo((self.inputs,), 0, self.examples, self.test)

    def load(self) -> Dataset:
        options = (self.inputs, self.examples, self.test, self.signal, self.noise, self.data_seed)
        return read_once(("teacher_student", *options), self._make)

    def _make(self) -> Dataset:
        draw = rng.stream(self.data_seed, "data.teacher_student")
        teacher = draw.normal(0, self.signal**0.5, self.inputs)
        x = draw.normal(0, self.inputs**-0.5, (self.examples + self.test, self.inputs))
        y = x @ teacher + draw.normal(0, self.noise**0.5, len(x))
        x, y = x.astype(np.float32), y.astype(np.float32)
        p = self.examples
        return dataset_of(x[:p], y[:p], x[p:], y[p:], where="teacher_student")
