"""Gradient inversion: its pieces by hand and against torch's SGD, and what it rebuilds with and without noise."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from fedsim.observers.inversion import (
    Steps,
    inferred_labels,
    local_change,
    matched,
    misfit,
    psnr,
    total_variation,
)
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.updates import Layout

SETTINGS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01},
    {"momentum": 0.8, "nesterov": True},
    {"proximal": 0.5},
    {"clip_norm": 0.1},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: "-".join(each) or "plain")
def test_simulated_steps_are_torchs(setting: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    layout = Layout.of(model)
    start = layout.flatten(dict(model.named_parameters()), torch.float64)
    inputs = torch.rand(3, 6, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1])
    steps = Steps([2, 1, 2, 1], 3, lr=0.2, **setting)
    found = local_change(
        lambda vector, x: functional_call(model, layout.views(vector), (x,)),
        functional.cross_entropy,
        start,
        layout.d,
        inputs,
        labels,
        steps,
    )
    trained = copy.deepcopy(model)
    sgd = {name: value for name, value in setting.items() if name not in ("proximal", "clip_norm")}
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.2, **sgd)
    for rows in ([0, 1], [2], [0, 1], [2]):
        optimizer.zero_grad()
        loss = functional.cross_entropy(trained(inputs[rows]), labels[rows])
        for now, before in zip(trained.parameters(), model.parameters(), strict=True):
            loss = loss + setting.get("proximal", 0.0) / 2 * (now - before.detach()).square().sum()
        loss.backward()
        if "clip_norm" in setting:
            torch.nn.utils.clip_grad_norm_(trained.parameters(), setting["clip_norm"])
        optimizer.step()
    expected = layout.flatten(dict(trained.named_parameters()), torch.float64) - start
    torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=1e-12)


def test_the_rate_is_how_far_a_constant_gradient_goes() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    for options in ({}, {"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.9, "nesterov": True}):
        with torch.no_grad():
            parameter.zero_()
        optimizer = torch.optim.SGD([parameter], lr=0.1, **options)
        for _ in range(4):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        assert Steps([1] * 4, 4, lr=0.1, **options).rate == pytest.approx(-float(parameter.detach()))


def test_one_label_is_where_the_gradient_is_negative_and_several_are_counted() -> None:
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 1, 1, 0, 3])
    probabilities = logits.softmax(1)
    gradient = (probabilities - functional.one_hot(labels, 4)).mean(0)
    assert inferred_labels(gradient, 5, probabilities.mean(0)).tolist() == [0, 1, 1, 3, 3]
    single = probabilities[0] - functional.one_hot(labels[0], 4)
    assert inferred_labels(7.5 * single, 1, probabilities[0]).tolist() == [3]


def test_the_best_assignment_is_the_best_of_all() -> None:
    draw = np.random.default_rng(0)
    truth, found = draw.random((4, 3)), draw.random((4, 3))
    _, order, errors = matched(truth, found)
    each = [((truth - found[list(p)]) ** 2).mean() for p in itertools.permutations(range(4))]
    assert errors.mean() == pytest.approx(min(each))
    assert ((truth - found[order]) ** 2).mean() == pytest.approx(min(each))
    rows, columns, _ = matched(truth, truth[[2, 0]])
    assert rows.tolist() == [0, 2]
    assert columns.tolist() == [1, 0]


def test_measures_by_hand() -> None:
    image = torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]])
    assert float(total_variation(image)) == pytest.approx((0 + 2) / 2 + (1 + 3) / 2)
    assert float(total_variation(torch.ones(2, 5))) == 0
    assert psnr(0.01, 1.0) == pytest.approx(20.0)
    assert psnr(0.04, 2.0) == pytest.approx(20.0)
    assert psnr(0.0, 1.0) == 100.0
    assert float(misfit(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]))) == pytest.approx(0)
    assert float(misfit(torch.zeros(2), torch.tensor([2.0, 0.0]))) == 1


def inverted(observer: dict[str, Any] | None = None, **other: Any) -> dict[str, Any]:
    tables: dict[str, Any] = {
        "rounds": 1,
        "seed": 3,
        "data": {"dataset": "digits", "clients": 40},
        "model": {"name": "mlp", "hidden": [64], "activation": "sigmoid"},
        "client": {"per_round": 2, "steps": 1, "batch_size": 1, "optimizer": {"name": "sgd", "lr": 0.1}},
        "observe": {"observers": [{"name": "gradient_inversion", "iterations": 400, **(observer or {})}]},
    }
    (found,) = simulate(Scenario(**{**tables, **other})).observations
    return found


def test_one_image_is_rebuilt_from_its_gradient() -> None:
    found = inverted()
    assert found["psnr"] > 30
    assert found["psnr_blind"] < 20
    assert found["labels_right"] == 1
    assert found["epsilon"] is None


def test_noise_keeps_it_from_being_rebuilt() -> None:
    client = {"per_round": 2, "steps": 1, "batch_size": 4, "optimizer": {"name": "dp_sgd", "lr": 0.1}}
    clipped = inverted(client=client, privacy={"epsilon": "inf", "trust": "local"})
    private = inverted(client=client, privacy={"epsilon": 4.0, "trust": "local"})
    assert clipped["psnr"] > 25
    assert private["psnr"] < private["psnr_blind"]
    assert private["epsilon"] <= 4.0


def test_several_images_and_several_steps() -> None:
    client = {"per_round": 2, "steps": 2, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.1}}
    found = inverted({"labels": "known", "restarts": 1}, client=client)
    assert (found["images"], found["steps"]) == (4, 2)
    assert found["psnr"] > found["psnr_blind"]


def test_a_private_servers_observer_has_the_aggregate_alone() -> None:
    tables = {
        "data": {"dataset": "digits", "clients": 2, "holdout": 0.99},
        "client": {"per_round": 2},
        "server": {"estimator": {"name": "dp_gd", "c1": 10.0, "lr": 0.5}},
    }
    found = inverted({"images": 64}, privacy={"epsilon": "inf", "trust": "central"}, **tables)
    assert found["sees"] == "the global models"
    assert found["clients"] == [0, 1]


BEHIND_AN_ESTIMATOR = {"estimator": {"name": "diff2", "restart": 1, "c1": 10.0, "c2": 10.0, "lr": 0.05}}
AGGREGATES: dict[str, dict[str, Any]] = {
    "sum, diff2": {"server": BEHIND_AN_ESTIMATOR, "privacy": {"epsilon": "inf", "trust": "distributed"}},
    "models, diff2": {"server": BEHIND_AN_ESTIMATOR, "privacy": {"epsilon": "inf", "trust": "central"}},
    "models, training": {"server": {"optimizer": {"name": "sgd", "lr": 0.3}}},
}


@pytest.mark.parametrize("name", AGGREGATES)
def test_labels_of_an_aggregate_are_counted_whatever_the_learning_rates(name: str) -> None:
    tables = AGGREGATES[name]
    training = {"steps": 1, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.05}}
    found = inverted(
        {"images": 64, "iterations": 8, "standpoint": "server" if "privacy" in tables else "client"},
        data={"dataset": "digits", "clients": 2, "holdout": 0.99},
        client={"per_round": 2, **({} if "diff2" in name else training)},
        **tables,
    )
    assert found["sees"] == ("the sum of the clients' messages" if "sum" in name else "the global models")
    assert found["images"] > 8
    assert found["labels_right"] == 1


SCHEDULED: dict[str, dict[str, Any]] = {"a client's message": {}, "models alone": {"standpoint": "client"}}


@pytest.mark.parametrize("name", SCHEDULED)
def test_labels_are_counted_whatever_the_schedule(name: str) -> None:
    found = inverted(
        {"images": 64, "iterations": 8, "round": 4, **SCHEDULED[name]},
        rounds=4,
        data={"dataset": "digits", "clients": 2, "holdout": 0.98},
        client={
            "per_round": 2,
            "steps": 1,
            "batch_size": 64,
            "optimizer": {"name": "sgd", "lr": 0.05},
            "lr_schedule": {"name": "exponential", "gamma": 0.3},
        },
    )
    models = found["sees"] == "the global models"
    assert models == (name == "models alone")
    assert (found["round"], found["labels_right"]) == (4, 1)
    assert found["images"] > 8
