"""The papers' server parts in whole runs: exchanges, measures, memory, one digest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.analysis import generalization as theory
from fedsim.analysis.coherence import coherence
from fedsim.errors import ScenarioError
from fedsim.federation import build
from fedsim.optim import gns
from fedsim.optim.gns_curvature import empirical_fisher, exact, weighted_gauss_newton
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from strategies.gns import GradientNormalizedSmoothness
from tests.simulation.test_runs import small
from tests.simulation.test_same_bits import interrupted

L2 = 1e-2


def newton(curvature: str = "gauss_newton", **changes: Any) -> Scenario:
    tables: dict[str, Any] = {
        "rounds": 5,
        "data": {"dataset": "diabetes", "partition": {"name": "quantity"}, "clients": 5},
        "model": {"name": "logistic"},
        "client": {"per_round": 5},
        "server": {"estimator": {"name": "gns", "curvature": curvature, "l2": L2}},
        "engine": {"precision": "float64"},
    }
    return Scenario(**{**tables, **changes})


CASES: dict[str, Scenario] = {
    "gns": newton(),
    "softmax_cap": small(
        server={"defenses": ["softmax_cap"], "optimizer": {"name": "adam", "lr": 0.3}, "analysis": ["coherence"]},
        rounds=3,
    ),
    "analyses": small(server={"defenses": ["pcgrad"], "analysis": [{"name": "coherence", "examples": True}]}, rounds=3),
    "diffgrad": small(server={"defenses": ["sam_gs"], "optimizer": "diffgrad"}, rounds=3),
    "prototype_average": small(
        **{"data.partition": "shards", "client.loss": "harmonic"}, server={"defenses": ["prototype_average"]}, rounds=3
    ),
    "rm3": small(server={"defenses": ["rm3"]}, rounds=4),
    "radius_filter": small(
        **{"data.root": 50}, server={"defenses": [{"name": "softmax_radius", "keep": 0.5}, "cagrad"]}, rounds=3
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_workers_and_interruptions_change_no_bit(name: str, tmp_path: Path) -> None:
    scenario = CASES[name]
    whole = simulate(scenario.changed(engine={**scenario.table()["engine"], "workers": 1}))
    assert not [fault for line in whole.lines for fault in line["faults"]]
    others = [simulate(scenario.changed(engine={**scenario.table()["engine"], "workers": n})).digest for n in (2, 3)]
    assert {whole.digest, *others, interrupted(scenario, tmp_path)} == {whole.digest}


@pytest.mark.parametrize("curvature", ["gauss_newton", "empirical_fisher", "exact", "zero"])
def test_rounds_of_gns_are_the_centralised_iterations(curvature: str) -> None:
    scenario = newton(curvature)
    result = simulate(scenario)
    federation = build(scenario)
    rows = torch.from_numpy(np.concatenate([federation.shares[client] for client in range(5)]))
    inputs, targets = federation.dataset.train.inputs[rows].double(), federation.dataset.train.targets[rows].double()
    design = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
    n, d = design.shape

    def function(x: Tensor) -> Tensor:
        return (design @ x - targets).square().mean() + 0.5 * L2 * x @ x

    def value_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        gradient, value = torch.func.grad_and_value(function)(x)
        return value, gradient

    ridge = L2 * torch.eye(d, dtype=torch.float64)
    curvatures = {
        "exact": exact(function),
        "gauss_newton": lambda x: (
            weighted_gauss_newton(lambda y: design @ y, lambda y: torch.full((n,), 2 / n, dtype=torch.float64))(x)
            + ridge
        ),
        "empirical_fisher": lambda x: (
            empirical_fisher(lambda y: 2 * (design @ y - targets)[:, None] * design)(x).dense() + ridge
        ),
        "zero": lambda x: ridge,
    }
    start = federation.initial.double()
    central = gns.minimize(value_and_gradient, curvatures[curvature], start, max_iterations=scenario.rounds)
    ours = torch.cat([tensor.reshape(-1) for tensor in result.parameters.values()])
    torch.testing.assert_close(ours, central.x, rtol=0, atol=1e-10)
    lines = result.lines[1:]
    assert [line["gns.gamma"] for line in lines] == central.gammas[1:]
    assert [line["gns.value"] for line in lines] == pytest.approx(central.values[:-1], abs=1e-12)
    trials = sum(line["gns.exchanges"] - (2 if curvature != "zero" else 1) for line in lines)
    assert trials == central.evaluations - 1
    curve = 0 if curvature == "zero" else d * (d + 1) // 2
    for line in lines:
        tried = line["gns.exchanges"] - (1 if curvature == "zero" else 2)
        assert line["gns.numbers_up"] == (1 + tried) * (d + 1) + curve


@pytest.mark.slow
def test_gns_on_the_softmax_falls_below_what_gradient_descent_reaches() -> None:
    common: dict[str, Any] = {"data": {"dataset": "digits", "clients": 2}, "client": {"per_round": 2}, "rounds": 3}
    found = simulate(newton(**common, server={"estimator": {"name": "gns", "l2": 1e-3}}))
    values = [line["gns.value"] for line in found.lines[1:]]
    assert values == sorted(values, reverse=True)
    assert found.lines[-1]["accuracy"] > 0.9


def test_a_client_that_fails_is_left_out_of_its_gns_round() -> None:
    scenario = newton(adversary={"count": 1, "attacks": ["non_finite"]})
    result = simulate(scenario)
    assert all(line["faults"] for line in result.lines[1:])
    assert all(line["malicious"] and line["attack_acted"] for line in result.lines[1:]), "trials ask it no more"
    assert result.lines[-1]["loss"] < result.lines[0]["loss"], "the others go on without it"


def test_a_client_that_fails_in_the_midst_of_a_gns_round_lets_the_round_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: Counter[int] = Counter()
    evaluate = GradientNormalizedSmoothness.evaluate

    def failing(self: GradientNormalizedSmoothness, node: Any, content: Any) -> Any:
        asked[node.client] += 1
        if node.client == 1 and asked[1] == 2:
            raise RuntimeError("gone")
        return evaluate(self, node, content)

    monkeypatch.setattr(GradientNormalizedSmoothness, "evaluate", failing)
    start, first, second = simulate(newton(rounds=2)).lines
    assert "clients [1] did not answer in the midst of a round" in str(first["faults"])
    assert first["loss"] == start["loss"]
    assert not second["faults"]
    assert second["loss"] < first["loss"]


def test_an_analysis_changes_nothing_and_is_recorded() -> None:
    plain = small(server={"defenses": ["median"]}, rounds=2)
    seen = small(server={"defenses": ["median"], "analysis": [{"name": "coherence", "examples": True}]}, rounds=2)
    without, result = simulate(plain), simulate(seen)
    for name, tensor in without.parameters.items():
        assert torch.equal(tensor, result.parameters[name])
    for line, other in zip(result.lines[1:], without.lines[1:], strict=True):
        extra = {key for key in line if key not in other}
        assert extra == {f"coherence.{key}" for key in ("m_coherence", "alpha", "examples", "rows", "clients")}
        assert 0 < line["coherence.clients"] <= 1
        assert line["coherence.rows"] == pytest.approx(line["coherence.clients"] * len(line["cohort"]))


def test_coherence_over_clients_is_that_of_all_their_examples() -> None:
    server = {"analysis": [{"name": "coherence", "examples": True}]}
    scenario = small(server=server, rounds=1, adversary={}, **{"engine.precision": "float64"})
    line = simulate(scenario).lines[1]
    federation = build(scenario)
    rows = torch.from_numpy(np.concatenate([federation.shares[client] for client in line["cohort"]]))
    inputs, targets = federation.dataset.train.inputs[rows].double(), federation.dataset.train.targets[rows]
    layout, module = federation.layout, federation.module

    def loss(vector: Tensor, one: Tensor, target: Tensor) -> Tensor:
        outputs = torch.func.functional_call(module, layout.views(vector), (one[None],))
        return torch.nn.functional.cross_entropy(outputs, target[None])

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(federation.initial, inputs, targets)
    wanted = coherence(gradients)
    assert line["coherence.alpha"] == pytest.approx(wanted.alpha, rel=1e-10)
    assert line["coherence.m_coherence"] == pytest.approx(wanted.m_coherence, rel=1e-10)
    assert line["coherence.examples"] == len(rows)


def test_the_cap_holds_the_step_within_the_radius() -> None:
    """One client at ×1000: with the cap the logits of no client's example spread by more than π to first order."""
    attack = {"count": 1, "attacks": [{"name": "model_replacement", "scale": 1000.0}]}
    base: dict[str, Any] = {"rounds": 2, "adversary": attack, "client.per_round": 12}
    capped = simulate(small(**base, server={"defenses": ["softmax_cap"]}))
    line = capped.lines[1]
    assert line["softmax_cap.radius"] > 1
    assert line["softmax_cap.scale"] == pytest.approx(1 / line["softmax_cap.radius"])
    assert line["defense_acted"]
    plain = simulate(small(**base, server={"defenses": ["fedavg"]}))
    assert capped.lines[1]["loss"] < plain.lines[1]["loss"]


def regression(rounds: int = 80, **changes: Any) -> Scenario:
    tables: dict[str, Any] = {
        "rounds": rounds,
        "data": {"dataset": {"name": "teacher_student", "inputs": 100, "examples": 100}, "clients": 5},
        "model": {"name": "linear"},
        "client": {"per_round": 5, "batch_size": 1000, "optimizer": {"name": "sgd", "lr": 2.5}},
        "server": {"analysis": [{"name": "generalization", "init": 1 / 300}]},
        "evaluate": {"every": 1},
        "engine": {"precision": "float64"},
    }
    return Scenario(**{**tables, **changes})


def test_the_round_to_stop_is_predicted() -> None:
    best, predicted = [], []
    for data_seed in range(4):
        data = {
            "dataset": {"name": "teacher_student", "inputs": 100, "examples": 100, "data_seed": data_seed},
            "clients": 5,
        }
        lines = simulate(regression(data=data)).lines
        best.append(min(lines, key=lambda line: line["loss"])["round"])
        predicted.append(lines[-1]["generalization.stopping_round"])
        assert lines[-1]["generalization.time"] == pytest.approx(2 * 2.5 * 80 / 100)
        wanted = theory.generalization_error(4.0, 1.0, init=1 / 300)
        assert lines[-1]["generalization.test_error"] == pytest.approx(float(wanted))
    assert np.mean(best) == pytest.approx(predicted[0], rel=0.25)


def test_fedsgd_over_unequal_clients_is_gradient_descent_on_the_pooled_data() -> None:
    """The trap: the mean of the clients' gradients is the pooled one only with weights n_k / n."""
    partition = {"name": "quantity", "law": "dirichlet", "alpha": 0.5}
    scenario = regression(rounds=40).changed(**{"data.partition": partition})
    result, federation = simulate(scenario), build(scenario)
    shares = [federation.shares[client] for client in range(5)]
    sizes = [len(share) for share in shares]
    assert max(sizes) > 10 * min(sizes) > 0
    train, rows = federation.dataset.train, torch.from_numpy(np.concatenate(shares))
    inputs, targets = train.inputs[rows].double().flatten(1), train.targets[rows].double().flatten()
    rate = theory.mse_time(2.5, 1, sum(sizes))
    wanted = theory.gradient_descent(
        inputs.numpy(), targets.numpy(), federation.initial.double().numpy(), rate, scenario.rounds
    )
    ours = torch.cat([tensor.reshape(-1) for tensor in result.parameters.values()])
    torch.testing.assert_close(ours, torch.from_numpy(wanted), rtol=0, atol=1e-10)


def test_a_stop_beyond_the_last_round_and_none_at_all() -> None:
    far = simulate(regression(rounds=2)).lines[-1]["generalization.stopping_round"]
    assert far == pytest.approx(theory.optimal_stopping(1.0, init=1 / 300).time / 0.05, rel=1e-9)
    never = {"analysis": [{"name": "generalization", "noise": 0.0}]}
    assert simulate(regression(rounds=1, server=never)).lines[-1]["generalization.stopping_round"] is None


@pytest.mark.parametrize(
    ("tables", "key"),
    [
        ({"server": {"estimator": "gns", "defenses": ["median"]}}, "server.defenses[0]"),
        ({"server": {"estimator": "gns", "defenses": ["softmax_cap"]}}, "server.defenses[0]"),
        ({"server": {"estimator": "gns"}, "client": {"epochs": 3}}, "client.epochs"),
        ({"server": {"defenses": ["flwr:FedAvg"], "analysis": ["coherence"]}}, "server.analysis[0]"),
        ({"server": {"analysis": ["generalization"]}}, "model.name"),
        ({"model": "linear", "server": {"analysis": ["generalization"]}}, "server.analysis[0]"),
        (
            {"model": "linear", "server": {"analysis": ["generalization"]}, "client": {"loss": "squared_error"}},
            "server.analysis[0]",
        ),
        ({"server": {"defenses": ["softmax_radius"]}}, "data.root"),
        (
            {"server": {"defenses": ["rm3"], "optimizer": {"name": "sgd", "momentum": 0.9}}},
            "server.optimizer.momentum",
        ),
        ({"server": {"defenses": ["norm_bound", "rm3"], "optimizer": "adam"}}, "server.optimizer.beta_1"),
        ({"server": {"defenses": ["rm3"], "optimizer": {"name": "adagrad", "beta_1": 0.5}}}, "server.optimizer.beta_1"),
        (
            {
                "server": {"estimator": {"name": "dp_gd", "c1": 1.0, "lr": 0.1}, "analysis": ["coherence"]},
                "privacy": {"epsilon": 3.0},
            },
            "server.analysis[0]",
        ),
    ],
)
def test_what_cannot_combine_is_refused(tables: dict[str, Any], key: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        Scenario(**tables)
    assert key in {fault.key for fault in refused.value.faults}


@pytest.mark.parametrize(
    "optimizer", [{"name": "sgd", "lr": 0.5}, {"name": "adam", "beta_1": 0.0}, {"name": "adagrad"}]
)
def test_rm3_takes_a_server_step_without_momentum(optimizer: dict[str, Any]) -> None:
    assert Scenario(server={"defenses": ["rm3"], "optimizer": optimizer}).server.optimizer.name == optimizer["name"]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"optimizer": {"name": "sgd", "lr": 2.5, "weight_decay": 0.5}}, "client.optimizer.weight_decay"),
        ({"clip_norm": 0.01}, "client.clip_norm"),
        ({"proximal": 0.5}, "client.proximal"),
        ({"adapter": "monge_gap"}, "client.adapter"),
    ],
)
def test_the_theory_refuses_what_it_is_not_of(options: dict[str, Any], key: str) -> None:
    client = {"per_round": 5, "batch_size": 1000, "optimizer": {"name": "sgd", "lr": 2.5}} | options
    dataset = {"name": "teacher_student", "inputs": 100, "examples": 100}
    with pytest.raises(ScenarioError) as refused:
        regression(client=client, data={"dataset": dataset, "clients": 5, "root": 20})
    assert {fault.key for fault in refused.value.faults} == {key}


@pytest.mark.parametrize("regularizer", ["hessian_alignment", "fishr", "irm"])
@pytest.mark.parametrize("option", [{"label_smoothing": 0.1}, {"mask_absent": True}])
def test_a_head_gradient_in_closed_form_is_of_the_plain_loss_alone(regularizer: str, option: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match=r"client\.regularizers\[0\]: given .* the plain loss"):
        Scenario(client={"loss": {"name": "cross_entropy", **option}, "regularizers": [regularizer]})


@pytest.mark.parametrize("optimizer", ["normalized_sgd", "spherical_langevin", "even_sgd", "asgd", "langevin"])
def test_steps_that_mind_a_gradients_length_take_no_divided_one(optimizer: str) -> None:
    part = {"name": "hessian_alignment", "form": "sum", "weight": 91257.0, "warmup": 38, "rescale": True}
    with pytest.raises(ScenarioError, match=r"client\.regularizers\[0\]\.rescale"):
        Scenario(client={"optimizer": optimizer, "regularizers": [part]}, server={"optimizer": "adam"})


def test_an_average_without_noise_takes_a_divided_gradient() -> None:
    part = {"name": "hessian_alignment", "weight": 1000.0, "rescale": True}
    client = {"optimizer": {"name": "langevin", "temperature": 0.0}, "regularizers": [part]}
    assert Scenario(client=client, server={"optimizer": "adam"}).client.regularizers


def test_a_model_too_large_for_a_matrix_is_an_error() -> None:
    with pytest.raises(ScenarioError, match=r"model\.name: given 'mlp'; accepted: .*2000.*it has 4810"):
        build(newton(data={"dataset": "digits", "clients": 5}, model={"name": "mlp", "hidden": [64]}))


@pytest.mark.parametrize("l2", [0.0, L2])
def test_normalised_gradient_steps_need_no_matrix(l2: float, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = {"name": "gns", "curvature": "zero", "l2": l2}
    scenario = newton(data={"dataset": "digits", "clients": 5}, model={"name": "mlp", "hidden": [64]}, rounds=1)
    scenario = scenario.changed(**{"server.estimator": estimator})
    eye = torch.eye
    monkeypatch.setattr(torch, "eye", lambda n, *given, **named: None if n > 2000 else eye(n, *given, **named))
    before, after = simulate(scenario).lines
    assert after["loss"] < before["loss"]


@pytest.mark.parametrize("model", [{"name": "logistic"}, {"name": "mlp", "hidden": [16]}])
def test_chameleon_looks_at_what_a_harmonic_head_is_given(model: dict[str, Any]) -> None:
    def played(weight: float) -> str:
        attack = {"name": "chameleon", "weight": weight, "target": 0}
        scenario = small(
            **{"model": model, "client.loss": "harmonic"},
            adversary={"fraction": 0.3, "attacks": [attack]},
            rounds=2,
        )
        result = simulate(scenario)
        assert not [fault for line in result.lines for fault in line["faults"]]
        return result.digest

    assert (played(1.0) != played(0.0)) == (model["name"] == "mlp"), "in front of a model of one layer are the inputs"
