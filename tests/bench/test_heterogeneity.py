"""A matrix over levels of heterogeneity: each is a setting of its own, in every table."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from fedsim.bench import differences, over_seeds, ranking, results, run_matrix
from fedsim.cli import app

sys.path.insert(0, str(Path(__file__).parent))
from matrices import matrix

LEVELS = ["dirichlet (alpha 0.1)", "dirichlet (alpha 10)"]
PARTITIONS = '"data.partition" = [{ name = "dirichlet", alpha = 0.1 }, { name = "dirichlet", alpha = 10.0 }]\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two defenses, with an attack and without, two partitions, two seeds, played."""
    where = tmp_path_factory.mktemp("bench")
    (where / "matrix.toml").write_text(matrix(rounds=2, attacks='[], ["sign_flip"]') + PARTITIONS)
    run_matrix(where / "matrix.toml", where / "out", ["client.steps=20"])
    return where / "out"


@pytest.fixture(scope="module")
def frame(folder: Path) -> pd.DataFrame:
    return results(folder)


def test_a_level_is_a_column_and_a_condition(folder: Path, frame: pd.DataFrame) -> None:
    assert len(frame) == 2 * 2 * 2 * 2
    assert list(dict.fromkeys(frame["partition"])) == LEVELS
    assert list(results(folder, "data.partition.alpha<1")["partition"]) == LEVELS[:1] * 8
    told = over_seeds(frame)
    assert len(told) == 8
    assert set(told["seeds"]) == {2}
    shown = CliRunner().invoke(app, ["results", str(folder)], catch_exceptions=False).stdout
    assert all(shown.count(level) >= 4 for level in LEVELS)


def test_what_an_attack_costs_is_told_by_the_run_without_it_on_the_same_partition(frame: pd.DataFrame) -> None:
    calm = frame[(frame["defense"] == "fedavg") & ~frame["attacked"].astype(bool)]
    base = calm.set_index(["partition", "seed"])["accuracy"]
    assert base.nunique() == 4
    for _, row in frame.iterrows():
        assert row["utility_lost"] == pytest.approx(base[row["partition"], row["seed"]] - row["accuracy"])


def test_differences_are_paired_within_a_partition(frame: pd.DataFrame) -> None:
    found = differences(frame).set_index(["partition", "attack"])
    assert len(found) == 4
    for (partition, attack), row in found.iterrows():
        here = frame[(frame["partition"] == partition) & (frame["attack"] == attack)]
        ours, theirs = (here[here["defense"] == name].set_index("seed")["accuracy"] for name in ("median", "fedavg"))
        assert (row["pairs"], row["difference"]) == (2, pytest.approx((ours - theirs).mean()))
    assert found["difference"].nunique() == 4


def test_the_ranking_takes_the_worst_of_the_partitions_and_says_which(frame: pd.DataFrame) -> None:
    attacked = frame[frame["attack"] == "sign_flip"]
    lost = attacked.groupby(["defense", "partition"])["utility_lost"].mean()
    for _, row in ranking(frame).iterrows():
        assert row["worst"] == pytest.approx(lost[row["defense"]].max())
        assert row["under"] == lost[row["defense"]].idxmax()
