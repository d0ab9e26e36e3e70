"""SAM-GS: similarity, both branches, partial participation, the two-objective toy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.errors import FedsimError
from fedsim.optim.sam_gs import SamGS, State, similarity, surgery

STARTS = [[-8.0, 5.0], [-3.0, 7.5], [0.0, 10.0], [3.0, 7.5], [8.0, 5.0], [-10.0, -3.0], [10.0, -3.0]]
LOWER = 5e-6


def toy(x):
    """The two objectives of CAGrad's and Nash-MTL's toy."""
    x1, x2 = x[..., 0], x[..., 1]
    f1 = (0.5 * (-x1 - 7) - torch.tanh(-x2)).abs().clamp(min=LOWER).log() + 6
    f2 = (0.5 * (-x1 + 3) + torch.tanh(-x2) + 2).abs().clamp(min=LOWER).log() + 6
    up, down = torch.tanh(x2 * 0.5).clamp(min=0), torch.tanh(-x2 * 0.5).clamp(min=0)
    bowl1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    bowl2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    return torch.stack([f1 * up + bowl1 * down, f2 * up + bowl2 * down])


def arrived(x):
    """Which of the (n, 2) points are at the middle of the Pareto front, (0, -8.34)."""
    return (torch.as_tensor(x) - torch.tensor([0.0, -8.34])).abs().amax(1) < 0.1


def test_one_start_comes_near_the_middle_of_the_pareto_front():
    x = nn.Parameter(torch.tensor(STARTS[6], dtype=torch.float64))
    optimizer = SamGS([x], lr=0.3, gamma=0.1, rescale=True)
    for _ in range(200):
        optimizer.step(lambda: toy(x))
    assert abs(x[0].item()) < 0.1
    assert x[1].item() < -7.5


@pytest.mark.slow
def test_seven_of_seven_starts_where_adam_on_the_sum_has_three():
    ends = []
    for start in STARTS:
        x = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        optimizer = SamGS([x], lr=0.1, gamma=0.1, rescale=True)
        for _ in range(10_000):
            optimizer.step(lambda x=x: toy(x))
            if arrived(x.detach()[None]).all():
                break
        ends.append(x.detach())
    assert arrived(torch.stack(ends)).sum() == 7
    together = nn.Parameter(torch.tensor(STARTS, dtype=torch.float64))
    adam = torch.optim.Adam([together], lr=1e-3)
    for _ in range(35_000):
        adam.zero_grad()
        toy(together).sum().backward()
        adam.step()
    assert arrived(together.detach()).sum() == 3


def psi(a, b):
    return 2 * a * b / (a * a + b * b)


def test_similarity_is_the_mean_over_pairs():
    rows = torch.diag(torch.tensor([1.0, 2.0, 5.0]))
    pairs = [psi(1, 2), psi(1, 5), psi(2, 5)]
    assert similarity(rows) == pytest.approx(sum(pairs) / 3)
    assert similarity(rows, "all") == pytest.approx((2 * sum(pairs) + 3) / 9)
    assert similarity(7 * rows) == pytest.approx(similarity(rows))
    assert similarity(rows[[2, 0, 1]]) == pytest.approx(similarity(rows))


def test_with_two_tasks_the_papers_similarity_never_falls_below_a_half():
    rows = torch.tensor([[1e-4, 0.0], [0.0, 1e4]])
    assert similarity(rows) < 1e-6
    assert similarity(rows, "all") >= 0.5
    assert surgery(rows, State.fresh(2, 2), gamma=0.5).equalised
    assert not surgery(rows, State.fresh(2, 2), gamma=0.5, pairs="all").equalised


def test_unlike_gradients_are_equalised():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.01]])
    found = surgery(rows, State.fresh(2, 2), gamma=0.1)
    assert found.equalised
    torch.testing.assert_close(found.gradient, (5.01 / 2) * torch.tensor([0.6, 0.8 + 1.0]))


def test_like_gradients_are_modulated_by_their_momentum():
    beta1, beta2, eps = 0.8, 0.95, 1e-3
    rows = np.random.default_rng(0).normal(size=(6, 3, 4))
    m, h, state = np.zeros((3, 4)), 0.0, State.fresh(3, 4, torch.float64)
    for t, g in enumerate(rows, start=1):
        found = surgery(torch.tensor(g), state, betas=(beta1, beta2), gamma=0.0, eps=eps)
        norms = np.linalg.norm(g, axis=1)
        mean = np.mean([psi(norms[i], norms[j]) for i in range(3) for j in range(i + 1, 3)])
        m, h = beta1 * m + (1 - beta1) * g, beta2 * h + (1 - beta2) * (1 - mean) ** 2 + eps
        weights = np.abs(m / (1 - beta1**t)) / (math.sqrt(h / (1 - beta2**t)) + eps)
        np.testing.assert_allclose(found.gradient, (weights * g).sum(0), rtol=1e-10)


def test_the_momentum_branch_is_quadratic_in_scale_and_rescaled_it_is_not():
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for rescale, power in ((False, 100.0), (True, 10.0)):
        small, large = (
            surgery(scale * rows, State.fresh(3, 5, torch.float64), gamma=0.0, rescale=rescale).gradient
            for scale in (1.0, 10.0)
        )
        torch.testing.assert_close(large, power * small)
    torch.testing.assert_close(large.norm(), 10 * rows.sum(0).norm())


@pytest.mark.parametrize("gamma", [0.1, 1.1])
def test_equal_and_opposite_gradients_are_a_saddle(gamma):
    """A limit of the method, to be kept: neither branch leaves such a point."""
    g = torch.randn(4, generator=torch.Generator().manual_seed(2))
    state = State.fresh(2, 4)
    for _ in range(3):
        assert not surgery(torch.stack([g, -g]), state, gamma=gamma).gradient.any()


@pytest.mark.parametrize("gamma", [0.0, 0.9])
@pytest.mark.parametrize("rescale", [True, False])
def test_zero_gradients_are_no_danger(gamma, rescale):
    one = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    for rows in (one, torch.zeros(2, 2)):
        found = surgery(rows, State.fresh(2, 2), gamma=gamma, rescale=rescale)
        assert found.gradient.isfinite().all()
    assert surgery(one, State.fresh(2, 2), gamma=0.9).equalised


def test_tasks_that_do_not_take_part_keep_momentum_and_count():
    generator = torch.Generator().manual_seed(3)
    state = State.fresh(4, 6, torch.float64)
    for tasks in ([0, 2], [2, 3], [2]):
        surgery(torch.randn(len(tasks), 6, generator=generator, dtype=torch.float64), state, tasks=tasks, gamma=0.0)
    assert state.counts.tolist() == [1, 0, 3, 1]
    assert int(state.steps) == 3
    assert not state.momentum[1].any()
    g = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    first = surgery(g, state, tasks=[1], gamma=0.0).gradient
    spread = math.sqrt(float(state.spread) / (1 - 0.99**4)) + 1e-8
    torch.testing.assert_close(first, (g[0].abs() / spread) * g[0])


def test_gradients_and_tasks_have_to_fit():
    with pytest.raises(FedsimError, match="2 gradients"):
        surgery(torch.ones(2, 3), State.fresh(3, 3))


def two_losses(model):
    inputs = torch.linspace(-1, 1, 12).view(4, 3)
    out = model(inputs)
    return out[:, 0].square().mean(), (out[:, 1] - 1).square().mean()


def test_the_optimizer_descends_along_what_surgery_gives():
    torch.manual_seed(4)
    model = nn.Linear(3, 2)
    before = torch.cat([each.detach().reshape(-1) for each in model.parameters()])
    rows = []
    for i in range(2):
        found = torch.autograd.grad(two_losses(model)[i], list(model.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    optimizer = SamGS(model.parameters(), lr=0.2, gamma=0.3)
    losses = optimizer.step(lambda: two_losses(model))
    after = torch.cat([each.detach().reshape(-1) for each in model.parameters()])
    wanted = surgery(torch.stack(rows), State.fresh(2, 8), gamma=0.3).gradient
    torch.testing.assert_close(after, before - 0.2 * wanted)
    assert len(losses) == 2


def test_adam_may_follow_and_the_state_goes_through_a_state_dict():
    torch.manual_seed(5)
    models = [nn.Linear(3, 2)]
    rules = [SamGS(models[0].parameters(), lr=0.05)]
    adam = torch.optim.Adam(models[0].parameters(), lr=0.05)
    start = sum(two_losses(models[0])).item()
    for _ in range(40):
        rules[0].backward(two_losses(models[0]))
        adam.step()
    assert sum(two_losses(models[0])).item() < start
    models.append(copy.deepcopy(models[0]))
    rules.append(SamGS(models[1].parameters()))
    rules[1].load_state_dict(copy.deepcopy(rules[0].state_dict()))
    for model, rule in zip(models, rules, strict=True):
        for _ in range(3):
            rule.step(lambda model=model: two_losses(model))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(FedsimError, match="losses"):
        rules[0].backward([two_losses(models[0])[0]])
