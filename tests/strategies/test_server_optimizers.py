"""Server optimizers against their formulas in NumPy and against torch's own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fedsim.registry import make, names

ROUNDS = 6


def play(part, start, updates, state=None):
    state = {} if state is None else state
    parameters, path = start, []
    for number, update in enumerate(updates, start=1):
        parameters = part.step(parameters, update, state, number)
        path.append(parameters)
    return path


def problem(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(9, generator=generator, dtype=torch.float64)
    updates = torch.randn(ROUNDS, 9, generator=generator, dtype=torch.float64) * 0.1
    return start.to(dtype), updates.to(dtype)


def test_sgd_with_rate_one_adds_the_update():
    start, updates = problem(torch.float32)
    assert torch.equal(make("server_optimizer", "sgd").step(start, updates[0], {}, 1), start + updates[0])


@pytest.mark.parametrize(("lr", "momentum"), [(0.5, 0.0), (0.3, 0.9), (1.0, 0.5)])
def test_sgd_is_torch_sgd_on_the_negative_update(lr, momentum):
    start, updates = problem()
    parameter = torch.nn.Parameter(start.clone())
    torch_sgd = torch.optim.SGD([parameter], lr=lr, momentum=momentum)
    for got, update in zip(
        play(make("server_optimizer", "sgd", lr=lr, momentum=momentum), start, updates), updates, strict=True
    ):
        parameter.grad = -update
        torch_sgd.step()
        np.testing.assert_allclose(got, parameter.detach(), rtol=1e-12)


def second_moment(name, v, square, beta_2):
    return {
        "adagrad": v + square,
        "adam": beta_2 * v + (1 - beta_2) * square,
        "yogi": v - (1 - beta_2) * square * np.sign(v - square),
    }[name]


@pytest.mark.parametrize("beta_1", [0.0, 0.9])
@pytest.mark.parametrize("name", ["adagrad", "adam", "yogi"])
def test_the_adaptive_ones_follow_the_paper(name, beta_1):
    start, updates = problem(seed=1)
    options = {} if name == "adagrad" else {"beta_2": 0.95}
    part = make("server_optimizer", name, lr=0.03, beta_1=beta_1, tau=0.01, **options)
    x, m, v = start.numpy().copy(), np.zeros(9), np.full(9, 0.01**2)
    for got, update in zip(play(part, start, updates), updates.numpy(), strict=True):
        m = beta_1 * m + (1 - beta_1) * update
        v = second_moment(name, v, update**2, 0.95)
        x = x + 0.03 * m / (np.sqrt(v) + 0.01)
        np.testing.assert_allclose(got, x, rtol=1e-12)


def test_adam_with_bias_correction_is_torch_adam_on_the_negative_update():
    start, updates = problem(seed=2)
    parameter = torch.nn.Parameter(start.clone())
    torch_adam = torch.optim.Adam([parameter], lr=0.03, betas=(0.9, 0.999), eps=1e-5)
    part = make("server_optimizer", "adam", lr=0.03, beta_2=0.999, tau=1e-5, bias_correction=True)
    for got, update in zip(play(part, start, updates), updates, strict=True):
        parameter.grad = -update
        torch_adam.step()
        np.testing.assert_allclose(got, parameter.detach(), rtol=1e-12)


@pytest.mark.parametrize("name", names("server_optimizer"))
def test_conforms(name):
    part = make("server_optimizer", name)
    start, updates = problem(torch.float32)
    kept = start.clone(), updates.clone()
    state = {}
    path = play(part, start, updates, state)
    assert torch.equal(start, kept[0])
    assert torch.equal(updates, kept[1])
    assert all(step.dtype == torch.float32 and step.shape == start.shape for step in path)
    assert all(bool(step.isfinite().all()) for step in path)
    assert all(isinstance(value, (torch.Tensor, int, float, str)) for value in state.values())

    half = {}
    middle = play(part, start, updates[:3], half)[-1]
    resumed = play(make("server_optimizer", name), middle, updates[3:], copy.deepcopy(half))
    assert torch.equal(resumed[-1], path[-1])


@pytest.mark.parametrize("name", names("server_optimizer"))
def test_a_preview_on_a_copied_state_changes_nothing(name):
    part = make("server_optimizer", name)
    start, updates = problem(torch.float32)
    state = {}
    play(part, start, updates[:2], state)
    before = copy.deepcopy(state)
    part.step(start, updates[2], dict(state), 3)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in before)


@pytest.mark.parametrize("name", ["adagrad", "adam", "yogi"])
def test_no_update_no_step(name):
    start, _ = problem(torch.float32)
    assert torch.equal(make("server_optimizer", name).step(start, torch.zeros(9), {}, 1), start)
