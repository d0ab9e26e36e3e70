"""The instances on which gradient-normalized smoothness is measured, as pure functions of x, with their seeds.

- ``rosenbrock``: (1 - x)² + 100 (y - x²)², from (-2, 2).
- ``rosenbrock_nle``: |u|^p / p with Rosenbrock's residuals u = (1 - x, 10 (y - x²)), p = 5, from (-2, 2).
- ``linear_operator``: |Ax - b|^p / p, A (100, 200) and b uniform on [-1, 1], p = 4, B = AᵀA + 1e-8 I, from (1, …, 1).
- ``log_sum_exp``: μ log Σ exp((⟨a_i, x⟩ - b_i)/μ), moved so that its optimum lies at 0, B = AᵀA, from (1, …, 1).

Semenov, Jaggi & Doikov, "Gradient-Normalized Smoothness for Optimization with Approximate Hessians", ICLR 2026
(arXiv:2506.13710), Section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.optim.gns import Curvature
from fedsim.optim.gns_curvature import exact, fisher, gauss_newton, weighted_gauss_newton, zero


@dataclass(frozen=True)
class Problem:
    """A function to minimise.

    Args:
        function: x (d,) → f(x).
        x0: (d,) start.
        optimum: least value of f.
        metric: B, (d, d); None for the identity.
        curvatures: H(x) by name; ``exact`` and ``zero`` always.
    """

    function: Callable[[Tensor], Tensor]
    x0: Tensor
    optimum: float
    metric: Tensor | None
    curvatures: dict[str, Callable[[Tensor], Curvature]]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and ∇f(x)."""
        gradient, value = torch.func.grad_and_value(self.function)(x)
        return value, gradient


def rosenbrock() -> Problem:
    """Rosenbrock's function."""

    def function(x: Tensor) -> Tensor:
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    start = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    return Problem(function, start, 0.0, None, {"exact": exact(function), "zero": zero})


def rosenbrock_nle(power: float = 5.0) -> Problem:
    """Rosenbrock's residuals to a power."""

    def residuals(x: Tensor) -> Tensor:
        return torch.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])

    return _equations(residuals, power, torch.tensor([-2.0, 2.0], dtype=torch.float64), None)


def linear_operator(rows: int = 100, columns: int = 200, power: float = 4.0, seed: int = 0) -> Problem:
    """Ax = b to a power; with more columns than rows its least value is 0."""
    generator = np.random.default_rng(seed)
    matrix = torch.from_numpy(generator.uniform(-1, 1, (rows, columns)))
    target = torch.from_numpy(generator.uniform(-1, 1, rows))
    metric = matrix.T @ matrix + 1e-8 * torch.eye(columns, dtype=torch.float64)
    return _equations(lambda x: matrix @ x - target, power, torch.ones(columns, dtype=torch.float64), metric)


def log_sum_exp(d: int = 100, functions: int = 100, smoothing: float = 1.0, seed: int = 2) -> Problem:
    """The smooth maximum of linear functions; the metric is that of the matrix before it was moved.

    Instances differ: over the seeds 0 to 5 the exact Hessian takes 12 to 16 iterations, the weighted 18 to 27.
    """
    generator = np.random.default_rng(seed)
    raw = torch.from_numpy(generator.uniform(-1, 1, (functions, d)))
    offset = torch.from_numpy(generator.uniform(-1, 1, functions))
    matrix = raw - torch.softmax(-offset / smoothing, 0) @ raw

    def outputs(x: Tensor) -> Tensor:
        return matrix @ x - offset

    def function(x: Tensor) -> Tensor:
        return smoothing * torch.logsumexp(outputs(x) / smoothing, 0)

    curvatures: dict[str, Callable[[Tensor], Curvature]] = {
        "exact": exact(function),
        "weighted_gauss_newton": weighted_gauss_newton(
            outputs, lambda x: torch.softmax(outputs(x) / smoothing, 0) / smoothing
        ),
        "zero": zero,
    }
    start = torch.zeros(d, dtype=torch.float64)
    return Problem(function, start + 1, float(function(start)), raw.T @ raw, curvatures)


def _equations(residuals: Callable[[Tensor], Tensor], power: float, start: Tensor, metric: Tensor | None) -> Problem:
    def function(x: Tensor) -> Tensor:
        value: Tensor = residuals(x).norm() ** power / power
        return value

    curvatures: dict[str, Callable[[Tensor], Curvature]] = {
        "exact": exact(function),
        "gauss_newton": gauss_newton(residuals, power),
        "fisher": fisher(residuals, power),
        "zero": zero,
    }
    return Problem(function, start, 0.0, metric, curvatures)
