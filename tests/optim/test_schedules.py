"""Learning-rate schedules against torch's, and by hand."""

from __future__ import annotations

import pytest
import torch

from fedsim import registry

ROUNDS = 12


def by_torch(make):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, rates = make(optimizer), []
    for _ in range(ROUNDS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("name", "options", "make"),
    [
        ("constant", {}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
        ("exponential", {"gamma": 0.8}, lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.8)),
        ("step", {"every": 4, "gamma": 0.5}, lambda o: torch.optim.lr_scheduler.StepLR(o, 4, 0.5)),
        ("cosine", {"floor": 0.1}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, ROUNDS - 1, 0.1)),
        ("warmup", {"warmup": 4}, lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.25, 1.0, 3)),
    ],
)
def test_equals_torch(name, options, make):
    schedule = registry.make("lr_schedule", name, **options)
    assert [schedule.factor(r, ROUNDS) for r in range(1, ROUNDS + 1)] == pytest.approx(by_torch(make))


@pytest.mark.parametrize("name", registry.names("lr_schedule"))
def test_factors_are_in_range_for_one_round_and_beyond_the_last(name):
    schedule = registry.make("lr_schedule", name)
    for round, rounds in ((1, 1), (1, 10), (10, 10), (15, 10)):
        assert 0.0 <= schedule.factor(round, rounds) <= 1.0
