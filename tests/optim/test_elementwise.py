"""Elementwise optimizers by name."""

from __future__ import annotations

import inspect

import pytest
import torch

from fedsim import registry
from fedsim.errors import ScenarioError
from fedsim.optim.elementwise import REFUSED, Elementwise
from fedsim.scenario import Scenario


def test_every_optimizer_of_torch_is_a_part_or_refused():
    torch_names = {
        name.lower()
        for name, thing in vars(torch.optim).items()
        if inspect.isclass(thing) and issubclass(thing, torch.optim.Optimizer) and thing is not torch.optim.Optimizer
    }
    parts = {name for name in registry.names("optimizer") if issubclass(registry.get("optimizer", name), Elementwise)}
    assert torch_names == parts | set(REFUSED)


@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_the_schedule_scales_the_learning_rate(name):
    part = registry.make("optimizer", name)
    built = part.build([torch.zeros(3, requires_grad=True)], 0.25)
    if name == "gns":
        with pytest.raises(ScenarioError, match=r"client\.lr_schedule: given 'cosine'; accepted: 'constant'"):
            Scenario(client={"optimizer": name, "lr_schedule": "cosine"})
        return
    assert built.param_groups[0]["lr"] == pytest.approx(part.lr * 0.25)


def test_plain_sgd_says_its_rate():
    assert registry.make("optimizer", "sgd", lr=0.5).plain_rate(0.5) == 0.25
    for options in ({"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True}):
        assert registry.make("optimizer", "sgd", **options).plain_rate() is None
    assert registry.make("optimizer", "adam").plain_rate() is None


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "dampening": 0.5}])
def test_nesterov_without_what_it_needs_is_a_fault_of_the_scenario(options):
    optimizer = {"name": "sgd", "nesterov": True, **options}
    with pytest.raises(ScenarioError, match=r"client\.optimizer\.nesterov: given True; accepted: false, or momentum"):
        Scenario(client={"optimizer": optimizer})
    Scenario(client={"optimizer": {**optimizer, "momentum": 0.9, "dampening": 0.0}})


@pytest.mark.parametrize("etas", [[0.0, 1.2], [0.5, 1.0]])
def test_rprop_takes_the_factors_that_torch_takes(etas):
    with pytest.raises(ScenarioError, match=r"client\.optimizer\.etas"):
        Scenario(client={"optimizer": {"name": "rprop", "etas": etas}})


def test_rmsprop_takes_no_variance_of_one_gradient():
    part = {"name": "rmsprop", "alpha": 0.0}
    with pytest.raises(ScenarioError, match=r"client\.optimizer\.alpha: given 0\.0; accepted: above 0 with centered"):
        Scenario(client={"optimizer": {**part, "centered": True}})
    Scenario(client={"optimizer": part})
