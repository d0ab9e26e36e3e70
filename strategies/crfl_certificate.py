"""CRFL's certificate: how large a backdoor's change of an image may be without changing the smoothed model's answer.

With p_A the smallest probability of the class that most noisy copies name, p_B the largest of any other (Hoeffding's
bounds at level α over M copies), R attackers that poison a share q/n of each batch in round t_adv, scale their updates
by γ and carry weight p in the mean, local steps τ at learning rate η, and the bounds ρ_t of the model's norm:

    RAD = √( −ln(1 − (√p_A − √p_B)²) · σ² / (2·R·L_Z²·Σ_i (p_i·γ·τ·η·q/n)² · Π_{t = t_adv+1}^{T} (2Φ(ρ_t/σ) − 1)) )

No backdoor with ‖δ‖₂ < RAD in that one round changes what the copies of the final model name; later rounds forget it by
the factors of the product. L_Z = √(2 + 2ρ + ρ²), ρ the bound of round t_adv, is that of multi-class logistic regression
on inputs of norm 1 at most: of another model it must be given, or the number certifies nothing. The theorem further
asks for convex losses and η ≤ 1/β, β their smoothness.

Xie et al., "CRFL: Certifiably Robust Federated Learning against Backdoor Attacks", ICML 2021, arXiv 2106.08283, theorem
on the certified radius and algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.special import ndtr

from strategies.crfl import CRFL


@dataclass(frozen=True)
class Threat:
    """The one-round backdoor against which is certified.

    Args:
        round: t_adv, from 1.
        weights: p_i, each attacker's share of the mean.
        poisoned: q/n, share of an attacker's batch that is poisoned.
        steps: τ, local steps in the round.
        lr: η, the clients' learning rate.
        scale: γ, by which attackers scale their updates.
    """

    round: int
    weights: Sequence[float] = field(default=(0.1,))
    poisoned: float = 0.05
    steps: int = 10
    lr: float = 0.01
    scale: float = 1.0


def logistic_lipschitz(radius: float) -> float:
    """L_Z of multi-class logistic regression with a weight norm of at most ``radius``, inputs of norm 1 at most."""
    return math.sqrt(2 + 2 * radius + radius**2)


def bounds(counts: Tensor, alpha: float = 0.001) -> tuple[Tensor, Tensor]:
    """(m,) p_A and p_B from :func:`strategies.crfl.votes`, (m, classes): Hoeffding's at level α each."""
    copies = counts.sum(dim=1).double()
    top = counts.double().topk(2, dim=1).values / copies[:, None]
    slack = (math.log(1 / alpha) / (2 * copies)).sqrt()
    return (top[:, 0] - slack).clamp(min=0), (top[:, 1] + slack).clamp(max=1)


def certified_radius(
    counts: Tensor, defense: CRFL, threat: Threat, rounds: int, *, alpha: float = 0.001, lipschitz: float | None = None
) -> Tensor:
    """(m,) RAD of each input; 0 where nothing is certified.

    Args:
        counts: (m, classes) votes of the final model's noisy copies.
        defense: its bounds and its noise.
        threat: what is certified against.
        rounds: T, rounds in all; those after the attack forget it.
        alpha: α, error of each of the two bounds.
        lipschitz: L_Z; that of logistic regression if absent.
    """
    if not 1 <= threat.round <= rounds:
        raise ValueError(f"threat.round: given {threat.round}; accepted: 1 to {rounds}")
    above, below = bounds(counts, alpha)
    gap = (above.sqrt() - below.sqrt()).clamp(min=0)
    later = torch.arange(threat.round + 1, rounds + 1, dtype=torch.float64)
    sigma = defense.noise
    if sigma == 0:
        return torch.zeros_like(gap)
    kept = float((2 * ndtr((defense.radius + defense.growth * later) / sigma) - 1).prod())
    constant = (
        lipschitz if lipschitz is not None else logistic_lipschitz(defense.radius + defense.growth * threat.round)
    )
    reach = sum((p * threat.scale * threat.steps * threat.lr * threat.poisoned) ** 2 for p in threat.weights)
    squared = -torch.log1p(-gap.square()) * sigma**2 / (2 * len(threat.weights) * constant**2 * reach * kept)
    return squared.sqrt()
