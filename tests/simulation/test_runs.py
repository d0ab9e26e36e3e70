"""Whole runs: the same scenario and seed give the same bits, whatever runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.errors import ResumeError, ScenarioError
from fedsim.scenario import Scenario, override
from fedsim.simulation import Result, simulate

SMALL: dict[str, Any] = {
    "rounds": 4,
    "data": {"dataset": "digits", "partition": {"name": "dirichlet", "alpha": 0.5}, "clients": 12},
    "model": {"name": "mlp", "hidden": [16]},
    "client": {"per_round": 8, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
    "adversary": {"fraction": 0.25, "attacks": [{"name": "badnets", "target": 0}, {"name": "model_replacement"}]},
    "server": {"defenses": [{"name": "multi_metrics", "keep": 0.5}]},
    "evaluate": {"clients": 4},
}


def small(**changes: Any) -> Scenario:
    """The small scenario; a table given whole takes the place of the old one, a dotted key is set."""
    tables = {key: value for key, value in changes.items() if "." not in key}
    dotted = {key: value for key, value in changes.items() if "." in key}
    return Scenario(**override({**SMALL, **tables}, dotted))


@pytest.fixture(scope="module")
def baseline() -> Result:
    return simulate(small())


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_digest_does_not_depend_on_workers(baseline: Result, workers: int) -> None:
    assert simulate(small(**{"engine.workers": workers})).digest == baseline.digest


@pytest.mark.parametrize("threads", [1, 2])
def test_digest_does_not_depend_on_the_servers_threads(baseline: Result, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert simulate(small()).digest == baseline.digest
    finally:
        torch.set_num_threads(before)


def test_another_seed_gives_another_digest(baseline: Result) -> None:
    assert simulate(small(seed=1)).digest != baseline.digest


def test_global_random_states_do_not_matter(baseline: Result) -> None:
    import random

    import numpy as np

    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    assert simulate(small()).digest == baseline.digest


def test_an_attack_does_not_change_who_is_sampled(baseline: Result) -> None:
    calm = simulate(small(adversary={"count": 0}))
    assert [line["cohort"] for line in calm.lines] == [line["cohort"] for line in baseline.lines]


def test_a_forced_attacker_replaces_a_named_draw() -> None:
    table = {"count": 1, "selection": "forced", "attacks": ["sign_flip"]}
    forced = simulate(small(adversary=table, rounds=6))
    calm = simulate(small(adversary={"count": 0}, rounds=6))
    replaced = 0
    for line, before in zip(forced.lines[1:], calm.lines[1:], strict=True):
        assert len(line["malicious"]) == 1
        cohort = set(before["cohort"])
        for attacker, client in line["forced"]:
            cohort = cohort - {client} | {attacker}
            replaced += 1
        assert set(line["cohort"]) == cohort
    assert replaced > 0


def test_rounds_and_clients_are_frames(baseline: Result) -> None:
    rounds, clients = baseline.rounds, baseline.clients
    assert list(rounds["round"]) == [0, 1, 2, 3, 4]
    assert rounds["accuracy"].notna().all()
    assert rounds["worst10"].iloc[1:].notna().all()
    assert set(clients["round"]) == {1, 2, 3, 4}
    assert {"client", "malicious", "weight", "kept", "norm", "num_examples", "score.multi_metrics"} <= set(clients)
    weights = clients.groupby("round")["weight"].sum()
    assert weights.to_numpy() == pytest.approx(1.0)


def test_a_run_leaves_its_folder(tmp_path: Path) -> None:
    result = fedsim.run(small(rounds=2), out=tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"scenario.toml", "run.json", "rounds.jsonl", "clients.jsonl", "state.json", "summary.json"} <= files
    assert {"report.html", "partition.json", "samples.npz", "checkpoint-2.safetensors"} <= files
    assert len([name for name in files if name.startswith("checkpoint-")]) == 1
    assert not [name for name in files if name.endswith(".part")]
    again = Scenario.load(tmp_path / "run" / "scenario.toml")
    assert simulate(again).digest == result.digest
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["digest"] == result.digest
    assert summary["finished"]


def test_the_floor_is_the_twins_asr(tmp_path: Path) -> None:
    fedsim.run(small(rounds=2), out=tmp_path / "run", floor=True)
    floor = json.loads((tmp_path / "run" / "summary.json").read_text())["floor"]
    calm = simulate(small(rounds=2, adversary={"count": 0, "attacks": [{"name": "badnets", "target": 0}]}))
    assert floor["asr"] == calm.lines[-1]["asr"]
    assert floor["key"] == calm.key
    assert len(list((tmp_path / "floors").iterdir())) == 1


def test_a_defense_that_never_acts_is_said() -> None:
    result = simulate(small(server={"defenses": [{"name": "norm_bound", "radius": 1e6}]}))
    assert any("never changed an aggregate" in note for note in result.notes)


def test_a_defense_that_counts_on_too_few_is_said() -> None:
    table = {"count": 2, "attacks": ["sign_flip"]}
    said = "krum counts on 1 malicious client in a cohort, and there were up to "
    notes = simulate(small(server={"defenses": ["krum"]}, adversary=table)).notes
    assert any(note.startswith(said) for note in notes)
    enough = {"defenses": [{"name": "multi_krum", "malicious": 2}]}
    assert not any("counts on" in note for note in simulate(small(server=enough, adversary=table)).notes)


def test_an_attack_that_never_acts_is_said() -> None:
    table = {"fraction": 0.25, "attacks": [{"name": "model_replacement", "scale": 1.0}]}
    result = simulate(small(adversary=table))
    assert any("shows no attack" in note for note in result.notes)


def test_detection_is_measured_against_the_truth(baseline: Result) -> None:
    for line in baseline.lines[1:]:
        if line["malicious"]:
            dropped = set(line["cohort"]) - set(line["kept"])
            assert line["true_positive_rate"] == len(dropped & set(line["malicious"])) / len(line["malicious"])
            honest = set(line["cohort"]) - set(line["malicious"])
            assert line["false_positive_rate"] == len(dropped & honest) / len(honest)
            assert 0 <= line["auc"] <= 1


def test_a_matrix_is_not_a_single_run() -> None:
    with pytest.raises(ScenarioError, match="fedsim bench"):
        simulate(Scenario(**SMALL, matrix={"seed": [0, 1]}))


def test_an_occupied_folder_is_not_overwritten(tmp_path: Path) -> None:
    simulate(small(rounds=1), tmp_path)
    with pytest.raises(ResumeError, match="--resume"):
        simulate(small(rounds=1), tmp_path)


@pytest.mark.parametrize(
    "defense", ["fedavg", "median", "krum", "multi_krum", "geometric_median", "centered_clipping", "nnm", "bulyan"]
)
def test_every_classic_runs_behind_an_attack(defense: str) -> None:
    options = {"malicious": 1} if defense in ("krum", "multi_krum", "nnm", "bulyan") else {}
    result = simulate(small(rounds=2, server={"defenses": [{"name": defense, **options}]}))
    assert result.finished
    assert all(torch.isfinite(tensor).all() for tensor in result.parameters.values())


def test_defenses_compose(baseline: Result) -> None:
    chain = [{"name": "norm_bound", "radius": 1.0}, {"name": "multi_metrics", "keep": 0.5}, "median"]
    result = simulate(small(server={"defenses": chain}))
    assert result.finished
    assert result.digest != baseline.digest
    assert all(len(line["kept"]) == 4 for line in result.lines[1:] if len(line["cohort"]) == 8 and not line["faults"])


def test_rounds_in_which_nobody_was_heard_are_said() -> None:
    result = simulate(small(rounds=2, adversary={"fraction": 1.0, "attacks": ["non_finite"]}))
    said = [note for note in result.notes if note.startswith("2 of 2 rounds changed nothing")]
    assert len(said) == 1
    assert "1, 2; the first reason: array" in said[0]
    assert not any("plain averaging" in note for note in result.notes)
