"""Regression tasks: scikit-learn's diabetes and California housing, and a synthetic one of any size.

Inputs and targets are standardised by the training examples' means and standard deviations.

Efron, Hastie, Johnstone & Tibshirani, "Least angle regression", Annals of Statistics 2004 (diabetes); Pace & Barry,
"Sparse spatial autoregressions", Statistics & Probability Letters 1997 (California housing).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim import rng
from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.reading import dataset_of, home, read_once
from fedsim.errors import DataMissing
from fedsim.registry import register

Share = Annotated[float, Field(gt=0, lt=1)]


@register("dataset", "diabetes")
class Diabetes:
    """442 patients, ten measurements, how far the disease went in a year; it comes with scikit-learn.

    Args:
        test: share of the examples that the server evaluates on.
        data_seed: of the split; independent of the scenario's seed.
    """

    standardised: ClassVar[bool] = True

    test: Share = 0.2
    data_seed: Annotated[int, Field(ge=0)] = 0

    def info(self) -> DataInfo:
        held = int(442 * self.test)
        return DataInfo((10,), 0, 442 - held, held)

    def load(self) -> Dataset:
        def read() -> Dataset:
            from sklearn.datasets import load_diabetes

            x, y = load_diabetes(return_X_y=True)
            return _split(x, y, self.test, self.data_seed, "diabetes")

        return read_once(("diabetes", self.test, self.data_seed), read)


@register("dataset", "california_housing")
class CaliforniaHousing:
    """20,640 districts, eight features, the median house value; fetched by scikit-learn where there is a network.

    Args:
        folder: scikit-learn's data folder; None: ``california_housing`` in fedsim's.
        test: share of the examples that the server evaluates on.
        data_seed: of the split; independent of the scenario's seed.
    """

    standardised: ClassVar[bool] = True

    folder: str | None = None
    test: Share = 0.2
    data_seed: Annotated[int, Field(ge=0)] = 0

    def info(self) -> DataInfo:
        held = int(20_640 * self.test)
        return DataInfo((8,), 0, 20_640 - held, held)

    def load(self) -> Dataset:
        where = self.folder or str(home("california_housing"))

        def read() -> Dataset:
            from sklearn.datasets import fetch_california_housing

            try:
                x, y = fetch_california_housing(data_home=where, return_X_y=True)
            except OSError as error:
                raise DataMissing(
                    f"california_housing: not in {where}, and it cannot be fetched ({type(error).__name__}); accepted: "
                    "scikit-learn's file cal_housing_py3.pkz in that folder, or a network"
                ) from error
            return _split(x, y, self.test, self.data_seed, "california_housing")

        return read_once(("california_housing", where, self.test, self.data_seed), read)


@register("dataset", "synthetic_regression")
class SyntheticRegression:
    """y = f(x) + noise, x ~ N(0, I), f a random network of one hidden layer of softplus units, or linear.

    Args:
        examples: training examples.
        test: test examples.
        features: dimensions of an input.
        hidden: units of the network that makes the targets; 0: a random linear function makes them.
        noise: standard deviation of the noise on a target, in standard deviations of f.
        noise_law: normal; or exponential less its mean, skewed as prices are.
        input_std: standard deviation of the inputs that the model sees; below 1 it learns slowly, targets have 1.
        data_seed: other seeds give other tasks; independent of the scenario's seed.
    """

    standardised: ClassVar[bool] = True

    examples: Annotated[int, Field(ge=1)] = 16_512
    test: Annotated[int, Field(ge=1)] = 4_128
    features: Annotated[int, Field(ge=1)] = 8
    hidden: Annotated[int, Field(ge=0)] = 10
    noise: Annotated[float, Field(ge=0)] = 0.5
    noise_law: Literal["normal", "exponential"] = "normal"
    input_std: Annotated[float, Field(gt=0)] = 1.0
    data_seed: Annotated[int, Field(ge=0)] = 0

    def info(self) -> DataInfo:
        return DataInfo((self.features,), 0, self.examples, self.test)

    def load(self) -> Dataset:
        return read_once(("synthetic_regression", *vars(self).values()), self._make)

    def _make(self) -> Dataset:
        draw = rng.stream(self.data_seed, "data.synthetic.teacher")
        if self.hidden:
            first = draw.standard_normal((self.features, self.hidden)) * 2 / np.sqrt(self.features)
            shift, last = draw.standard_normal(self.hidden), draw.standard_normal(self.hidden)
        else:
            slope = draw.standard_normal(self.features)
        draw = rng.stream(self.data_seed, "data.synthetic.regression")
        x = draw.standard_normal((self.examples + self.test, self.features))
        y = np.logaddexp(0, x @ first + shift) @ last if self.hidden else x @ slope
        normal = self.noise_law == "normal"
        y += self.noise * y.std() * (draw.standard_normal(len(y)) if normal else draw.exponential(size=len(y)) - 1)
        train, test = slice(self.examples), slice(self.examples, None)
        return _standardised(x[train], y[train], x[test], y[test], "synthetic", self.input_std)


def _split(x: NDArray[Any], y: NDArray[Any], test: float, seed: int, where: str) -> Dataset:
    order = rng.stream(seed, f"data.{where}.split").permutation(len(x))
    held, rest = order[: int(len(x) * test)], order[int(len(x) * test) :]
    return _standardised(x[rest], y[rest], x[held], y[held], where)


def _standardised(
    x: NDArray[Any], y: NDArray[Any], x_test: NDArray[Any], y_test: NDArray[Any], where: str, input_std: float = 1.0
) -> Dataset:
    mean, sd = x.mean(0), x.std(0)
    sd = np.where(sd > 0, sd, 1.0) / input_std
    centre, scale = y.mean(), y.std() or 1.0
    arrays = ((x - mean) / sd, (y - centre) / scale, (x_test - mean) / sd, (y_test - centre) / scale)
    return dataset_of(*(array.astype(np.float32) for array in arrays), where=where)
