"""What a scenario says of its adversary that cannot be, one line each."""

from __future__ import annotations

import pytest

from fedsim.errors import ScenarioError
from fedsim.scenario import Scenario

BASE = {
    "rounds": 20,
    "data": {"dataset": "digits", "clients": 40},
    "client": {"per_round": 10},
}


def faults(attacks, **adversary):
    table = {"count": 8, "knowledge": "colluding", "attacks": attacks, **adversary}
    try:
        Scenario(**BASE, adversary=table)
    except ScenarioError as error:
        return {fault.key: fault.accepted for fault in error.faults}
    return {}


@pytest.mark.parametrize(
    "attacks",
    [
        ["sign_flip"],
        ["badnets", "model_replacement"],
        ["dba", {"name": "pgd", "epsilon": 0.5}],
        [{"name": "edge_case", "mode": "lowest_density"}, "pgd"],
        ["alie"],
        ["min_max"],
        [{"name": "label_flip", "map": {"5": 3}}],
    ],
)
def test_good_ones(attacks):
    assert faults(attacks) == {}


def test_alie_needs_two_attackers_in_a_cohort():
    for name in ("alie", "min_max", "min_sum"):
        assert "two attackers or more" in faults([name], count=4)["adversary.attacks[0].name"]
        assert "colluding" in faults([name], knowledge="own")["adversary.knowledge"]
        assert faults([name], count=4, knowledge="omniscient") == {}
        assert faults([name], count=4, selection="forced", forced=2) == {}
        assert faults([name], count=0) == {}


def test_options_that_need_omniscience():
    found = faults([{"name": "sign_flip", "of": "mean"}, {"name": "model_replacement", "participation": "examples"}])
    assert set(found) == {"adversary.attacks[0].of", "adversary.attacks[1].participation"}
    assert faults([{"name": "sign_flip", "of": "mean"}], knowledge="omniscient") == {}
    assert "adversary.knowledge" in faults(["ipm"])


@pytest.mark.parametrize(
    ("attack", "key"),
    [
        ({"name": "badnets", "target": 10}, "target"),
        ({"name": "badnets", "size": 9}, "size"),
        ({"name": "badnets", "position": [7, 7]}, "position"),
        ({"name": "badnets", "trigger": {"name": "pixels", "positions": [[8, 0]]}}, "trigger.positions"),
        ({"name": "badnets", "trigger": "patsch"}, "trigger.name"),
        ({"name": "dba", "trigger": {"name": "bars", "length": 4}}, "trigger.position"),
        ({"name": "dba", "parts": 13}, "parts"),
        ({"name": "edge_case", "dataset": "digits"}, "dataset"),
        ({"name": "edge_case", "dataset": "mnits"}, "dataset.name"),
        ({"name": "edge_case", "mode": "lowest_density", "source": 0}, "source"),
        ({"name": "label_flip", "map": {"5": 11}}, "map"),
        ({"name": "label_flip", "map": {"five": 1}}, "map"),
    ],
)
def test_faults_of_one_attack(attack, key):
    assert list(faults([attack])) == [f"adversary.attacks[0].{key}"]


def test_one_target_to_measure():
    assert "one attack with a target" in faults(["badnets", "dba"])["adversary.attacks[0].name"]


def test_trigger_on_inputs_that_are_no_images():
    table = {"count": 2, "attacks": ["badnets"]}
    data = {"dataset": {"name": "synthetic_classification"}, "clients": 40}
    with pytest.raises(ScenarioError, match=r"adversary\.attacks\[0\].*images \(C, H, W\)"):
        Scenario(**{**BASE, "data": data}, adversary=table)


def test_schedule_without_a_round():
    for schedule in (
        {"name": "single_shot", "round": 21},
        {"name": "window", "start": 30},
        {"name": "rounds", "rounds": [99]},
    ):
        assert "rounds 1 to 20" in faults(["sign_flip"], schedule=schedule)["adversary.schedule"]
        assert faults(["sign_flip"], schedule=schedule, count=0) == {}


def test_adversary_of_a_scenario():
    from attacks.adversary import Adversary

    table = {
        "fraction": 0.2,
        "selection": "forced",
        "forced": 2,
        "claim": 500,
        "knowledge": "own",
        "schedule": {"name": "fixed_frequency", "every": 4},
        "attacks": ["sign_flip", "pgd"],
    }
    enemy = Adversary.of(Scenario(**BASE, seed=3, adversary=table))
    assert len(enemy) == 8
    assert [part.name for part in enemy.attacks] == ["sign_flip", "pgd"]
    assert [round for round in range(1, 21) if enemy.active(round)] == [4, 8, 12, 16, 20]
    honest = [client for client in range(40) if not enemy.holds([client])[0]]
    assert enemy.holds(enemy.force(4, honest[:10])[0]).sum() == 2
    assert enemy.claim == 500


def test_a_patchs_options_are_not_those_of_another_trigger():
    assert faults([{"name": "badnets", "trigger": "sinusoid"}]) == {}
    assert set(faults([{"name": "badnets", "trigger": "sinusoid", "size": 5, "value": 0.5}])) == {
        "adversary.attacks[0].size",
        "adversary.attacks[0].value",
    }
