"""Observers change nothing, see what their standpoint shows and no more, and are there again after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import registry
from fedsim.errors import FedsimError, ScenarioError
from fedsim.observers.observer import Observation, Observer, Seen, sight
from fedsim.scenario import Scenario
from fedsim.simulation import simulate

SPY = f"{Path(__file__).with_name('spy.py')}:Spy"


def tables(observers: list[Any], **other: Any) -> dict[str, Any]:
    return {
        "rounds": 2,
        "seed": 1,
        "data": {"dataset": "digits", "clients": 6},
        "model": {"name": "mlp", "hidden": [8], "activation": "sigmoid"},
        "client": {"per_round": 3, "steps": 1, "batch_size": 1},
        "observe": {"observers": observers},
        **other,
    }


def seen_by(standpoint: str, **other: Any) -> list[Seen]:
    spy = registry.get("observer", SPY)
    spy.rounds.clear()
    simulate(Scenario(**tables([{"name": SPY, "standpoint": standpoint}], **other)))
    found: list[Seen] = list(spy.rounds)
    return found


PRIVATE = {"server": {"estimator": {"name": "dp_gd", "c1": 1.0, "lr": 0.5}}, "client": {"per_round": 6}}


def test_a_run_is_the_same_with_observers_and_without() -> None:
    both = [{"name": "gradient_inversion", "iterations": 16}, {"name": "membership_inference", "shadows": 4}]
    before = torch.get_rng_state()
    watched = simulate(Scenario(**tables([*both, {"name": SPY, "spoils": True}])))
    assert torch.equal(before, torch.get_rng_state())
    alone = simulate(Scenario(**tables([])))
    assert watched.digest == alone.digest
    assert {found["observer"] for found in watched.observations} >= {"gradient_inversion", "membership_inference"}
    assert alone.observations == []


def test_a_scenario_without_observers_is_what_it_was_before_there_were_any() -> None:
    assert "observe" not in Scenario().table()
    watched = Scenario(**tables(["gradient_inversion"]))
    assert Scenario(**watched.table()).table() == watched.table()


def test_the_server_sees_each_message_as_it_arrives() -> None:
    first, second = seen_by("server")
    assert len(first.messages) == 3
    assert first.total is None
    counts = torch.tensor([float(each.num_examples) for each in first.messages.values()])
    mean = (torch.stack([each.vector for each in first.messages.values()]) * (counts / counts.sum())[:, None]).sum(0)
    torch.testing.assert_close(first.before + mean, first.after)
    torch.testing.assert_close(second.before, first.after)
    assert set(first.truth.answered) == set(first.messages) <= set(second.truth.trained)


def test_a_client_sees_the_models_alone() -> None:
    first, _ = seen_by("client")
    assert not first.messages
    assert first.total is None
    assert not torch.equal(first.before, first.after)


@pytest.mark.parametrize(("trust", "what"), [("central", "models"), ("distributed", "sum"), ("local", "messages")])
def test_who_draws_the_noise_says_what_the_server_shows(trust: str, what: str) -> None:
    privacy = {"epsilon": 5.0, "trust": trust}
    first, _ = seen_by("server", privacy=privacy, **PRIVATE)
    assert sight(Scenario(**tables([], privacy=privacy, **PRIVATE)), "server") == what
    assert bool(first.messages) == (what == "messages")
    assert (first.total is not None) == (what == "sum")
    assert first.truth.epsilon is not None
    assert first.truth.epsilon > 0
    if first.total is not None:
        torch.testing.assert_close(first.before - 0.5 * first.total, first.after, rtol=1e-4, atol=1e-6)


def test_findings_lie_in_the_folder_also_after_a_resume(tmp_path: Path) -> None:
    scenario = Scenario(**tables([{"name": "gradient_inversion", "iterations": 16}]))
    whole = simulate(scenario, tmp_path / "whole")
    part = tmp_path / "part"

    def stop(line: dict[str, Any]) -> None:
        if line["round"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(scenario, part, progress=stop)
    resumed = simulate(scenario, part, resume=True)
    assert resumed.observations == whole.observations != []
    assert json.loads((part / "observations.json").read_text()) == json.loads(json.dumps(whole.observations))
    assert (part / "observations.npz").read_bytes()[:2] == b"PK"


def test_an_observer_that_finds_nothing_is_told() -> None:
    scenario = Scenario(**tables([{"name": "gradient_inversion", "client": 0, "round": 1}]))
    result = simulate(scenario)
    asked = result.lines[1]["cohort"]
    assert (0 in asked) == bool(result.observations)
    assert bool(result.observations) != any("client 0" in note for note in result.notes)


@pytest.mark.parametrize(
    ("observer", "other", "said"),
    [
        ({"name": "gradient_inversion", "client": 6}, {}, "observers[0].client: given 6; accepted: 0 to 5"),
        ({"name": "gradient_inversion", "round": 3}, {}, "round: given 3; accepted: at most rounds = 2"),
        ({"name": "gradient_inversion", "standpoint": "client", "client": 1}, {}, "does not show a single"),
        ({"name": "gradient_inversion"}, {"client": {"optimizer": "adam", "per_round": 3}}, "'sgd' or 'dp_sgd'"),
        ({"name": "membership_inference", "shadows": 5}, {}, "shadows: given 5"),
        ({"name": "membership_inference", "pool": 3}, {}, "pool: given 3"),
        ({"name": "gradient_inversoin"}, {}, "did you mean 'gradient_inversion'"),
    ],
)
def test_what_cannot_be_observed_is_refused(observer: dict[str, Any], other: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        Scenario(**tables([observer], **other))
    assert said in str(error.value)


def test_what_the_data_do_not_allow_is_refused_before_the_run(tmp_path: Path) -> None:
    scenario = Scenario(**tables(["gradient_inversion"], client={"per_round": 3, "epochs": 1, "batch_size": 4}))
    with pytest.raises(ScenarioError, match=r"observe.observers\[0\].client: given nothing; accepted: a client with"):
        simulate(scenario, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_observer_says_what_it_is_after() -> None:
    for name, part in registry.iterate("observer"):
        assert issubclass(part, Observer), name
        assert part.goal, name
        assert all(option.meaning for option in registry.options(part)), name
        assert registry.source(part), name
        assert registry.summary(part), name
    assert Observation({}).pictures == {}


@pytest.mark.parametrize("name", ["gradient_inversion", "membership_inference"])
def test_what_guesses_labels_is_refused_for_numbers_as_soon_as_the_data_set_is_named(name: str) -> None:
    with pytest.raises(ScenarioError, match=rf"observe\.observers\[0\]: given '{name}'; accepted: none for targets"):
        Scenario(**tables([name], data={"dataset": "planted", "clients": 6}, model="linear"))
    with pytest.raises(FedsimError, match=rf"given '{name}'; accepted: none for targets"):
        registry.make("observer", name).fit(0)
