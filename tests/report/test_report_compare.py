"""Several runs on one page, and the tables for the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from fake_run import FILTER, fake_run
from page_reader import Page
from rich.console import Console
from rich.table import Table

from fedsim.analysis.statistics import t_interval
from fedsim.errors import FedsimError
from fedsim.report import compare_report
from fedsim.report.console import last_round_table, summary_table


def shown(table: Table) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def final(folder: Path, key: str) -> float:
    return float(json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])[key])


def test_says_what_differs_and_nothing_else(tmp_path: Path) -> None:
    a = fake_run(tmp_path / "a", rounds=8, title="Compared")
    b = fake_run(tmp_path / "b", rounds=8, title="Compared", defenses='{ name = "krum", malicious = 2 }, "median"')
    page = Page(compare_report([a, b], tmp_path / "out" / "compare.html").read_text("utf-8"))
    assert "server.defenses krum (malicious 2), then median" in page.text
    assert "server.defenses multi_metrics (keep 0.3, variant code)" in page.text
    assert "data.partition" not in page.text
    assert "Over seeds" not in page.text
    assert f"{100 * final(a, 'accuracy'):.1f}" in page.text
    assert "fedsim report" in page.text


def test_seeds_are_gathered_with_their_intervals(tmp_path: Path) -> None:
    folders = {
        (name, seed): fake_run(tmp_path / f"{name}{seed}", rounds=8, seed=seed, title="S", defenses=defense, slip=slip)
        for name, defense, slip in (("filter", FILTER, 0.0), ("fedavg", '"fedavg"', 1.0))
        for seed in (0, 1, 2)
    }
    page = Page(compare_report(list(folders.values()), tmp_path / "compare.html").read_text("utf-8"))
    assert "Over seeds" in page.text
    expected = t_interval([final(folders["fedavg", seed], "asr") for seed in (0, 1, 2)])
    assert f"{100 * expected.mean:.1f} % ({100 * expected.low:.1f} to {100 * expected.high:.1f})" in page.text
    assert "fedavg (3 runs)" in page.text


def test_a_guest_and_a_run_without_attack(tmp_path: Path) -> None:
    guest = fake_run(tmp_path / "g", rounds=4, weights=False, defenses='"flwr:FedAvg"', title="guest", floor=None)
    quiet = fake_run(tmp_path / "q", rounds=4, attack=False, title="quiet", finished=False)
    page = Page(compare_report([guest, quiet], tmp_path / "compare.html").read_text("utf-8"))
    assert "unknown" in page.text
    assert "unfinished, round 4 of 8" in page.text


def test_more_runs_than_colours(tmp_path: Path) -> None:
    folders = [fake_run(tmp_path / str(i), rounds=3, title=f"run {i}", clients=20 + i) for i in range(10)]
    html = compare_report(folders, tmp_path / "compare.html").read_text("utf-8")
    assert 'class="line run-2 again-1"' in html


def test_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(FedsimError, match="no folder"):
        compare_report([], tmp_path / "compare.html")


@pytest.mark.parametrize("frame", [False, True])
def test_last_round_for_the_terminal(tmp_path: Path, frame: bool) -> None:
    folder = fake_run(tmp_path / "run", rounds=5, slip=1.0, every=2, seed=1)
    rounds, clients = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("rounds.jsonl", "clients.jsonl")
    )
    last = rounds[-1] | {"asr": None, "accuracy": None}
    malicious = [client for client in last["cohort"] if client in last["malicious"]]
    assert malicious
    rounds[-1] = last
    if frame:
        text = shown(last_round_table(pd.DataFrame(rounds), pd.DataFrame(clients)))
    else:
        text = shown(last_round_table(rounds, clients))
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert f"{100 * rounds[4]['accuracy']:.1f}" in lines["Main-task accuracy"]
    assert "measured in round 4" in lines["Main-task accuracy"]
    assert "95 %" in lines["Attack success rate"]
    assert f"{len(last['kept_malicious'])} of {len(malicious)}" in lines["Malicious kept"]
    honest = len(last["cohort"]) - len(malicious)
    assert f"{len(last['kept']) - len(last['kept_malicious'])} of {honest}" in lines["Honest kept"]
    assert "by chance (kept / n) 30" in lines["Malicious kept"]


def test_last_round_of_a_guest_and_of_nothing(tmp_path: Path) -> None:
    scenario = {"server": {"defenses": [{"name": "flwr:FedAvg"}]}}
    line = {"round": 1, "accuracy": 0.5, "cohort": [1], "malicious": [1], "kept": [1], "kept_malicious": [1]}
    text = shown(last_round_table([line], [], scenario))
    assert "unknown" in text
    assert "Malicious kept" not in text
    assert "unknown" in shown(last_round_table([], []))


def test_summary_table_holds_any_row() -> None:
    text = shown(
        summary_table([{"cell": "[bold]a", "asr": 0.12345}, {"cell": "b", "accuracy": None, "ok": True}], "Bench")
    )
    for words in ("Bench", "[bold]a", "0.123", "–", "true"):
        assert words in text


def test_runs_of_one_scenario_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [fake_run(tmp_path / name, rounds=4, title="Same") for name in ("first", "second")]
    page = Page(compare_report(folders, tmp_path / "compare.html").read_text("utf-8"))
    assert "Same (first)" in page.text
    assert "Same (second)" in page.text
