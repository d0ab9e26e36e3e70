"""Entropic optimal transport between two samples, and the Sinkhorn divergence.

    W_ε(μ, ν) = min_P ⟨P, C⟩ − ε H(P),  H(P) = −Σ P log P,    over P with marginals 1/n and 1/m
    S_ε(μ, ν) = W_ε(μ, ν) − ½ W_ε(μ, μ) − ½ W_ε(ν, ν)

W_ε is biased: of a sample against itself it is about −ε log n. S_ε is not, it is 0 there. The value is the dual one,
Σ f/n + Σ g/m, which is off by the square of what the iteration still lacks; the gradient is that of the envelope, the
plan P held fixed: no iteration is unrolled.

Cuturi, NeurIPS 2013, arXiv 1306.0895; Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn
divergences", AISTATS 2019, arXiv 1810.08278.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from fedsim.errors import FedsimError, nearest

CostName = Literal["squared_euclidean", "euclidean", "manhattan", "cosine"]
Cost = CostName | Callable[[Tensor, Tensor], Tensor]
"""A name, or a function of points (…, d) and (…, d), broadcast against each other, to costs (…)."""

ABSORB = 20
"""Scalings between two returns to potentials."""


def pair_costs(x: Tensor, y: Tensor, cost: Cost = "squared_euclidean") -> Tensor:
    """c(x, y) of points that broadcast against each other: (…, d), (…, d) → (…).

    Args:
        x: points.
        y: points.
        cost: ``squared_euclidean`` |x − y|², ``euclidean``, ``manhattan``, ``cosine`` 1 − cos(x, y), or a function.
    """
    if not isinstance(cost, str):
        return cost(x, y)
    if cost == "squared_euclidean":
        return (x - y).square().sum(-1)
    if cost == "euclidean":
        squares = (x - y).square().sum(-1)
        return torch.where(squares == 0, 0.0, torch.where(squares == 0, 1.0, squares).sqrt())
    if cost == "manhattan":
        return (x - y).abs().sum(-1)
    if cost == "cosine":
        return 1 - torch.nn.functional.cosine_similarity(x, y, dim=-1)
    known = get_args(CostName)
    raise FedsimError(f"cost: given {cost!r}; accepted: {', '.join(known)}, or a function{nearest(cost, known)}")


def cost_matrix(x: Tensor, y: Tensor, cost: Cost = "squared_euclidean") -> Tensor:
    """(n, m) costs between all points of x (n, d) and y (m, d)."""
    return pair_costs(x[:, None], y[None], cost)


def default_epsilon(costs: Tensor) -> float:
    """ε = 0.05 · std of the costs; a constant, no gradient flows through it."""
    spread = 0.05 * float(costs.detach().double().std(correction=0))
    return spread if spread > 0 else 1.0


def entropic_cost(costs: Tensor, epsilon: float, *, tolerance: float = 1e-5, max_iterations: int = 5000) -> Tensor:
    """W_ε of uniform weights, a scalar; differentiable in the costs.

    Args:
        costs: (n, m).
        epsilon: ε, in units of the cost.
        tolerance: L1 error of the marginals at which the iteration ends.
        max_iterations: after these it ends in any case.

    Raises:
        FedsimError: ε is not above 0; after ``max_iterations`` the marginals are off by more than 1 %.
    """
    if not epsilon > 0:
        raise FedsimError(f"epsilon: given {epsilon}; accepted: above 0")
    n, m = costs.shape
    fixed = costs.detach().double()
    g = torch.zeros(m, dtype=fixed.dtype, device=fixed.device)
    error, done = float("inf"), 0
    while error > tolerance and done < max_iterations:
        f, g = _update(fixed, g, epsilon)
        kernel = torch.exp((f[:, None] + g - fixed) / epsilon)
        u, v = torch.ones_like(f), torch.ones_like(g)
        for _ in range(ABSORB):
            u = 1 / (n * (kernel @ v))
            v = 1 / (m * (u @ kernel))
        if bool(u.isfinite().all() & v.isfinite().all()):
            f, g = f + epsilon * u.log(), g + epsilon * v.log()
        plan = torch.exp((f[:, None] + g - fixed) / epsilon)
        error = float((plan.sum(1) - 1 / n).abs().sum())
        done += ABSORB + 1
    return _enveloped(costs, plan, f.mean() + g.mean(), error, done)


def entropic_self_cost(costs: Tensor, epsilon: float, *, tolerance: float = 1e-5, max_iterations: int = 5000) -> Tensor:
    """W_ε of a sample against itself, a scalar: one potential, by the averaged iteration, which takes a few steps.

    Args:
        costs: (n, n), symmetric.
        epsilon: ε, in units of the cost.
        tolerance: L1 error of the marginals at which the iteration ends.
        max_iterations: after these it ends in any case.

    Raises:
        FedsimError: as of :func:`entropic_cost`.
    """
    if not epsilon > 0:
        raise FedsimError(f"epsilon: given {epsilon}; accepted: above 0")
    n = len(costs)
    fixed = costs.detach().double()
    f = torch.zeros(n, dtype=fixed.dtype, device=fixed.device)
    error, done = float("inf"), 0
    while error > tolerance and done < max_iterations:
        f = (f + _soft_minimum(fixed, f, epsilon)) / 2
        plan = torch.exp((f[:, None] + f - fixed) / epsilon)
        error = float((plan.sum(1) - 1 / n).abs().sum())
        done += 1
    return _enveloped(costs, plan, 2 * f.mean(), error, done)


def sinkhorn_divergence(
    source: Tensor, target: Tensor, *, cost: Cost = "squared_euclidean", epsilon: float | None = None
) -> Tensor:
    """S_ε between two samples, a scalar; differentiable in both.

    Args:
        source: (n, d).
        target: (m, d).
        cost: as of :func:`pair_costs`.
        epsilon: ε; by default 0.05 · std of the costs between the two samples.

    Raises:
        FedsimError: as of :func:`entropic_cost`.
    """
    between = cost_matrix(source, target, cost)
    epsilon = default_epsilon(between) if epsilon is None else epsilon
    within = [entropic_self_cost(cost_matrix(each, each, cost), epsilon) for each in (source, target)]
    return entropic_cost(between, epsilon) - (within[0] + within[1]) / 2


def _update(costs: Tensor, g: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Both potentials, from the second one, in the log domain."""
    f = _soft_minimum(costs, g, epsilon)
    return f, _soft_minimum(costs.T, f, epsilon)


def _soft_minimum(costs: Tensor, g: Tensor, epsilon: float) -> Tensor:
    """The f for which every row of the plan sums to 1/n."""
    exponents = (g - costs) / epsilon
    largest = exponents.amax(1, keepdim=True)
    sums = (exponents - largest).exp().sum(1).log() + largest.squeeze(1)
    return -epsilon * (sums + torch.log(torch.tensor(float(len(costs)), dtype=costs.dtype)))


def _enveloped(costs: Tensor, plan: Tensor, value: Tensor, error: float, done: int) -> Tensor:
    """The dual value, with the plan as its gradient in the costs."""
    if not error <= 0.01:
        raise FedsimError(
            f"Sinkhorn: marginals off by {error:.2g} after {done} iterations; accepted: 0.01, by a larger epsilon"
        )
    linear = (plan.to(costs) * costs).sum()
    return linear + (value.to(costs) - linear).detach()
