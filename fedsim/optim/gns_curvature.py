"""Approximations of a Hessian, as functions of x, for gradient-normalized smoothness.

Exact, by products, Gauss-Newton, weighted Gauss-Newton, empirical Fisher, the rank-1 Fisher term, zero. All but the
exact ones are positive semidefinite. Gauss-Newton (of power 2) and empirical Fisher add over clients.

Semenov, Jaggi & Doikov, "Gradient-Normalized Smoothness for Optimization with Approximate Hessians", ICLR 2026
(arXiv:2506.13710), Sections 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.optim.gns import LowRank, Products


def exact(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """∇²f by autograd; it need not be positive semidefinite."""
    gradient = torch.func.grad(function)
    return lambda x: _jacobian(gradient, x)


def exact_products(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Products]:
    """v → ∇²f(x) v by autograd, for d where a matrix is too large."""

    def curvature(x: Tensor) -> Products:
        pull = torch.func.vjp(torch.func.grad(function), x)[1]
        return Products(lambda v: pull(v)[0])

    return curvature


def gauss_newton(residuals: Callable[[Tensor], Tensor], power: float = 2.0) -> Callable[[Tensor], Tensor]:
    """Of f = |u|^p / p: |u|^{p-2} JᵀJ + (p-2)|u|^{p-4}(Jᵀu)(Jᵀu)ᵀ, what is left of ∇²f without ∇²u; JᵀJ for p = 2."""
    term = fisher(residuals, power)

    def curvature(x: Tensor) -> Tensor:
        jacobian, u = _jacobian(residuals, x), residuals(x)
        matrix: Tensor = u.norm() ** (power - 2) * (jacobian.T @ jacobian) + term(x).dense()
        return matrix

    return curvature


def fisher(residuals: Callable[[Tensor], Tensor], power: float) -> Callable[[Tensor], LowRank]:
    """The Fisher term alone, rank 1: (p-2)|u|^{p-4}(Jᵀu)(Jᵀu)ᵀ = (p-2)|u|^{-p} ∇f ∇fᵀ."""
    if power < 2:
        raise FedsimError(f"gns: power: given {power}; accepted: 2 or more")

    def curvature(x: Tensor) -> LowRank:
        answer = torch.func.vjp(residuals, x)
        u, pull = answer[0], answer[1]
        norm = u.norm()
        direction = pull(u / norm.clamp_min(torch.finfo(u.dtype).tiny))[0]
        return LowRank(math.sqrt(power - 2) * norm ** (power / 2 - 1) * direction[:, None])

    return curvature


def weighted_gauss_newton(
    outputs: Callable[[Tensor], Tensor], weights: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Jᵀ W J with the outputs' Jacobian J, (m, d), and W ⪰ 0: (m,) a diagonal or (m, m), from x.

    With W = softmax(u/μ)/μ it is the weighted Gauss-Newton of μ log Σ exp(u/μ); with the loss's second derivative in
    the outputs it is the generalised Gauss-Newton.
    """

    def curvature(x: Tensor) -> Tensor:
        jacobian, weight = _jacobian(outputs, x), weights(x)
        weighted = weight[:, None] * jacobian if weight.ndim == 1 else weight @ jacobian
        return jacobian.T @ weighted

    return curvature


def empirical_fisher(
    per_example_gradients: Callable[[Tensor], Tensor], weights: Sequence[float] | Tensor | None = None
) -> Callable[[Tensor], LowRank]:
    """Σ w_i g_i g_iᵀ by its factors, from x → (n, d); w_i is the weight of example i in f, 1/n if not given."""

    def curvature(x: Tensor) -> LowRank:
        gradients = per_example_gradients(x)
        if weights is None:
            return LowRank(gradients.T / math.sqrt(len(gradients)))
        return LowRank((gradients * torch.as_tensor(weights).to(gradients)[:, None].sqrt()).T)

    return curvature


def zero(x: Tensor) -> LowRank:
    """H = 0: the step is γ B⁻¹g / |g|_*, the normalised gradient method."""
    return LowRank(x.new_zeros(len(x), 0))


def _jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    jacobian: Tensor = torch.func.jacrev(function)(x)
    return jacobian
