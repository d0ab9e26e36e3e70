"""Gradient-normalized smoothness: a regularised Newton step with any approximation of the Hessian.

    x⁺ = x - (H(x) + λB)⁻¹ g,    λ = |g|_* / (γ + 1e-8),    |g|_*² = gᵀB⁻¹g,    H ⪰ 0.

A trial is accepted if f - f⁺ ≥ |g⁺|_*² / (8λ), and then γ ← 2γ; otherwise γ ← γ/2 and the same H is tried again (at
most 40 times): H is asked for once an iteration. γ measures how far the gradient's own scale lets one trust H, so
that one rule serves every H: exact, Gauss-Newton, weighted Gauss-Newton, empirical Fisher, the rank-1 Fisher term
(solved by Woodbury's identity), products alone (solved by conjugate gradients), and zero (a normalised gradient step).
An indefinite H + λB is a rejected trial as well: it shrinks γ, and no step is ever made with a stale direction.

f, g and H must be of one batch. They add over clients (f, g, Gauss-Newton, empirical Fisher), so that a server that
answers :func:`search` with sums makes the centralised step; each trial costs it one exchange.

Semenov, Jaggi & Doikov, "Gradient-Normalized Smoothness for Optimization with Approximate Hessians", ICLR 2026
(arXiv:2506.13710), Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedsim.errors import FedsimError

SMALLEST = 1e-8
"""Added to γ: bounds λ by 1e8 |g|_*."""
TRIALS = 40
"""Trials of one iteration."""


@dataclass(frozen=True)
class LowRank:
    """H = F Fᵀ by its factors F, (d, r), r ≥ 0; H + λB is solved through an (r, r) system (Woodbury)."""

    factors: Tensor

    def dense(self) -> Tensor:
        """H, (d, d)."""
        return self.factors @ self.factors.T


@dataclass(frozen=True)
class Products:
    """H by its products v → Hv alone; H + λB is solved by conjugate gradients, preconditioned by B.

    Args:
        product: (d,) → (d,).
        tolerance: residual at which the solution is good enough, relative to the gradient in the dual norm.
    """

    product: Callable[[Tensor], Tensor]
    tolerance: float = 1e-10


Curvature: TypeAlias = Tensor | LowRank | Products


@dataclass(frozen=True)
class Evaluate:
    """The method asks for f and g at x: answer (float, (d,))."""

    x: Tensor


@dataclass(frozen=True)
class Curve:
    """The method asks for H at x: answer a matrix (d, d), :class:`LowRank` or :class:`Products`."""

    x: Tensor


@dataclass(frozen=True)
class Trace:
    """What a minimisation did.

    Args:
        x: (d,) float64, the last point.
        values: f at x0 and after each iteration.
        gammas: γ at x0 and after each iteration.
        iterations: iterations made, len(values) - 1; H was asked for as often.
        evaluations: how often f and g were asked for: one at x0 and one for each trial that had a direction.
        converged: whether |g|_* fell below the tolerance.
    """

    x: Tensor
    values: list[float]
    gammas: list[float]
    iterations: int
    evaluations: int
    converged: bool

    def reached(self, optimum: float, gap: float = 1e-8) -> int | None:
        """The first iteration with f - optimum < gap; None if there was none."""
        return next((k for k, value in enumerate(self.values) if value - optimum < gap), None)


def minimize(
    value_and_gradient: Callable[[Tensor], tuple[Any, Any]],
    curvature: Callable[[Tensor], Any],
    x0: Any,
    *,
    metric: Any = None,
    gamma: float = 1.0,
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
) -> Trace:
    """Minimise f from x0, in float64.

    Args:
        value_and_gradient: x (d,) → f(x), g(x) (d,).
        curvature: x (d,) → H(x): (d, d), :class:`LowRank` or :class:`Products`; ``gns_curvature`` makes them.
        x0: (d,) start.
        metric: B, (d, d) symmetric positive definite; None for the identity.
        gamma: γ_0.
        tolerance: stop at |g|_* below this.
        max_iterations: stop after so many iterations.

    Raises:
        FedsimError: a metric that is not positive definite, or f or g not finite at x0.
    """
    method = search(x0, metric=metric, gamma=gamma, tolerance=tolerance, max_iterations=max_iterations)
    request = next(method)
    try:
        while True:
            ask = value_and_gradient if isinstance(request, Evaluate) else curvature
            request = method.send(ask(request.x))
    except StopIteration as finished:
        trace: Trace = finished.value
        return trace


def search(
    x0: Any, *, metric: Any = None, gamma: float = 1.0, tolerance: float = 1e-8, max_iterations: int = 1000
) -> Generator[Evaluate | Curve, Any, Trace]:
    """The method as a generator: it yields what it needs (:class:`Evaluate`, :class:`Curve`) and is sent the answer.

    :func:`minimize` answers with functions; a server answers with sums over its clients. Options as there.
    """
    if not gamma > 0:
        raise FedsimError(f"gns: gamma: given {gamma}; accepted: above 0")
    x = torch.as_tensor(x0, dtype=torch.float64).clone()
    norm = Metric(metric, len(x))
    f, g = _finite(*_answer((yield Evaluate(x))))
    size = norm.dual(g)
    values, gammas, evaluations, iteration = [f], [gamma], 1, 0
    while size >= tolerance and iteration < max_iterations:
        system = _System(_curvature((yield Curve(x)), len(x)), norm)
        accepted = False
        for _ in range(TRIALS):
            shift = size / (gamma + SMALLEST)
            direction = system.solve(shift, g)
            if direction is not None:
                trial = x - direction
                f_trial, g_trial = _answer((yield Evaluate(trial)))
                evaluations += 1
                size_trial = norm.dual(g_trial)
                accepted = f - f_trial >= size_trial**2 / (8 * shift)
            if accepted:
                x, f, g, size, gamma = trial, f_trial, g_trial, size_trial, 2 * gamma
                break
            gamma /= 2
        if not accepted:
            break
        iteration += 1
        values.append(f)
        gammas.append(gamma)
    return Trace(x, values, gammas, iteration, evaluations, size < tolerance)


class Metric:
    """B: its inverse and the dual norm |g|_* = (gᵀB⁻¹g)^½; the identity without a matrix, which takes no d² numbers."""

    def __init__(self, matrix: Any, d: int) -> None:
        self.matrix: Tensor | None = None
        if matrix is None:
            return
        self.matrix = torch.as_tensor(matrix).double()
        if self.matrix.shape != (d, d):
            raise FedsimError(f"gns: metric: given shape {tuple(self.matrix.shape)}; accepted: {(d, d)}")
        self._factor, failed = torch.linalg.cholesky_ex(self.matrix)
        if failed:
            raise FedsimError("gns: metric: given a matrix that is not positive definite; accepted: one that is")

    def times(self, vector: Tensor) -> Tensor:
        """B times (d,)."""
        return vector if self.matrix is None else self.matrix @ vector

    def added(self, matrix: Tensor, shift: float) -> Tensor:
        """(d, d) matrix + λB."""
        if self.matrix is not None:
            return matrix + shift * self.matrix
        total = matrix.clone()
        total.diagonal().add_(shift)
        return total

    def inverse(self, vectors: Tensor) -> Tensor:
        """B⁻¹ times (d,) or (d, r)."""
        if self.matrix is None:
            return vectors
        columns = vectors if vectors.ndim == 2 else vectors[:, None]
        return torch.cholesky_solve(columns, self._factor).reshape(vectors.shape)

    def dual(self, g: Tensor) -> float:
        """|g|_*; NaN where g is."""
        return math.sqrt(max(0.0, square)) if not math.isnan(square := float(g @ self.inverse(g))) else math.nan


class _System:
    """(H + λB)⁻¹ g for one H and many λ; None where H + λB is not positive definite."""

    def __init__(self, curvature: Curvature, metric: Metric) -> None:
        self.curvature, self.metric = curvature, metric
        if isinstance(curvature, LowRank):
            self.spread = metric.inverse(curvature.factors)
            self.inner = curvature.factors.T @ self.spread

    def solve(self, shift: float, g: Tensor) -> Tensor | None:
        if isinstance(self.curvature, LowRank):
            return self._woodbury(shift, g)
        if isinstance(self.curvature, Products):
            return self._conjugate_gradients(self.curvature, shift, g)
        factor, failed = torch.linalg.cholesky_ex(self.metric.added(self.curvature, shift))
        if failed:
            return None
        solution: Tensor = torch.cholesky_solve(g[:, None], factor)[:, 0]
        return solution

    def _woodbury(self, shift: float, g: Tensor) -> Tensor:
        """(FFᵀ + λB)⁻¹g = (B⁻¹g - B⁻¹F(λI + FᵀB⁻¹F)⁻¹FᵀB⁻¹g) / λ."""
        plain = self.metric.inverse(g)
        inner = self.inner + shift * torch.eye(len(self.inner), dtype=torch.float64)
        solution: Tensor = (plain - self.spread @ torch.linalg.solve(inner, self.spread.T @ g)) / shift
        return solution

    def _conjugate_gradients(self, curvature: Products, shift: float, g: Tensor) -> Tensor | None:
        solution, residual = torch.zeros_like(g), g.clone()
        scaled = self.metric.inverse(residual)
        direction, square = scaled, residual @ scaled
        enough = curvature.tolerance**2 * square
        for _ in range(10 * len(g)):
            if square <= enough:
                break
            product = curvature.product(direction).double() + shift * self.metric.times(direction)
            bend = direction @ product
            if not bend > 0:
                return None
            solution = solution + (square / bend) * direction
            residual = residual - (square / bend) * product
            scaled = self.metric.inverse(residual)
            square, last = residual @ scaled, square
            direction = scaled + (square / last) * direction
        return solution


def _answer(answer: tuple[Any, Any]) -> tuple[float, Tensor]:
    value, gradient = answer
    return float(value), torch.as_tensor(gradient).detach().double()


def _finite(value: float, gradient: Tensor) -> tuple[float, Tensor]:
    if not (math.isfinite(value) and bool(torch.isfinite(gradient).all())):
        raise FedsimError(
            f"gns: x0: given a point with f = {value} and |g| = {float(gradient.norm())}; accepted: finite"
        )
    return value, gradient


def _curvature(answer: Any, d: int) -> Curvature:
    if isinstance(answer, LowRank):
        return LowRank(answer.factors.detach().double())
    if isinstance(answer, Products):
        return answer
    matrix = torch.as_tensor(answer).detach().double()
    if matrix.shape != (d, d):
        raise FedsimError(f"gns: curvature: given shape {tuple(matrix.shape)}; accepted: {(d, d)}")
    return matrix
