"""Regression tasks of the UCI repository, read from its CSV files: the last column is the target.

Inputs and targets are standardised by the training examples' means and standard deviations.

Kaya, Tüfekci & Uzun, "Predicting CO and NOx emissions from gas turbines", Turkish Journal of Electrical Engineering &
Computer Sciences 2019 (gas turbine); Buza, "Feedback prediction for blogs", Data Analysis, Machine Learning and
Knowledge Discovery 2014 (BlogFeedback).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.reading import home, read_once
from fedsim.data.regression import Share, _split
from fedsim.errors import DataMissing, FedsimError
from fedsim.registry import register


class Table:
    """Base of both: CSV files in ``folder``, of which a share ``test`` is held out, drawn by ``data_seed``."""

    standardised: ClassVar[bool] = True
    title: ClassVar[str]
    files: ClassVar[Sequence[str]]
    header: ClassVar[int]
    examples: ClassVar[int]
    features: ClassVar[int]

    folder: str | None
    test: float
    data_seed: int

    def info(self) -> DataInfo:
        held = int(self.examples * self.test)
        return DataInfo((self.features,), 0, self.examples - held, held)

    def load(self) -> Dataset:
        where = Path(self.folder or home(self.title))
        files = [where / name for name in self.files]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise DataMissing(
                f"{self.title}: {missing[0]} is not in {where}; accepted: a folder with {', '.join(self.files)} as UCI "
                "gives them"
            )

        def read() -> Dataset:
            tables = [np.loadtxt(file, delimiter=",", skiprows=self.header, ndmin=2) for file in files]
            table = np.concatenate(tables)
            if table.shape[1] != self.features + 1:
                given = f"{table.shape[1]} columns"
                raise FedsimError(f"{self.title}: given {given}; accepted: {self.features} features and the target")
            return _split(table[:, :-1], table[:, -1], self.test, self.data_seed, self.title)

        return read_once((self.title, self.test, self.data_seed), read, files)


@register("dataset", "gas_turbine")
class GasTurbine(Table):
    """36,733 hours of a gas turbine, ten measurements (carbon monoxide among them), its nitrogen oxides.

    Args:
        folder: where gt_2011.csv to gt_2015.csv are; None: ``gas_turbine`` in fedsim's folder.
        test: share of the examples that the server evaluates on.
        data_seed: of the split; independent of the scenario's seed.
    """

    title = "gas_turbine"
    files = tuple(f"gt_{year}.csv" for year in range(2011, 2016))
    header, examples, features = 1, 36_733, 10

    folder: str | None = None
    test: Share = 0.2
    data_seed: Annotated[int, Field(ge=0)] = 0


@register("dataset", "blog_feedback")
class BlogFeedback(Table):
    """52,397 blog posts, 280 features, the comments of the following day.

    Args:
        folder: where blogData_train.csv is; None: ``blog_feedback`` in fedsim's folder.
        test: share of the examples that the server evaluates on.
        data_seed: of the split; independent of the scenario's seed.
    """

    title = "blog_feedback"
    files = ("blogData_train.csv",)
    header, examples, features = 0, 52_397, 280

    folder: str | None = None
    test: Share = 0.2
    data_seed: Annotated[int, Field(ge=0)] = 0
