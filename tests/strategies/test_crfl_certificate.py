"""CRFL's certified radius against the paper's formula, and its Lipschitz constant against gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch

from fedsim.registry import make
from strategies.crfl import votes
from strategies.crfl_certificate import Threat, bounds, certified_radius, logistic_lipschitz

COUNTS = torch.tensor([[990, 6, 4], [600, 390, 10], [500, 500, 0], [0, 3, 997]])
THREAT = Threat(round=4, weights=(0.05, 0.1), poisoned=0.2, steps=6, lr=0.01, scale=3.0)
SOUND = {"radius": 2.0, "growth": 0.1, "noise": 1.5}


def by_hand(counts, threat, rounds, alpha, radius, growth, noise):
    copies = sum(counts)
    first, second = sorted((count / copies for count in counts), reverse=True)[:2]
    slack = math.sqrt(math.log(1 / alpha) / (2 * copies))
    above, below = first - slack, second + slack
    if above <= below:
        return 0.0
    product = 1.0
    for t in range(threat.round + 1, rounds + 1):
        product *= 2 * NormalDist().cdf((radius + growth * t) / noise) - 1
    rho = radius + growth * threat.round
    total = sum((p * threat.scale * threat.steps * threat.lr * threat.poisoned) ** 2 for p in threat.weights)
    top = -math.log(1 - (math.sqrt(above) - math.sqrt(below)) ** 2) * noise**2
    return math.sqrt(top / (2 * len(threat.weights) * (2 + 2 * rho + rho**2) * total * product))


@pytest.mark.parametrize("rounds", [4, 5, 20])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_radius_is_the_papers(rounds, alpha):
    found = certified_radius(COUNTS, make("defense", "crfl", **SOUND), THREAT, rounds, alpha=alpha)
    expected = [by_hand(row, THREAT, rounds, alpha, **SOUND) for row in COUNTS.tolist()]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    assert found[2] == 0
    assert found[0] > found[1] > 0


def test_what_makes_the_radius_larger_and_smaller():
    part = make("defense", "crfl", **SOUND)
    plain = certified_radius(COUNTS, part, THREAT, 10)[0]
    assert certified_radius(COUNTS, part, THREAT, 20)[0] > plain
    assert certified_radius(COUNTS, make("defense", "crfl", **SOUND | {"noise": 3.0}), THREAT, 10)[0] > plain
    assert certified_radius(COUNTS, part, replace(THREAT, scale=6.0), 10)[0].item() == pytest.approx(plain.item() / 2)
    assert certified_radius(COUNTS, part, replace(THREAT, round=5), 10)[0] < plain
    assert certified_radius(COUNTS * 10, part, THREAT, 10)[0] > plain
    assert certified_radius(COUNTS, make("defense", "crfl", **SOUND | {"noise": 0.0}), THREAT, 10).tolist() == [0] * 4
    with pytest.raises(ValueError, match="given 4; accepted: 1 to 3"):
        certified_radius(COUNTS, part, THREAT, 3)


def test_hoeffdings_bounds_hold_in_all_but_alpha_of_the_cases():
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([0.6, 0.3, 0.1])
    drawn = torch.multinomial(truth.expand(2000, 3), 200, replacement=True, generator=generator)
    above, below = bounds(torch.nn.functional.one_hot(drawn, 3).sum(dim=1), alpha=0.05)
    assert float((above <= 0.6).double().mean()) >= 0.95
    assert float((below >= 0.3).double().mean()) >= 0.95


def test_the_constant_bounds_how_gradients_change_with_the_input():
    generator = torch.Generator().manual_seed(1)
    for rho in (0.5, 3.0, 10.0):
        for _ in range(200):
            weights = torch.randn(3, 5, generator=generator, dtype=torch.float64)
            weights *= rho / weights.norm()
            pair = torch.randn(2, 5, generator=generator, dtype=torch.float64)
            pair /= pair.norm(dim=1, keepdim=True).clamp(min=1)
            errors = (pair @ weights.T).softmax(dim=1) - torch.eye(3, dtype=torch.float64)[0]
            gradients = errors[:, :, None] * pair[:, None, :]
            moved = float((gradients[0] - gradients[1]).norm())
            assert moved <= logistic_lipschitz(rho) * float((pair[0] - pair[1]).norm()) * (1 + 1e-9)


def test_from_votes_to_radius():
    def predict(vector, given):
        return torch.cat([given * vector[0], vector[1].expand_as(given)], dim=1)

    counts = votes(predict, torch.tensor([9.0, 0.0]), torch.tensor([[3.0], [0.0]]), noise=1.0, copies=500)
    sure, unsure = certified_radius(counts, make("defense", "crfl", **SOUND), THREAT, 10).tolist()
    assert sure > unsure
    assert unsure == 0
