"""Two objectives on each client: labels and the reconstruction of the inputs, summed or combined by SAM-GS."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.nn import functional

from fedsim.errors import ScenarioError
from fedsim.federation import build
from fedsim.optim.sam_gs import SamGS
from fedsim.scenario import Scenario
from fedsim.simulation import simulate

CLIENTS = 3
TABLES: dict[str, Any] = {
    "rounds": 2,
    "data": {
        "dataset": {"name": "synthetic_classification", "features": 6, "classes": 3, "examples": 60, "test": 20},
        "partition": {"name": "iid"},
        "clients": CLIENTS,
    },
    "model": {"name": "mlp", "hidden": [8]},
    "client": {
        "per_round": CLIENTS,
        "epochs": 4,
        "batch_size": 100,
        "loss": "with_reconstruction",
        "optimizer": {"name": "sam_gs", "lr": 0.01},
    },
    "engine": {"workers": 1, "precision": "float64"},
}


@pytest.mark.parametrize(("name", "gamma"), [("sam_gs", 0.5), ("sam_gs", 0.99), ("adam", None)])
def test_two_rounds_are_those_of_a_plain_loop(name: str, gamma: float | None) -> None:
    """Full batches, so that the loop needs no order of examples; both branches of the rule, and the sum."""
    options = {"name": name, "lr": 0.01} | ({} if gamma is None else {"gamma": gamma})
    scenario = Scenario(**TABLES).changed(**{"client.optimizer": options})
    federation = build(scenario)
    train, server = federation.app.workload.train, deepcopy(federation.module).double()
    for _ in range(2):
        ends = []
        for client in range(CLIENTS):
            rows = torch.as_tensor(federation.shares[client]).long()
            x, y = train.inputs[rows].double(), train.targets[rows]
            model = deepcopy(server)
            surgery = SamGS(model.parameters(), gamma=gamma or 0.0)
            adam = torch.optim.Adam(model.parameters(), lr=0.01)
            for _ in range(4):
                features = model[:-1](x)
                heads = model[-1]
                losses = [
                    functional.cross_entropy(heads.classes(features), y),
                    functional.mse_loss(heads.pixels(features), x),
                ]
                adam.zero_grad()
                if name == "sam_gs":
                    surgery.backward(losses)
                else:
                    torch.stack(losses).sum().backward()
                adam.step()
            ends.append(model.state_dict())
        server.load_state_dict({key: torch.stack([each[key] for each in ends]).mean(0) for key in ends[0]})
    found = simulate(scenario)
    assert not any(line["faults"] for line in found.lines)
    for key, wanted in server.state_dict().items():
        torch.testing.assert_close(found.parameters[key], wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["sam_gs", "adam"])
def test_paths_tell_the_same_story(optimizer: str) -> None:
    """Clients of unequal work, in batches that end ragged; one of them is malicious."""
    more = {
        "data.partition": {"name": "iid", "examples": 14},
        "client.batch_size": 4,
        "client.straggler": 0.5,
        "client.optimizer": {"name": optimizer, "lr": 0.01},
        "adversary.count": 1,
        "adversary.attacks": ["label_flip"],
    }
    scenario = Scenario(**TABLES).changed(**more)
    found = {path: simulate(scenario.changed(**{"engine.path": path})) for path in ("reference", "stacked", "vmap")}
    assert simulate(scenario).digest == found["stacked"].digest
    for other in ("stacked", "vmap"):
        assert not any(line["faults"] for line in found[other].lines)
        for key, wanted in found["reference"].parameters.items():
            torch.testing.assert_close(found[other].parameters[key], wanted, rtol=1e-9, atol=1e-10)
        assert found[other].lines[-1]["loss"] == pytest.approx(found["reference"].lines[-1]["loss"])


def test_accuracy_is_that_of_the_labels_and_threads_change_no_bit() -> None:
    scenario = Scenario(**TABLES).changed(**{"rounds": 6, "client.proximal": 0.01, "client.clip_norm": 1.0})
    found = simulate(scenario)
    assert found.lines[-1]["accuracy"] > 0.8
    assert simulate(scenario.changed(**{"engine.workers": 2})).digest == found.digest
    assert simulate(scenario.changed(**{"client.proximal": 0.5})).digest != found.digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"client.loss": "cross_entropy"}, r"client\.optimizer: given 'sam_gs'; accepted: one of a single objective"),
        ({"client.optimizer": "gns"}, r"client\.optimizer: given 'gns'"),
        ({"client.optimizer": "winsorized"}, r"client\.optimizer: given 'winsorized'"),
        ({"client.optimizer_state": "persist"}, r"client\.optimizer_state: given 'persist'; accepted: 'reset'"),
        ({"client.regularizers": ["coral"]}, r"client\.regularizers: given \['coral'\]; accepted: none"),
        ({"evaluate.gradient_norm": True}, r"evaluate\.gradient_norm: given True; accepted: false"),
        ({"data.dataset": "teacher_student"}, r"client\.loss: given 'with_reconstruction'"),
        (
            {"client.optimizer": "dp_sgd", "privacy.noise": [1.0], "privacy.trust": "local"},
            r"client\.optimizer: given 'dp_sgd'",
        ),
    ],
)
def test_what_knows_of_one_objective_only_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        Scenario(**TABLES).changed(**changes)
