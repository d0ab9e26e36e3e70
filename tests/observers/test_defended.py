"""Observers beside defenses: messages are seen as they arrived; what the server does with them shows in the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import registry
from fedsim.observers.observer import Seen
from fedsim.scenario import Scenario
from fedsim.simulation import Result, simulate

SPY = f"{Path(__file__).with_name('spy.py')}:Spy"
DEFENSES: dict[str, list[Any]] = {
    "krum": [{"name": "krum", "malicious": 1}],
    "weak_dp": [{"name": "weak_dp", "radius": 0.01, "noise": 0.002}],
    "multi_metrics": [{"name": "multi_metrics", "keep": 0.3}],
    "weak_dp and krum": [{"name": "weak_dp", "radius": 0.01, "noise": 0.002}, {"name": "krum", "malicious": 1}],
}
BOTH = [
    {"name": "gradient_inversion", "iterations": 16},
    {"name": "membership_inference", "shadows": 4},
    {"name": SPY, "spoils": True},
]

SEEN = {
    "local": "each client's message as it arrives",
    "distributed": "the sum of the clients' messages",
    "central": "the global models",
}


def defended(defenses: list[Any], observers: list[Any], **other: Any) -> Result:
    tables: dict[str, Any] = {
        "rounds": 2,
        "seed": 1,
        "data": {"dataset": "digits", "clients": 8, "holdout": 0.5},
        "model": {"name": "mlp", "hidden": [8], "activation": "sigmoid"},
        "client": {"per_round": 6, "steps": 1, "batch_size": 1},
        "server": {"defenses": defenses},
        "observe": {"observers": observers},
    }
    return simulate(Scenario(**{**tables, **other}))


def seen_of(defenses: list[Any]) -> list[Seen]:
    spy = registry.get("observer", SPY)
    spy.rounds.clear()
    defended(defenses, [{"name": SPY}])
    return list(spy.rounds)


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defended_run_is_the_same_with_observers_and_without(name: str) -> None:
    watched = defended(DEFENSES[name], BOTH)
    alone = defended(DEFENSES[name], [])
    assert watched.digest == alone.digest
    assert alone.digest != defended(["fedavg"], []).digest
    assert {found["observer"] for found in watched.observations} >= {"gradient_inversion", "membership_inference"}


@pytest.mark.parametrize("name", DEFENSES)
def test_the_server_sees_messages_before_its_defense(name: str) -> None:
    first, second = seen_of(DEFENSES[name])
    plain, _ = seen_of(["fedavg"])
    assert list(first.messages) == list(plain.messages)
    assert len(first.messages) == 6
    for client, sent in first.messages.items():
        assert torch.equal(sent.vector, plain.messages[client].vector)
        assert float(sent.vector.norm()) > 0.01  # what weak_dp makes it
    assert not torch.equal(first.after, plain.after)
    assert torch.equal(second.before, first.after)


def test_behind_krum_the_new_model_is_one_message_that_was_seen() -> None:
    for seen in seen_of(DEFENSES["krum"]):
        change = seen.after - seen.before
        matches = [torch.allclose(sent.vector, change, atol=1e-6) for sent in seen.messages.values()]
        assert sum(matches) == 1


def test_defenses_leave_the_inversion_of_messages_as_it_was() -> None:
    observers = [{"name": "gradient_inversion", "iterations": 64, "round": 1}]
    plain, *others = (defended(each, observers).observations[0] for each in (["fedavg"], *DEFENSES.values()))
    assert plain["psnr"] > plain["psnr_blind"]
    assert all(other == plain for other in others)


@pytest.mark.parametrize("trust", SEEN)
def test_diff2s_noise_leaves_the_inversion_no_better_than_a_blind_guess(trust: str) -> None:
    def found(epsilon: Any) -> dict[str, Any]:
        result = defended(
            ["fedavg"],
            [{"name": "gradient_inversion", "iterations": 100, "images": 64, "labels": "known"}],
            data={"dataset": "digits", "clients": 2, "holdout": 0.99},
            client={"per_round": 2},
            server={"estimator": {"name": "diff2", "restart": 2, "c1": 10.0, "c2": 10.0, "lr": 0.5}},
            privacy={"epsilon": epsilon, "delta": 1e-3, "trust": trust},
        )
        (observation,) = result.observations
        return observation

    private = found(1.0)
    assert private["psnr"] <= private["psnr_blind"]
    assert 0 < private["epsilon"] <= 1.0
    bare = found("inf")
    assert bare["sees"] == private["sees"] == SEEN[trust]
    assert bare["psnr"] > bare["psnr_blind"]


@pytest.mark.parametrize("name", DEFENSES)
def test_membership_is_asked_of_the_defended_model(name: str) -> None:
    observers = [{"name": "membership_inference", "shadows": 4}]
    found, plain = (defended(each, observers).observations[0] for each in (DEFENSES[name], ["fedavg"]))
    assert (found["members"], found["others"]) == (plain["members"], plain["others"])
    assert found["epsilon"] is None
    assert 0 <= found["auc"] <= 1
    assert found["confidence_members"] != plain["confidence_members"]
