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
from fedsim.scenario_file import override, read
from fedsim.simulation import simulate

NAMED = {key: value for key, value in read("papers/langevin_planted").items() if key not in ("title", "matrix")}
TABLES = override(
    NAMED,
    {
        "data.dataset": {"dimensions": 10, "examples": 1000, "test": 50},
        "data.clients": 5,
        "client": {"per_round": 5, "epochs": 2, "optimizer": {"name": "normalized_sgd", "lr": 0.3}},
        "engine.workers": 1,
    },
)
FOURTH = {"data.dataset.exponent": 4, "model.exponent": 4}


def planted(name: str, lr: float, **changes: Any) -> Scenario:
    """A round with this optimizer, its exponent even where the optimizer is for even ones."""
    even = FOURTH if name.startswith("even_") else {}
    return Scenario(**TABLES).changed(**{**even, "client.optimizer": {"name": name, "lr": lr}, **changes})


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


@pytest.mark.parametrize("name", ["normalized_sgd", "spherical_sgd", "even_sgd"])
def test_a_round_is_the_plain_loop_on_the_sphere(name: str) -> None:
    """Full batches, so that the loop needs no order of examples."""
    changes = {"client.batch_size": 1000, "client.epochs": 6, "engine.precision": "float64"}
    scenario = planted(name, 0.3, **changes)
    k = scenario.model.options["exponent"]
    federation = build(scenario)
    train, shares = federation.app.workload.train, federation.shares
    ends = []
    for client in range(5):
        own = torch.as_tensor(shares[client]).long()
        x, y = train.inputs[own].double(), train.targets[own].double()

        def ascent(theta: torch.Tensor, _: int, x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            return single_index_ascent(theta, x, y, k)

        walk = normalized_sgd(ascent, federation.initial, lr=0.3, steps=6, exponent=k)
        v = walk.direction * torch.sign(walk.direction @ federation.initial.double())
        ends.append({"normalized_sgd": walk.mean, "spherical_sgd": walk.last, "even_sgd": v}[name])
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


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.slow
def test_the_top_eigenvectors_find_a_direction_of_even_exponent(seed: int) -> None:
    changes = {"data.dataset.dimensions": 12, "data.dataset.examples": 4000, "data.clients": 10, "seed": seed}
    changes |= {"client.per_round": 10, "client.epochs": None, "client.steps": 3000}
    before, after = simulate(planted("even_sgd", 0.08, **changes)).lines
    assert abs(before["overlap"]) < 0.5
    assert abs(after["overlap"]) > 0.95


@pytest.mark.parametrize("name", ["even_sgd", "even_spherical_langevin"])
def test_a_second_round_keeps_the_sign_of_the_first(name: str) -> None:
    lr = {"even_sgd": 0.15, "even_spherical_langevin": 0.03}[name]
    lines = simulate(planted(name, lr, rounds=2, **{"data.dataset.dimensions": 6})).lines
    first, second = (line["overlap"] for line in lines[1:])
    assert abs(second) > 0.8
    assert first * second > 0


@pytest.mark.parametrize("name", ["normalized_sgd", "spherical_langevin"])
def test_a_mean_of_even_exponent_is_refused_and_told_what_takes_its_place(name: str) -> None:
    accepted = r"accepted: 'even_sgd' or 'even_spherical_langevin' with an even model\.exponent"
    with pytest.raises(ScenarioError, match=rf"client\.optimizer: given '{name}'; {accepted}") as refused:
        planted(name, 0.1, **FOURTH)
    assert [fault.key for fault in refused.value.faults] == ["client.optimizer"]


@pytest.mark.parametrize("name", ["even_sgd", "even_spherical_langevin"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.exponent": 3}, r"client\.optimizer: given .*'normalized_sgd' or 'spherical_langevin' with an odd"),
        ({"model": "linear"}, r"model\.name: given 'linear'; accepted: 'single_index'"),
        ({"data.dataset.dimensions": 2001}, r"data\.dataset: given .*at most 2000 numbers"),
        ({"client.optimizer_state": "persist"}, r"client\.optimizer_state: given 'persist'; accepted: 'reset'"),
    ],
)
def test_an_eigenvector_is_refused_where_it_means_nothing(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said) as refused:
        planted(name, 0.1, **changes)
    assert len(refused.value.faults) == 1


@pytest.mark.parametrize(
    "name", ["normalized_sgd", "spherical_sgd", "spherical_langevin", "even_sgd", "even_spherical_langevin"]
)
def test_stacked_vmap_and_reference_walk_alike_and_threads_change_no_bit(name: str) -> None:
    short = {"client.epochs": None, "client.steps": 12, "rounds": 2}
    scenario = planted(name, 0.1, **{**short, "engine.precision": "float64", "client.straggler": 0.5})
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
