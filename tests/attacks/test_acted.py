"""Whether an attack changed what its clients sent: by what its hooks did, not by which hooks it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim.simulation import simulate
from tests.simulation.test_runs import small

PLUGIN = '''
from attacks.attack import Attack

class Idle(Attack):
    """Has the hooks of training and uses none."""

    def poison(self, examples, node):
        return examples

    def objective(self, losses, parameters, step):
        return losses

    def after_step(self, parameters, step):
        pass

class Late(Attack):
    """Moves its clients' parameters in their last step."""

    def after_step(self, parameters, step):
        parameters[step.last] += 1e-3

class Pull(Attack):
    """Adds a term of the parameters alone."""

    def objective(self, losses, parameters, step):
        return losses + 1e-3 * parameters.square().sum(1)
'''


def acted(attack: dict[str, Any], path: str, optimizer: str = "sgd") -> set[bool]:
    """What the rounds with malicious clients say."""
    lines = simulate(
        small(
            **{
                "rounds": 2,
                "adversary": {"fraction": 0.5, "attacks": [attack]},
                "engine.path": path,
                "client.optimizer": {"name": optimizer},
                "server.defenses": ["fedavg"],
            }
        )
    ).lines
    return {line["attack_acted"] for line in lines if line["malicious"]}


@pytest.mark.parametrize("path", ["stacked", "vmap", "reference"])
@pytest.mark.parametrize(
    ("name", "expected"), [("Idle", False), ("Late", True), ("Pull", True)], ids=["idle", "late", "pull"]
)
def test_an_attack_of_hooks_acts_where_they_change_something(
    name: str, expected: bool, path: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert acted({"name": f"{tmp_path / 'mine.py'}:{name}"}, path) == {expected}


@pytest.mark.parametrize(("map", "expected"), [({"5": 5}, False), ({"5": 3}, True)])
def test_labels_that_are_flipped_to_themselves_are_no_attack(map: dict[str, int], expected: bool) -> None:
    assert acted({"name": "label_flip", "map": map}, "stacked") == {expected}


def test_a_scaling_by_one_beside_a_poison_does_not_hide_that_the_poison_acted() -> None:
    assert acted({"name": "badnets", "target": 0}, "stacked") == {True}
    assert acted({"name": "model_replacement", "scale": 1.0}, "stacked") == {False}
