"""Clients' own parts in whole runs: one digest for every engine and interruption, clear faults where they clash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import ScenarioError
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from tests.simulation.test_runs import small
from tests.simulation.test_same_bits import interrupted

PERSIST = {"optimizer": {"name": "diffgrad", "lr": 0.01}, "optimizer_state": "persist", "steps": 5}
CONTROL = {"step_control": {"name": "softmax_radius", "quantile": 0.9}, "straggler": 0.3}
CASES: dict[str, dict[str, Any]] = {
    "harmonic": {"loss": {"name": "harmonic", "mask_absent": True}},
    "persist": {**PERSIST, **CONTROL},
    "rm3": {"optimizer": {"name": "rm3", "lr": 0.1}, "optimizer_state": "persist", "epochs": 4},
    "winsorized": {"optimizer": {"name": "winsorized", "lr": 0.1, "momentum": 0.9}, "optimizer_state": "persist"},
    "langevin": {"optimizer": {"name": "langevin", "lr": 0.1}, "loss": "squared_error"},
}


def case(name: str, **changes: Any) -> Scenario:
    client = {"per_round": 8, **CASES[name]}
    return small(**{"rounds": 3, "client": client, "evaluate": {"every": 3}, **changes})


@pytest.mark.parametrize("name", CASES)
def test_workers_and_interruptions_change_no_bit(name: str, tmp_path: Path) -> None:
    digests = [simulate(case(name, **{"engine.workers": workers})).digest for workers in (1, 2, 3)]
    assert len({*digests, interrupted(case(name), tmp_path)}) == 1


@pytest.mark.parametrize("name", ["persist", "harmonic", "winsorized"])
def test_paths_tell_the_same_story(name: str) -> None:
    stories = [simulate(case(name, **{"engine.path": path})).lines[-1] for path in ("stacked", "vmap", "reference")]
    for story in stories:
        assert story["loss"] == pytest.approx(stories[0]["loss"], rel=1e-3)


def test_what_is_persisted_changes_the_run() -> None:
    reset = simulate(case("persist", **{"client.optimizer_state": "reset"})).digest
    assert simulate(case("persist")).digest != reset


def test_naming_the_default_loss_changes_no_bit() -> None:
    assert simulate(small(rounds=2, **{"client.loss": "cross_entropy"})).digest == simulate(small(rounds=2)).digest


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "langevin that persists": (
        {"client.optimizer": "langevin", "client.optimizer_state": "persist"},
        "client.optimizer_state.*'reset'.*langevin",
    ),
    "smoothing over masked classes": (
        {"client.loss": {"name": "cross_entropy", "mask_absent": True, "label_smoothing": 0.1}},
        "client.loss.label_smoothing.*masked",
    ),
    "a step control without softmax": (
        {"client.loss": "squared_error", "client.step_control": "softmax_radius"},
        "client.step_control.*no softmax",
    ),
    "a step control around a second-order step": (
        {"client.optimizer": "gns", "client.step_control": "softmax_radius"},
        "client.step_control.*second-order step",
    ),
    "a clipped gradient before a second-order step": (
        {"client.optimizer": "gns", "client.clip_norm": 1.0},
        "client.clip_norm.*gns",
    ),
    "a schedule of no rate": (
        {"client.optimizer": "gns", "client.lr_schedule": {"name": "cosine"}},
        "client.lr_schedule.*no learning rate",
    ),
    "a second-order step in sixteen bits": (
        {"client.optimizer": "gns", "engine.precision": "bfloat16"},
        "engine.precision.*gns",
    ),
    "a second-order step on a fast path": (
        {"client.optimizer": "gns", "engine.path": "stacked"},
        "engine.path.*'vmap' or 'reference'",
    ),
    "an unknown loss": ({"client.loss": "harmonica"}, "client.loss.name.*harmonic"),
    "an unknown distance": ({"client.loss": {"name": "harmonic", "distance": "far"}}, "client.loss.distance"),
    "memory behind an estimator": (
        {"server.estimator": {"name": "dp_gd", "c1": 1.0, "lr": 0.1}, "client.optimizer_state": "persist"},
        "client.optimizer_state.*server.estimator",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused(fault: str) -> None:
    changes, said = FAULTS[fault]
    with pytest.raises(ScenarioError, match=said):
        small(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"client.loss": "harmonic"},
        {"client.loss": "cross_entropy"},
        {"client.step_control": "softmax_radius"},
        {"server": {"defenses": ["fedavg", "deepsight"]}},
        {"server": {"defenses": ["softmax_cap"]}},
        {"server": {"defenses": ["softmax_radius"]}, "data.root": 20},
    ],
)
def test_numbers_are_no_classes(changes: dict[str, Any]) -> None:
    regression = {"data.dataset": "diabetes", "data.partition": "iid", "adversary": {}, "server": {}, "evaluate": {}}
    with pytest.raises(ScenarioError, match="targets that are numbers"):
        small(**regression | changes)


@pytest.mark.parametrize(
    ("optimizer", "steps", "state", "said"),
    [
        ("rm3", 2, "reset", "third local step of a round"),
        ("m3", 1, "persist", "third local step of a client"),
        ("rm3", 3, "reset", ""),
        ("sgd", 2, "reset", ""),
    ],
)
def test_clients_that_never_move_are_told(optimizer: str, steps: int, state: str, said: str) -> None:
    client = {"per_round": 8, "optimizer": optimizer, "steps": steps, "optimizer_state": state}
    found = [note for note in simulate(small(rounds=2, client=client)).notes if "No honest client ever" in note]
    assert bool(found) == bool(said)
    assert all(said in note for note in found)
