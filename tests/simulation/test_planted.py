"""A planted direction in a federation: clients' averages find it where their last iterates do not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedsim import registry
from fedsim.data.planted import hermite, single_index_ascent
from fedsim.errors import ScenarioError
from fedsim.federation import build
from fedsim.optim.langevin import normalized, normalized_sgd
from fedsim.scenario import Scenario
from fedsim.simulation import simulate

TABLES: dict[str, Any] = {
    "rounds": 1,
    "data": {
        "dataset": {"name": "planted", "dimensions": 10, "examples": 1000, "test": 50},
        "partition": {"name": "iid"},
        "clients": 5,
    },
    "model": {"name": "single_index"},
    "client": {
        "per_round": 5,
        "epochs": 2,
        "batch_size": 1,
        "loss": "correlation",
        "optimizer": {"name": "normalized_sgd", "lr": 0.3},
    },
    "engine": {"workers": 1},
}


def test_targets_are_the_polynomial_of_the_direction_and_overlaps_are_measured_along_it():
    part = registry.make("dataset", "planted", exponent=3, dimensions=7, examples=4000, test=30)
    data, theta = part.load(), part.direction()
    assert (data.info.shape, data.info.num_classes, len(data.train), len(data.test)) == ((7,), 0, 4000, 30)
    for each in (data.train, data.test):
        torch.testing.assert_close(each.targets, hermite(3, each.inputs.double() @ theta).float(), atol=2e-5, rtol=1e-4)
    assert float(data.train.inputs.var()) == pytest.approx(1, abs=0.05)
    assert float(torch.linalg.vector_norm(theta)) == pytest.approx(1, abs=1e-12)
    assert part.measure({"weight": -2 * theta[None]}) == {"overlap": pytest.approx(-1)}
    assert part.measure({"weight": theta, "bias": torch.zeros(1)}) == {"overlap": None}
    even = registry.make("dataset", "planted", exponent=4, dimensions=7)
    assert even.measure({"weight": -even.direction()}) == {"overlap": pytest.approx(1)}
    other = registry.make("dataset", "planted", dimensions=7, data_seed=1).direction()
    assert abs(float(other @ theta)) < 0.99


def test_a_client_descends_along_the_ascent_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(9, 5, generator=generator).double(), torch.randn(9, generator=generator).double()
    model = registry.make("model", "single_index", exponent=3)(registry.make("dataset", "planted", dimensions=5).info())
    model.double()
    loss = registry.make("loss", "correlation")
    losses = loss.example_losses(model(inputs), targets, 0)
    losses.mean().backward()
    theta = model[1].weight
    assert float(torch.linalg.vector_norm(theta.detach())) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(-theta.grad[0], single_index_ascent(theta.detach()[0], inputs, targets, 3))
    z = inputs @ theta.detach()[0]
    torch.testing.assert_close(losses.detach(), -targets * (z**3 - 3 * z) / math.sqrt(6))


@pytest.mark.parametrize("name", ["normalized_sgd", "spherical_sgd"])
def test_a_round_is_the_plain_loop_on_the_sphere(name: str) -> None:
    """Full batches, so that the loop needs no order of examples."""
    changes = {"client.batch_size": 1000, "client.epochs": 6, "client.optimizer": {"name": name, "lr": 0.3}}
    scenario = Scenario(**TABLES).changed(**changes, **{"engine.precision": "float64"})
    federation = build(scenario)
    train, shares = federation.app.workload.train, federation.shares
    ends = []
    for client in range(5):
        own = torch.as_tensor(shares[client]).long()
        x, y = train.inputs[own].double(), train.targets[own].double()

        def ascent(theta: torch.Tensor, _: int, x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            return single_index_ascent(theta, x, y, 3)

        walk = normalized_sgd(ascent, federation.initial, lr=0.3, steps=6, exponent=3)
        ends.append(walk.mean if name == "normalized_sgd" else walk.last)
    found = simulate(scenario).parameters["1.weight"][0]
    torch.testing.assert_close(found, torch.stack(ends).mean(0), rtol=1e-6, atol=1e-6)


def test_the_average_finds_the_direction_where_the_last_iterate_does_not():
    average = simulate(Scenario(**TABLES))
    last = simulate(Scenario(**TABLES).changed(**{"client.optimizer": {"name": "spherical_sgd", "lr": 0.3}}))
    assert abs(average.lines[0]["overlap"]) < 0.5
    assert average.lines[-1]["overlap"] > 0.8
    assert abs(last.lines[-1]["overlap"]) < 0.7
    theta = registry.make("dataset", "planted", dimensions=10).direction()
    found = normalized(average.parameters["1.weight"][0].double())
    assert average.lines[-1]["overlap"] == pytest.approx(float(found @ theta), abs=1e-9)


@pytest.mark.parametrize("name", ["normalized_sgd", "spherical_sgd", "spherical_langevin"])
def test_stacked_vmap_and_reference_walk_alike_and_threads_change_no_bit(name: str) -> None:
    short = {"client.epochs": None, "client.steps": 12, "client.optimizer": {"name": name, "lr": 0.1}, "rounds": 2}
    scenario = Scenario(**TABLES).changed(**{**short, "engine.precision": "float64", "client.straggler": 0.5})
    runs = {path: simulate(scenario.changed(**{"engine.path": path})) for path in ("stacked", "vmap", "reference")}
    for path in ("vmap", "reference"):
        found, wanted = runs[path].parameters["1.weight"], runs["stacked"].parameters["1.weight"]
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        assert runs[path].lines[-1]["overlap"] == pytest.approx(runs["stacked"].lines[-1]["overlap"], abs=1e-9)
    for path, run in runs.items():
        assert simulate(scenario.changed(**{"engine.path": path, "engine.workers": 2})).digest == run.digest


def test_rounds_that_are_not_evaluated_say_no_overlap():
    lines = simulate(Scenario(**TABLES).changed(**{"rounds": 3, "evaluate.every": 2, "client.epochs": 1})).lines
    assert [line["overlap"] is None for line in lines] == [False, True, False, False]


def test_targets_that_are_classes_have_no_correlation():
    with pytest.raises(ScenarioError, match=r"client\.loss.*'correlation'.*'cross_entropy'"):
        Scenario(**{**TABLES, "data": {"dataset": "digits"}})
