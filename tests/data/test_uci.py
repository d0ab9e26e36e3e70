"""UCI's CSV files, small ones in their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim import make
from fedsim.data.uci import BlogFeedback, GasTurbine
from fedsim.errors import DataMissing, FedsimError
from fedsim.scenario import Scenario
from fedsim.simulation import simulate

COLUMNS = "AT,AP,AH,AFDP,GTEP,TIT,TAT,TEY,CDP,CO,NOX"


def written(folder: Path) -> np.ndarray:
    """Twenty rows in each of five files; the whole table."""
    table = np.random.default_rng(0).normal(3.0, 2.0, size=(100, 11))
    for i, name in enumerate(GasTurbine.files):
        np.savetxt(folder / name, table[20 * i : 20 * (i + 1)], delimiter=",", header=COLUMNS, comments="")
    return table


def test_the_last_column_of_all_files_is_the_target(tmp_path: Path) -> None:
    table = written(tmp_path)
    found = make("dataset", "gas_turbine", folder=str(tmp_path), test=0.25).load()
    assert (len(found.train), len(found.test), tuple(found.train.inputs.shape[1:])) == (75, 25, (10,))
    torch.testing.assert_close(found.train.inputs.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.train.targets.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    targets = torch.cat([found.train.targets, found.test.targets]).flatten().double().sort().values
    wanted = torch.from_numpy(table[:, -1]).sort().values
    slope = (targets[-1] - targets[0]) / (wanted[-1] - wanted[0])
    torch.testing.assert_close(targets - targets[0], slope * (wanted - wanted[0]), atol=1e-5, rtol=0)


def test_diff2_runs_on_it(tmp_path: Path) -> None:
    written(tmp_path)
    tables = {
        "data": {"dataset": {"name": "gas_turbine", "folder": str(tmp_path)}, "clients": 4},
        "model": {"name": "mlp", "hidden": [3], "activation": "softplus"},
        "client": {"per_round": 4},
        "server": {"estimator": {"name": "diff2", "restart": 2, "c1": 1.0, "c2": 1.0, "lr": 0.1}},
        "privacy": {"epsilon": 8.0},
    }
    assert len(simulate(Scenario(rounds=3, **tables)).lines) == 4


@pytest.mark.parametrize("name", ["gas_turbine", "blog_feedback"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    if name == "gas_turbine":
        written(tmp_path)
        (tmp_path / "gt_2013.csv").unlink()
    with pytest.raises(DataMissing, match=r"gt_2013\.csv is not in|blogData_train\.csv is not in"):
        make("dataset", name, folder=str(tmp_path)).load()


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "blogData_train.csv", np.ones((5, 12)), delimiter=",")
    with pytest.raises(FedsimError, match="12 columns; accepted: 280 features and the target"):
        make("dataset", "blog_feedback", folder=str(tmp_path)).load()
    assert BlogFeedback.features == 280
