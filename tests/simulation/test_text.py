"""Text in a federation: its paths agree, its bits repeat, and what calculates with inputs is refused as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.errors import ScenarioError
from fedsim.federation import build
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from tests.data.test_python_library import TEXT
from tests.simulation.test_same_bits import interrupted

HEADS = [{"name": "cross_entropy"}, {"name": "harmonic", "distance": "cosine"}, {"name": "harmonic"}]


def text(**changes: Any) -> Scenario:
    client = {"per_round": 2, "steps": 3, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.01}}
    return Scenario(**{**TEXT, "rounds": 2, "client": client}).changed(**changes)


@pytest.mark.parametrize("loss", HEADS, ids=lambda loss: loss.get("distance", loss["name"]))
def test_paths_agree(loss: dict[str, Any]) -> None:
    double = {"client.loss": loss, "engine.precision": "float64"}
    found = [simulate(text(**double, **{"engine.path": path})) for path in ("reference", "vmap")]
    assert not any(line["faults"] for result in found for line in result.lines)
    for name, tensor in found[0].parameters.items():
        torch.testing.assert_close(tensor, found[1].parameters[name], rtol=1e-7, atol=1e-9)
    assert found[0].lines[-1]["loss"] < found[0].lines[0]["loss"]


@pytest.mark.parametrize("path", ["auto", "reference"])
def test_workers_and_interruptions_change_no_bit(path: str, tmp_path: Path) -> None:
    digests = {simulate(text(**{"engine.path": path, "engine.workers": workers})).digest for workers in (1, 2)}
    assert {*digests, interrupted(text(**{"engine.path": path}), tmp_path)} == digests
    assert len(digests) == 1


def test_many_clients_train_at_once() -> None:
    assert build(text()).app.path.name == "vmap"


def test_the_gradient_norm_and_the_clients_own_measures_are_of_codes() -> None:
    line = simulate(text(evaluate={"gradient_norm": True, "clients": 2})).lines[-1]
    assert line["gradient_norm"] > 0
    assert 0 <= line["worst10"] <= 1


CODES = "one for codes of a vocabulary, as inputs of 'python_library' are; this one takes numbers"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(
            ({"model": model}, rf"model\.name: given '{model}'; accepted: {CODES}")
            for model in ("mlp", "cnn", "linear")
        ),
        ({"model.standardize": [40.0, 30.0]}, r"model\.standardize: given .*codes of a vocabulary, which have no mean"),
        ({"client.loss": "with_reconstruction"}, rf"client\.loss\.name: given .*{CODES}"),
        ({"client.adapter": "monge_gap", "data.root": 20}, rf"client\.adapter\.name: given .*{CODES}"),
        ({"client.augmentation": ["flip"]}, r"client\.augmentation\[0\]\.name: given 'flip'; accepted: images"),
        (
            {"observe.observers": ["gradient_inversion"], "client.optimizer": {"name": "sgd", "lr": 0.1}},
            rf"observe\.observers\[0\]\.name: given .*{CODES}",
        ),
        ({"adversary": {"count": 1, "attacks": ["badnets"]}}, r"adversary\.attacks\[0\]\.name: given 'patch'.*images"),
        (
            {"adversary": {"count": 1, "attacks": ["semantic"], "knowledge": "omniscient"}},
            rf"adversary\.attacks\[0\]\.name: given 'semantic'; accepted: {CODES}",
        ),
        ({"engine.path": "stacked"}, r"engine\.path: given 'stacked'; .*'char_transformer' have no stacked twin"),
        ({"data.partition": {"name": "feature_shift"}}, r"data\.partition\.name: given 'feature_shift'.*images"),
        (
            {"data.dataset": {"name": "digits"}, "data.partition": {"name": "iid"}},
            r"model\.name: given 'char_transformer'; accepted: one for numbers, as inputs of 'digits' are",
        ),
    ],
)
def test_what_does_not_take_codes_is_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said) as refused:
        text(**changes)
    assert len(str(refused.value).splitlines()) == 1


def test_labels_of_text_can_be_flipped() -> None:
    attacked = simulate(text(adversary={"count": 1, "attacks": ["label_flip"]}))
    assert not any(line["faults"] for line in attacked.lines)
    assert attacked.digest != simulate(text()).digest
