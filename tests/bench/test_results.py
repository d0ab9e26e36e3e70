"""What a benchmark found: tables, conditions, exports, merging."""

from __future__ import annotations

import json
import math
import platform
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner, Result

import fedsim
from fedsim.analysis.statistics import bootstrap_interval, t_interval
from fedsim.bench import differences, merge, over_seeds, ranking, results, run_matrix
from fedsim.bench.cell import Cell, measured
from fedsim.bench.locks import held
from fedsim.bench.store import MEASURES, Store
from fedsim.cli import app
from fedsim.cli_bench import settings_table, unranked
from fedsim.errors import FedsimError, RecordError
from fedsim.report.standings import Standings
from fedsim.scenario import Scenario

sys.path.insert(0, str(Path(__file__).parent))
from matrices import matrix


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two attacks, two defenses, two seeds, played."""
    where = tmp_path_factory.mktemp("bench")
    (where / "matrix.toml").write_text(matrix())
    run_matrix(where / "matrix.toml", where / "out")
    return where / "out"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_a_row_a_cell_as_the_folders_say(folder: Path) -> None:
    frame = results(folder)
    assert len(frame) == 8
    assert set(frame["attack"]) == {"sign_flip", "badnets (target 0)"}
    for _, row in frame.iterrows():
        lines = [json.loads(line) for line in (folder / row["folder"] / "rounds.jsonl").read_text().splitlines()]
        measured = [line["accuracy"] for line in lines if line["round"] > 0 and line["accuracy"] is not None]
        assert row["accuracy"] == pytest.approx(np.mean(measured[-5:]))
        assert row["last_rounds"] == min(5, len(measured))
        assert row["digest"] == json.loads((folder / row["folder"] / "summary.json").read_text())["digest"]


def test_utility_is_lost_to_plain_averaging_without_attack(folder: Path) -> None:
    """The twin of the backdoor's cells tells it for the untargeted attack's cells, too."""
    frame = results(folder)
    calm = frame[frame["defense"] == "fedavg"].groupby("seed")["calm_accuracy"].agg(["min", "max"])
    assert (calm["min"] == calm["max"]).all()
    for _, row in frame.iterrows():
        assert row["utility_lost"] == pytest.approx(calm["min"][row["seed"]] - row["accuracy"])
    backdoor = frame[frame["attack"] != "sign_flip"]
    assert (backdoor["asr_gain"] - (backdoor["asr"] - backdoor["floor"])).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("where", "count"),
    [
        (["defense=krum"], 0),
        (["defense=median"], 4),
        (["attack=badnets", "seed=0"], 2),
        (["attack=badnets (target 0)"], 4),
        (["attack!=badnets"], 4),
        (["seed<1"], 4),
        (["data.clients>=6"], 8),
        (["data.partition=dirichlet"], 8),
        (["adversary.attacks[0].target=0"], 4),
        (["state=finished", "accuracy>2"], 0),
        (["adversary.fraction=0.2"], 0),
        (["data.partition.alpha=0.5"], 8),
        ("seed=1", 4),
    ],
)
def test_conditions(folder: Path, where: list[str] | str, count: int) -> None:
    assert len(results(folder, where)) == count


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("server=3", "one of server.analysis, server.defenses, "),
        ("server.defences=krum", r"did you mean 'server.defenses'\?"),
        ("server.defenses.name=krum", r"did you mean 'server.defenses\[0\].name'\?"),
        ("adversary.attacks[0].traget=0", r"did you mean 'adversary.attacks\[0\].target'\?"),
    ],
)
def test_a_condition_on_what_no_cell_has_is_no_empty_answer(folder: Path, where: str, said: str) -> None:
    with pytest.raises(FedsimError, match=said):
        results(folder, where)


@pytest.mark.parametrize("where", ["defence=krum", "nonsense", "=3", "accuracy>high"])
def test_a_condition_that_names_nothing(folder: Path, where: str) -> None:
    with pytest.raises(FedsimError, match="--where: given"):
        results(folder, where)


def test_rounds(folder: Path) -> None:
    frame = results(folder, "defense=median", level="rounds")
    assert len(frame) == 4 * 5
    assert frame.groupby("key")["round"].apply(list).tolist() == [[0, 1, 2, 3, 4]] * 4


def test_no_results_is_one_line(tmp_path: Path) -> None:
    done = call("results", str(tmp_path))
    assert done.exit_code == 1
    assert done.stderr.startswith(f"fedsim: {tmp_path}: holds no results; accepted:")


def test_exports_hold_the_same_cells(folder: Path, tmp_path: Path) -> None:
    frame = results(folder)
    done = call("results", str(folder), "--csv", "--out", str(tmp_path / "a.csv"))
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "a.csv"))
    assert call("results", str(folder), "--parquet", "--out", str(tmp_path / "a.parquet")).exit_code == 0
    told = json.loads(call("results", str(folder), "--json").stdout)
    for other in (pd.read_csv(tmp_path / "a.csv"), pd.read_parquet(tmp_path / "a.parquet"), pd.DataFrame(told)):
        assert list(other["digest"]) == list(frame["digest"])
        assert other["accuracy"].to_numpy() == pytest.approx(frame["accuracy"].to_numpy(), abs=1e-9)
    assert call("results", str(folder), "--parquet").exit_code == 2
    assert call("results", str(folder), "--csv", "--json").exit_code == 2


def test_the_table_on_the_screen(folder: Path) -> None:
    shown = call("results", str(folder)).stdout
    assert "means over the last 2 evaluated rounds" in shown
    assert "worst harm" in shown
    single = call("results", str(folder), "--where", "seed=0").stdout
    assert "1: a single seed" in single
    against = call("results", str(folder), "--against", "fedavg").stdout
    assert "Holm" in against
    assert call("results", str(folder), "--against", "krum").exit_code == 1


def test_what_no_cell_has_is_told_with_what_they_have(folder: Path) -> None:
    assert call("results", str(folder), "--where", "defense=medain").stdout == (
        "no cell; defense is one of: fedavg, median\n"
    )
    wrong = call("results", str(folder), "--against", "fedavg", "--measure", "accurate")
    assert "given measure 'accurate'; accepted: one of: accuracy, loss" in wrong.stderr


def test_a_damaged_store_says_how_to_get_a_new_one(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "out")
    for file in (tmp_path / "out").glob("results.sqlite*"):
        file.unlink()
    (tmp_path / "out" / "results.sqlite").write_text("no database")
    with pytest.raises(FedsimError, match="remove it: the cells' folders hold all"):
        results(tmp_path / "out")
    (tmp_path / "out" / "results.sqlite").unlink()
    assert [cell.state for cell in run_matrix(folder.parent / "matrix.toml", tmp_path / "out")] == ["skipped"] * 8
    assert list(results(tmp_path / "out")["digest"]) == list(results(folder)["digest"])


def test_why_a_defense_has_no_place_is_told() -> None:
    frame = cells(defense=["p", "p", "q"], attack=["x", "y", "x"], seed=[0, 0, 0], utility_lost=[0.5, 0.6, 0.1])
    assert unranked(frame, ranking(frame)) == "not ranked, since some attack was not measured against them: q"
    calmless = cells(defense=["p", "q"], attack=["x"] * 2, seed=[0] * 2)
    assert unranked(calmless, ranking(calmless)).startswith("no ranking: nothing tells what the attacks cost")
    complete = frame[frame["attack"] == "x"]
    assert unranked(complete, ranking(complete)) == ""


def cells(**columns: object) -> pd.DataFrame:
    """Made cells: what is not given does not matter."""
    frame = pd.DataFrame(columns)
    filler = {
        "dataset": "digits", "partition": "iid", "state": "finished", "attacked": True, "marks": "", "floor": math.nan,
        "seconds": 1.0, "chance": 1.0, "attacker_rows": 1.0, "attacker_rows_kept": 1.0, "last_rounds": 5.0,
        "accuracy": 0.5, "asr": math.nan, "utility_lost": math.nan, "asr_gain": math.nan,
    }  # fmt: skip
    for name, value in filler.items():
        if name not in frame:
            frame[name] = value
    frame["setting"] = frame["defense"] + frame["attack"]
    return frame


def test_intervals_over_seeds_are_students() -> None:
    values = [0.81, 0.84, 0.79]
    frame = cells(defense=["d"] * 3, attack=["a"] * 3, seed=[0, 1, 2], accuracy=values)
    ((_, row),) = over_seeds(frame).iterrows()
    theirs = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (row["accuracy"], row["accuracy_low"], row["accuracy_high"]) == pytest.approx((np.mean(values), *theirs))
    assert row["seeds"] == 3
    assert math.isnan(row["asr"])
    assert row["marks"] == ""


def test_an_interval_of_a_share_stays_one() -> None:
    frame = cells(defense=["d"] * 2, attack=["a"] * 2, seed=[0, 1], asr=[0.1, 0.9])
    ((_, row),) = over_seeds(frame).iterrows()
    assert (row["asr_low"], row["asr_high"]) == (0.0, 1.0)


def test_marks_reach_the_table() -> None:
    frame = cells(defense=["d", "d", "e"], attack=["a"] * 3, seed=[0, 1, 0], marks=["", "d", "a"])
    assert list(over_seeds(frame)["marks"]) == ["d", "a1"]
    frame = cells(
        defense=["d", "d", "e", "e"],
        attack=["a"] * 4,
        seed=[0, 1] * 2,
        marks=["", "d", "", ""],
        utility_lost=[0.1, 0.2, 0.3, 0.4],
    )
    assert list(ranking(frame)["marks"]) == ["d", ""]


def test_a_defense_that_never_acts_and_an_attack_that_never_does_are_marked(tmp_path: Path) -> None:
    """A norm bound out of reach, a replacement of scale one: neither does anything."""
    (tmp_path / "matrix.toml").write_text(
        matrix(
            rounds=2,
            seeds=1,
            attacks='["sign_flip"], [{ name = "model_replacement", scale = 1.0 }]',
            defenses='[{ name = "norm_bound", radius = 1e6 }], ["median"]',
        )
    )
    run_matrix(tmp_path / "matrix.toml", tmp_path / "out")
    frame = results(tmp_path / "out").set_index(["defense", "attack"])["marks"]
    assert frame.xs("sign_flip", level="attack").tolist() == ["d", ""]
    assert all("a" in mark for mark in frame.drop("sign_flip", level="attack"))


def test_ranking_takes_the_larger_of_two_harms_under_the_worst_attack() -> None:
    frame = cells(
        defense=["p"] * 4 + ["q"] * 4,
        attack=["x", "x", "y", "y"] * 2,
        seed=[0, 1] * 4,
        utility_lost=[0.0, 0.0, 0.1, 0.1, 0.3, 0.3, 0.3, 0.3],
        asr_gain=[0.9, 0.91, math.nan, math.nan, 0.2, 0.2, math.nan, math.nan],
    )
    found = ranking(frame)
    assert list(found["defense"]) == ["q", "p"]
    assert list(found["worst"]) == pytest.approx([0.3, 0.905])
    assert list(found["under"]) == ["x", "x"]
    assert list(found["place"]) == [1, 2]
    assert list(ranking(frame, "utility_lost")["worst"]) == pytest.approx([0.1, 0.3])


def test_no_interval_of_the_ranking_reaches_beyond_what_harm_can_be() -> None:
    frame = cells(defense=["p"] * 2, attack=["x"] * 2, seed=[0, 1], utility_lost=[0.1, 0.9])
    found = ranking(frame)
    assert (found["low"][0], found["high"][0]) == (-1.0, 1.0)
    assert found["worst"][0] == pytest.approx(0.5)
    drawn = ranking(frame, interval="bootstrap")
    assert (drawn["low"][0], drawn["high"][0]) == pytest.approx((0.1, 0.9))


def test_the_bootstrap_over_seeds_is_that_of_the_statistics() -> None:
    values, lost = [0.81, 0.84, 0.79, 0.5], [0.1, 0.2, 0.6, 0.15]
    frame = cells(defense=["p"] * 4, attack=["x"] * 4, seed=[0, 1, 2, 3], accuracy=values, utility_lost=lost)
    ((_, row),) = over_seeds(frame, "bootstrap").iterrows()
    for name, given in (("accuracy", values), ("utility_lost", lost)):
        told = bootstrap_interval(given)
        assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == (told.mean, told.low, told.high)
        assert told.high - told.low < 0.8 * (t_interval(given).high - t_interval(given).low)
    assert math.isnan(row["asr_low"])
    told = bootstrap_interval(lost)
    assert tuple(ranking(frame, interval="bootstrap")[["worst", "low", "high"]].iloc[0]) == pytest.approx(told[:3])


def test_the_command_shows_the_bootstrap_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "matrix.toml").write_text(matrix(rounds=1, seeds=3, attacks='[], ["sign_flip"]'))
    run_matrix(tmp_path / "matrix.toml", tmp_path / "out")
    frame, shown = results(tmp_path / "out"), call("results", str(tmp_path / "out"), "--interval", "bootstrap").stdout
    assert "95 % intervals over seeds (bootstrap)" in shown
    assert "its floor, 95 % intervals over seeds (bootstrap);" in shown
    assert "Student" not in shown
    for defense in ("fedavg", "median"):
        told = bootstrap_interval(frame[(frame["defense"] == defense) & frame["attacked"]]["accuracy"])
        assert told.low < told.high
        text = f"{told.mean:.3f} ({told.low:.3f} to {told.high:.3f})"
        assert text in shown
        assert text not in call("results", str(tmp_path / "out")).stdout


def test_a_defense_that_missed_an_attack_is_not_ranked() -> None:
    frame = cells(defense=["p", "p", "q"], attack=["x", "y", "x"], seed=[0, 0, 0], utility_lost=[0.5, 0.6, 0.1])
    assert list(ranking(frame)["defense"]) == ["p"]
    assert ranking(frame[frame["defense"] == "none"]).empty


def test_a_seed_whose_run_without_attack_failed_has_no_harm(folder: Path, tmp_path: Path) -> None:
    """A backdoor's success alone, with the accuracy that it cost unknown, would pass for a small harm."""
    lost = shutil.copytree(folder, tmp_path / "lost")
    whole = results(lost)
    (calm,) = whole[(whole["defense"] == "fedavg") & (whole["attack"] != "sign_flip") & (whole["seed"] == 1)]["key"]
    with closing(sqlite3.connect(lost / "results.sqlite", isolation_level=None)) as writer:
        writer.execute("UPDATE cells SET state = 'failed', error = 'late' WHERE key = ?", (calm,))
    frame = results(lost)
    assert "not in the ranking: 3 cells with unknown costs" in unranked(frame, ranking(frame))
    assert [setting.measures["harm"].n for setting in Standings.read(lost).settings] == [1] * 4
    made = cells(
        defense=["p"] * 2 + ["q"] * 2,
        attack=["x"] * 4,
        seed=[0, 1] * 2,
        utility_lost=[0.5, math.nan, 0.6, math.nan],
        asr_gain=[0.1, 0.2, 0.1, 0.2],
    )
    assert list(ranking(made)["worst"]) == [0.5, 0.6]
    assert list(ranking(made)["seeds"]) == [1, 1]


def test_differences_are_paired_and_adjusted() -> None:
    frame = cells(
        defense=["fedavg"] * 3 + ["p"] * 3 + ["q"] * 2,
        attack=["x"] * 8,
        seed=[0, 1, 2, 0, 1, 2, 1, 2],
        accuracy=[0.5, 0.6, 0.7, 0.55, 0.66, 0.77, 0.62, 0.71],
    )
    found = differences(frame).set_index("defense")
    theirs = stats.ttest_rel([0.55, 0.66, 0.77], [0.5, 0.6, 0.7])
    assert found.loc["p", "p"] == pytest.approx(theirs.pvalue)
    assert found.loc["p", "p_holm"] == pytest.approx(2 * theirs.pvalue)
    assert found.loc["q", "pairs"] == 2
    assert found.loc["q", "difference"] == pytest.approx(0.015)


def test_merging_brings_in_what_is_missing_and_tells_what_differs(folder: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (tmp_path / "one.toml").write_text(matrix(seeds=1))
    run_matrix(tmp_path / "one.toml", here)
    first = merge([folder], here)
    assert (first.added, first.known, first.differ) == (4, 4, [])
    assert sorted(results(here)["digest"]) == sorted(results(folder)["digest"])
    assert list(over_seeds(results(here))["seeds"]) == [2] * 4
    shutil.copytree(folder, there)
    changed = next(there.glob("median-0-*"))
    said = json.loads((changed / "summary.json").read_text())
    (changed / "summary.json").write_text(json.dumps(said | {"digest": "another"}))
    (there / "results.sqlite").unlink()
    run_matrix(folder.parent / "matrix.toml", there)
    again = call("merge", str(there), "--out", str(here))
    assert again.exit_code == 1
    assert changed.name in again.stderr
    assert "7 cells were there" in again.stdout
    assert merge([folder, there], tmp_path / "new").added == 8


def test_what_an_attack_costs_is_told_by_the_same_version(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.toml").write_text(matrix(seeds=1, attacks='[], ["sign_flip"]', defenses='["fedavg"]'))
    for version in ("0.0.1", "0.0.2"):
        monkeypatch.setattr(fedsim, "__version__", version)
        run_matrix(tmp_path / "one.toml", tmp_path / version)
    merge([tmp_path / "0.0.1", tmp_path / "0.0.2"], tmp_path / "both")
    with closing(sqlite3.connect(tmp_path / "both" / "results.sqlite", isolation_level=None)) as store:
        query = "SELECT key, summary FROM cells JOIN versions ON id = versions WHERE fedsim = '0.0.2'"
        for key, said in store.execute(f"{query} AND matrix LIKE '%: [],%'").fetchall():
            better = json.dumps(json.loads(said) | {"accuracy": 2.0})
            store.execute("UPDATE cells SET summary = ? WHERE key = ?", (better, key))
    frame = results(tmp_path / "both", "attack=sign_flip").set_index("fedsim")
    assert frame.loc["0.0.2", "utility_lost"] == 2.0 - frame.loc["0.0.2", "accuracy"]
    assert frame.loc["0.0.1", "utility_lost"] < 1.0


def test_a_cell_whose_process_is_gone_is_not_running(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "out")
    out, store = tmp_path / "out", tmp_path / "out" / "results.sqlite"
    with sqlite3.connect(store) as connection:
        here, there, (gone, _) = connection.execute("SELECT key, folder FROM cells LIMIT 3").fetchall()
        for key, host in ((here[0], platform.node()), (there[0], "elsewhere"), (gone, platform.node())):
            connection.execute("UPDATE cells SET state = 'running' WHERE key = ?", (key,))
            play = "INSERT INTO plays (key, session, host, pid, began, state) VALUES (?, 'x', ?, 1, 0, 'running')"
            connection.execute(play, (key, host))
    connection.close()
    with held(out / "locks" / here[1]) as ours:
        assert ours
        states = results(out).set_index("key")["state"]
        assert (states[here[0]], states[there[0]], states[gone]) == ("running", "running or stopped", "stopped")
    shown = call("results", str(out)).output
    assert "cells   2 stopped, 1 running or stopped, 5 finished" in shown


def test_cells_of_several_matrices_are_told_apart_by_all_that_any_of_them_varies(tmp_path: Path) -> None:
    first = matrix(rounds=1, attacks='["sign_flip"]') + '"client.steps" = [1, 2]\n'
    (tmp_path / "first.toml").write_text(first)
    (tmp_path / "second.toml").write_text(first.replace('"client.steps" = [1, 2]', 'model = ["mlp", "logistic"]'))
    for name in ("first", "second"):
        run_matrix(tmp_path / f"{name}.toml", tmp_path / name)
    merge([tmp_path / "first", tmp_path / "second"], tmp_path / "both")
    second = differences(results(tmp_path / "second"))
    assert list(second["model"]) == ["mlp", "logistic"]
    assert list(second["pairs"]) == [2, 2]
    both = results(tmp_path / "both")
    assert set(zip(both["client.steps"], both["model"], strict=True)) == {
        ("1", "logistic"),
        ("2", "mlp"),
        ("2", "logistic"),
    }
    table = differences(both)
    assert list(table["pairs"]) == [2, 2, 2]


def test_an_export_of_no_cell_has_its_columns(folder: Path) -> None:
    for more in ((), ("--rounds",)):
        shown = call("results", str(folder), "--csv", "--where", "seed=99", *more).stdout
        assert shown == call("results", str(folder), "--csv", *more).stdout.splitlines()[0] + "\n"


def test_rounds_are_told_apart_as_cells_are_and_hold_numbers(tmp_path: Path) -> None:
    file = tmp_path / "matrix.toml"
    file.write_text(matrix(rounds=1, seeds=1, attacks='["sign_flip"]', defenses='["fedavg"]'))
    file.write_text(file.read_text() + '"client.steps" = [1, 2]\n')
    run_matrix(file, tmp_path / "out")
    rounds = results(tmp_path / "out", level="rounds")
    assert list(rounds["client.steps"]) == ["1", "1", "2", "2"]
    assert {str(rounds[name].dtype) for name in MEASURES} == {"float64"}
    assert "asr is not known" in call("results", str(tmp_path / "out"), "--where", "asr>0.5").output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--out", "table.txt"), "--out: accepted with --csv, --parquet or --json"),
        (("--against", "fedavg", "--csv"), "--against: accepted without --csv"),
        (("--measure", "asr"), "--measure: accepted with --against"),
        (("--interval", "bootstrap", "--json"), "--interval: accepted for the table"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(folder: Path, given: tuple[str, ...], said: str) -> None:
    found = call("results", str(folder), *given)
    assert found.exit_code == 2
    assert said in " ".join(found.output.replace("│", "").split())


@pytest.mark.parametrize("missing", ["summary.json", "rounds.jsonl", "run.json"])
def test_a_folder_that_lost_a_file_is_left_and_the_others_come_in(folder: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(folder, tmp_path / "from")
    name = results(folder)["folder"].iloc[2]
    (tmp_path / "from" / name / missing).unlink()
    done = merge([tmp_path / "from"], tmp_path / "out")
    assert (done.added, done.unfinished) == (7, [name])
    assert not (tmp_path / "out" / name).exists()


def test_a_cell_that_is_finished_while_a_merge_waits_for_it_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "out")
    out, name = tmp_path / "out", results(folder)["folder"].iloc[0]
    (out / name / "mark").touch()

    def state(value: str) -> None:
        with closing(sqlite3.connect(out / "results.sqlite")) as connection, connection:
            connection.execute("UPDATE cells SET state = ?, digest = 'of another' WHERE folder = ?", (value, name))

    @contextmanager
    def late(path: Path, wait: bool = False) -> Iterator[bool]:
        state("finished")
        yield True

    state("running")
    monkeypatch.setattr(sys.modules["fedsim.bench.results"], "held", late)
    assert merge([folder], out).differ == [name]
    assert (out / name / "mark").exists()


def test_a_defense_all_of_whose_cells_failed_is_named_beside_the_ranking(folder: Path) -> None:
    frame = results(folder)
    frame.loc[frame["defense"] == "median", "state"] = "failed"
    assert unranked(frame, ranking(frame)).endswith("was not measured against them: median")


def test_a_single_shot_is_followed_by_rounds_to_recovery_and_of_survival(tmp_path: Path) -> None:
    """Six rounds, the attack in the second: the columns are counted off the rounds' own lines."""
    file, out = tmp_path / "matrix.toml", tmp_path / "out"
    attack = '[{ name = "badnets", target = 0, ratio = 0.9 }, { name = "model_replacement" }]'
    file.write_text(matrix(rounds=6, seeds=2, attacks=attack, defenses='["fedavg"]'))
    sets = ["adversary.schedule={ name = 'single_shot', round = 2 }", "evaluate.every=1", "client.steps=10"]
    run_matrix(file, out, sets)
    frame = results(out)
    assert len(frame) == 2
    for _, cell in frame.iterrows():
        folder = out / cell["folder"]
        lines = {line["round"]: line for line in map(json.loads, (folder / "rounds.jsonl").read_text().splitlines())}
        calm = json.loads((folder / "summary.json").read_text())["floor"]
        assert [number for number, line in lines.items() if line["malicious"]] == [2]
        fine = [r - 2 for r in range(2, 7) if lines[r]["accuracy"] >= calm["accuracies"][str(r)] - 0.02]
        gains = {r: lines[r]["asr"] - calm["rounds"][str(r)] for r in range(2, 7)}
        gone = [r - 2 for r in range(2, 7) if gains[r] < gains[2] / 2 or gains[r] <= 0.02]
        for name, counted in (("recovery", fine), ("survival", gone)):
            assert cell[name] == counted[0] if counted else math.isnan(cell[name]), name
    assert frame[["recovery", "survival"]].notna().any(axis=None)
    shown = call("results", str(out)).stdout
    assert "recovery: rounds from the last attack until accuracy is back" in shown


def test_a_seed_that_never_recovers_is_told_and_not_compared() -> None:
    """Of three runs the one that recovered speaks alone; the mean says of how many it is, differences are refused."""
    rounds = [2.0, math.nan, math.nan, 3.0, 4.0, 5.0]
    frame = cells(defense=["p"] * 3 + ["fedavg"] * 3, attack=["x"] * 6, seed=[0, 1, 2] * 2, recovery=rounds)
    table = over_seeds(frame)
    assert list(table["recovery"]) == [2.0, 4.0]
    assert list(table["recovery_seeds"]) == [1, 3]
    assert list(table["survival_seeds"]) == [0, 0]
    shown = settings_table(table)
    (column,) = [each for each in shown.columns if str(each.header) == "recovery"]
    assert [str(each) for each in column.cells] == ["2.0 (1 of 3)", "4.0"]
    with pytest.raises(FedsimError, match="2 of 6 runs under x did not see the end of"):
        differences(frame, measure="recovery")
    assert len(differences(frame[frame["seed"] == 0], measure="recovery")) == 1


def test_a_scenario_file_stands_for_its_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``fedsim results FILE`` shows the cells where ``fedsim bench FILE`` puts them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "runs" / "mine")
    (tmp_path / "mine.toml").write_text(matrix())
    by_file, by_folder = (json.loads(call("results", at, "--json").stdout) for at in ("mine.toml", "runs/mine"))
    assert len(by_file) == len(results(folder))
    assert by_file == by_folder
    assert call("results", "other.toml").exit_code == 1


def test_a_folder_that_cannot_be_written_is_read_all_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mounted snapshot, with cells that only the write-ahead log holds; root may write anywhere."""
    snapshot = shutil.copytree(folder, tmp_path / "snapshot")
    with closing(sqlite3.connect(snapshot / "results.sqlite", isolation_level=None)) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("UPDATE cells SET state = 'failed', error = 'late' WHERE rowid = 1")
        before = {path: path.read_bytes() for path in snapshot.glob("results.sqlite*")}
        monkeypatch.setattr("fedsim.bench.store.os.access", lambda path, mode: not str(path).startswith(str(snapshot)))
        assert next(iter(results(snapshot)["error"])) == "late"
        assert merge([snapshot], tmp_path / "merged").added == 7
        assert {path: path.read_bytes() for path in snapshot.glob("results.sqlite*")} == before


def test_a_store_that_cannot_be_opened_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("waits for what no waiting helps against")

    monkeypatch.setattr("fedsim.bench.store.time.sleep", sleep)
    (tmp_path / "results.sqlite").mkdir()
    with pytest.raises(RecordError, match="unable to open"):
        Store(tmp_path)


def test_a_store_that_may_not_be_written_says_so_and_not_that_the_disk_is_full(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store._reading().execute("PRAGMA query_only = 1")
    with pytest.raises(RecordError, match=r"readonly.*a folder that you may write to, and the same command goes on"):
        store.enter([Cell.of(1, 1, {}, Scenario(rounds=1), tmp_path)], set())
    store.close()


def test_a_round_in_which_the_machine_stood_still_is_no_cost_of_the_defense(folder: Path, tmp_path: Path) -> None:
    cell = shutil.copytree(next(each.parent for each in folder.glob("*/rounds.jsonl")), tmp_path / "cell")
    lines = [json.loads(line) for line in (cell / "rounds.jsonl").read_text().splitlines()]
    lines += [{**lines[-1], "round": len(lines) + more} for more in range(3)]
    usual = [sum(line["seconds"].values()) for line in lines if line["round"]]
    lines[1]["seconds"] = {"train": 5_735.0}
    (cell / "rounds.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert min(usual) <= measured(cell)["seconds"] <= max(usual)


def test_a_full_disk_is_one_line_and_the_store_goes_on_once_there_is_space(tmp_path: Path) -> None:
    scenario = Scenario(rounds=1, title="long " * 4000)
    store = Store(tmp_path)
    pages = store._reading().execute("PRAGMA page_count").fetchone()[0]
    store._reading().execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RecordError, match="disk is full; the cells' folders hold what was played: free some space"):
        store.enter([Cell.of(1, 1, {}, scenario, tmp_path)], set())
    store._reading().execute(f"PRAGMA max_page_count = {pages + 100}")
    store.enter([Cell.of(1, 1, {}, scenario, tmp_path)], set())
    assert [state for state, _ in store.states("a session").values()] == ["waiting"]
    store.close()


def test_counts_are_whole_numbers_and_cells_without_any_have_none(folder: Path, tmp_path: Path) -> None:
    failed = shutil.copytree(folder, tmp_path / "failed")
    with closing(sqlite3.connect(failed / "results.sqlite", isolation_level=None)) as writer:
        writer.execute("UPDATE cells SET state = 'failed', error = 'late' WHERE rowid = 1")
    first, second = call("results", str(failed), "--csv").stdout.splitlines()[1:3]
    head = call("results", str(failed), "--csv").stdout.splitlines()[0].split(",")
    place = head.index("last_rounds")
    assert (first.split(",")[place], second.split(",")[place]) == ("", "2")


def test_a_table_of_failed_cells_claims_no_means(folder: Path, tmp_path: Path) -> None:
    failed = shutil.copytree(folder, tmp_path / "failed")
    with closing(sqlite3.connect(failed / "results.sqlite", isolation_level=None)) as writer:
        writer.execute("UPDATE cells SET state = 'failed', error = 'late'")
    shown = call("results", str(failed)).stdout
    assert "evaluated rounds" not in shown
    assert "8 failed" in shown


def test_a_measure_that_no_cell_has_is_not_blamed_on_the_seeds(folder: Path) -> None:
    said = call("results", str(folder), "--against", "fedavg", "--measure", "recovery")
    assert said.exit_code == 1
    assert "no seed has the measure with both defenses" in said.stderr
