"""Membership inference: sure of an overfitted model, at a loss before a private one; its shadow models' halves."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.observers.shadows import halves
from fedsim.scenario import Scenario
from fedsim.simulation import simulate


def asked(observer: dict[str, Any] | None = None, **other: Any) -> dict[str, Any]:
    tables: dict[str, Any] = {
        "rounds": 1,
        "seed": 2,
        "data": {"dataset": "digits", "clients": 10, "holdout": 0.5},
        "model": {"name": "mlp", "hidden": [64]},
        "client": {
            "per_round": 10,
            "epochs": 40,
            "batch_size": 16,
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        },
        "observe": {"observers": [{"name": "membership_inference", "shadows": 16, **(observer or {})}]},
    }
    (found,) = simulate(Scenario(**{**tables, **other})).observations
    return found


def test_halves_are_complementary() -> None:
    inside = halves(6, 11, np.random.default_rng(0))
    assert (inside[0::2] ^ inside[1::2]).all()
    assert set(inside.sum(1)) == {5, 6}
    assert (inside.sum(0) == 3).all()


def test_a_client_that_overfits_gives_its_examples_away() -> None:
    found = asked({"client": 3})
    assert (found["members"], found["others"]) == (72, 72)
    assert found["auc"] > 0.7
    assert found["confidence_members"] > found["confidence_others"]
    assert [point["asked"] for point in found["rates"]] == [0.01, 0.001]
    assert all(point["tpr_low"] <= point["tpr"] <= point["tpr_high"] for point in found["rates"])
    offline = asked({"client": 3, "mode": "offline"})
    assert offline["auc"] > 0.65


def test_a_private_client_does_not() -> None:
    client = {"per_round": 10, "epochs": 2, "batch_size": 16, "optimizer": {"name": "dp_sgd", "lr": 0.1}}
    found = asked(client=client, privacy={"epsilon": 1.0, "delta": 1e-3, "trust": "local"})
    assert abs(found["auc"] - 0.5) < 0.05
    assert found["epsilon"] <= 1.0
    assert all(point["tpr_low"] <= point["bound"] for point in found["rates"])


def test_members_are_those_whose_messages_came() -> None:
    client = {"per_round": 2, "epochs": 1, "batch_size": 64}
    found = asked({"pool": 60, "steps": 5, "shadows": 4}, client=client)
    assert (found["members"], found["others"], found["steps"]) == (30, 30, 5)
    whole = asked({"shadows": 4}, client=client, data={"dataset": "digits", "clients": 10})
    assert whole["members"] == 288
    assert whole["others"] == 288


def test_an_estimators_model_is_asked_about_as_well() -> None:
    server = {"estimator": {"name": "dp_gd", "c1": 1.0, "lr": 0.5}}
    privacy = {"epsilon": 2.0, "trust": "central"}
    found = asked({"shadows": 4}, client={"per_round": 10}, server=server, privacy=privacy, rounds=3)
    assert found["sees"] == "the global models"
    assert found["steps"] == 3


def test_diff2_gives_no_member_away_and_no_rate_stands_above_its_bound() -> None:
    server = {"estimator": {"name": "diff2", "restart": 2, "c1": 1.0, "c2": 1.0, "lr": 0.5}}
    privacy = {"epsilon": 1.0, "delta": 1e-3, "trust": "central"}
    found = asked({"shadows": 8}, client={"per_round": 10}, server=server, privacy=privacy, rounds=4)
    assert abs(found["auc"] - 0.5) < 0.08
    assert 0.5 < found["epsilon"] <= 1.0
    assert [point["asked"] for point in found["rates"]] == [0.01, 0.001]
    assert all(point["tpr_low"] <= point["bound"] < 1 for point in found["rates"])
