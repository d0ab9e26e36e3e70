"""The dynamics of the generalization error, for a linear student of a noisy linear teacher.

N inputs of variance 1/N, P examples, α = P/N; teacher weights of variance σ_w², student weights that start with
variance σ_0², label noise σ_ε². Gradient flow on the SUM of the squared errors, τ dw/dt = Xᵀ(y - Xw), gives

    E_g(t) = ∫ρ(λ)[(σ_w² + σ_0²) e^{-2λt/τ} + (σ_ε²/λ)(1 - e^{-λt/τ})²]dλ + σ_ε²
    E_t(t) = (1/α)∫ρ(λ)[λ(σ_w² + σ_0²) + σ_ε²] e^{-2λt/τ}dλ + (1 - 1/α)σ_ε²

with ρ Marchenko-Pastur on (√α ± 1)², and (1-α)δ(0) beside it for α < 1: the frozen subspace, which no gradient ever
reaches. Gradient descent with rate η has (1-ηλ)^s for e^{-λt/τ}, t/τ = ηs, without approximation. Each mode is best
stopped at t_i = (τ/λ_i) log(1 + λ_i(σ_w² + σ_0²)/σ_ε²).

Integrals take Gauss-Chebyshev nodes, λ = 1 + α + 2√α cos θ, which remove the density's square roots at its edges.

Advani & Saxe, "High-dimensional dynamics of generalization error in neural networks", 2017 (arXiv:1710.03667).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsim.errors import FedsimError

NODES = 2048
"""Gauss-Chebyshev nodes: enough for t/τ up to 1e5 at α = 1."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Stopping:
    """When to stop, in t/τ, and the generalization error then; inf where training longer never harms."""

    time: float
    error: float


class Spectrum(NamedTuple):
    """Marchenko-Pastur: nodes and weights of the density, and the mass at 0."""

    eigenvalues: Array
    weights: Array
    frozen: float


class Task(NamedTuple):
    """One draw of the model: targets = inputs @ teacher + noise."""

    inputs: Array
    targets: Array
    teacher: Array
    start: Array


def marchenko_pastur(alpha: float) -> Spectrum:
    """The eigenvalues of XᵀX in the limit of large N at P/N = alpha, as a quadrature; the weights sum to min(1, α).

    Raises:
        FedsimError: alpha not above 0.
    """
    if not 0 < alpha < math.inf:
        raise FedsimError(f"alpha: given {alpha}; accepted: above 0")
    angles = np.pi * (np.arange(NODES) + 0.5) / NODES
    root = math.sqrt(alpha)
    eigenvalues = (1 - root) ** 2 + 4 * root * np.cos(angles / 2) ** 2
    weights = 2 * alpha * np.sin(angles) ** 2 / eigenvalues / NODES
    return Spectrum(eigenvalues, weights, max(0.0, 1 - alpha))


def generalization_error(
    t: ArrayLike,
    alpha: float,
    signal: float = 1.0,
    noise: float = 0.2,
    init: float = 0.0,
    *,
    rate: float | None = None,
) -> Array:
    """E_g(t), of the shape of t.

    Args:
        t: time t/τ, 0 or more.
        alpha: examples per input, P/N.
        signal: σ_w², variance of the teacher's weights.
        noise: σ_ε², variance of the label noise.
        init: σ_0², variance of the student's first weights.
        rate: η of gradient descent on the sum loss, at step t/η; None for gradient flow.

    Raises:
        FedsimError: a variance or time below 0, or a rate that is not above 0 or divides t into no whole steps.
    """
    _variances(signal, noise, init)
    eigenvalues, weights, frozen = marchenko_pastur(alpha)
    kept = _kept(t, eigenvalues, rate)
    learned = noise * (1 - kept) ** 2 / eigenvalues
    error: Array = ((signal + init) * kept**2 + learned) @ weights + (signal + init) * frozen + noise
    return error


def training_error(
    t: ArrayLike,
    alpha: float,
    signal: float = 1.0,
    noise: float = 0.2,
    init: float = 0.0,
    *,
    rate: float | None = None,
) -> Array:
    """E_t(t), the mean squared error on the P examples; options as in :func:`generalization_error`."""
    _variances(signal, noise, init)
    eigenvalues, weights, frozen = marchenko_pastur(alpha)
    kept = _kept(t, eigenvalues, rate)
    error: Array = ((eigenvalues * (signal + init) + noise) * kept**2 @ weights + noise * frozen) / alpha
    return error + (1 - 1 / alpha) * noise


def mode_stopping(
    eigenvalue: ArrayLike, signal: float = 1.0, noise: float = 0.2, init: float = 0.0
) -> NDArray[np.float64]:
    """t_i/τ at which the mode of this eigenvalue is best stopped; (σ_w² + σ_0²)/σ_ε² at 0, inf without noise."""
    _variances(signal, noise, init)
    values = np.asarray(eigenvalue, dtype=np.float64)
    if noise == 0:
        return np.full(values.shape, math.inf)
    ratio = (signal + init) / noise
    safe = np.where(values > 0, values, 1.0)
    return np.where(values > 0, np.log1p(safe * ratio) / safe, ratio)


def optimal_stopping(alpha: float, signal: float = 1.0, noise: float = 0.2, init: float = 0.0) -> Stopping:
    """The best time to stop and E_g then; it lies between the best times of the largest and the least eigenvalue.

    Options as in :func:`generalization_error`.
    """
    from scipy.optimize import minimize_scalar

    _variances(signal, noise, init)
    if noise == 0:
        return Stopping(math.inf, (signal + init) * max(0.0, 1 - alpha))
    if signal + init == 0:
        return Stopping(0.0, noise)
    edges = (1 + math.sqrt(alpha)) ** 2, (1 - math.sqrt(alpha)) ** 2
    early, late = (float(time) for time in mode_stopping(np.array(edges), signal, noise, init))

    def error(log_time: float) -> float:
        return float(generalization_error(math.exp(log_time), alpha, signal, noise, init))

    grid = np.linspace(math.log(early), math.log(late), 65)
    best = int(np.argmin(generalization_error(np.exp(grid), alpha, signal, noise, init)))
    around = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    found = minimize_scalar(error, bounds=around, method="bounded", options={"xatol": 1e-9})
    return Stopping(math.exp(found.x), float(found.fun))


def teacher_student(
    inputs: int, examples: int, signal: float = 1.0, noise: float = 0.2, init: float = 0.0, *, seed: int = 0
) -> Task:
    """One draw: inputs (P, N) of variance 1/N, targets (P,), teacher and start (N,)."""
    _variances(signal, noise, init)
    generator = np.random.default_rng(seed)
    data = generator.normal(0, inputs**-0.5, (examples, inputs))
    teacher = generator.normal(0, math.sqrt(signal), inputs)
    start = generator.normal(0, math.sqrt(init), inputs)
    return Task(data, data @ teacher + generator.normal(0, math.sqrt(noise), examples), teacher, start)


def gradient_descent(inputs: ArrayLike, targets: ArrayLike, start: ArrayLike, rate: float, steps: int) -> Array:
    """The weights (N,) after so many steps w ← w + η Xᵀ(y - Xw), in closed form.

    By the singular values of the inputs (P, N): what they do not reach stays as it started, for ever.
    """
    data, labels = np.asarray(inputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    weights = np.array(start, dtype=np.float64)
    left, values, right = np.linalg.svd(data, full_matrices=False)
    kept = (1 - rate * values**2) ** steps
    seen = values > values.max(initial=0.0) * max(data.shape) * np.finfo(np.float64).eps
    learned = np.divide(1 - kept, values, out=np.zeros_like(values), where=seen)
    update: Array = right.T @ (learned * (left.T @ labels) - (1 - kept) * (right @ weights))
    return weights + update


def mse_time(lr: float, steps: int, examples: int) -> float:
    """t/τ after so many steps of ``torch.nn.functional.mse_loss`` on all examples: its mean makes it 2·lr·steps/P."""
    return 2 * lr * steps / examples


def _kept(t: ArrayLike, eigenvalues: Array, rate: float | None) -> Array:
    """e^{-λt} or (1-ηλ)^s, (*t.shape, nodes)."""
    times = np.asarray(t, dtype=np.float64)[..., None]
    if (times < 0).any():
        raise FedsimError(f"t: given {float(times.min())}; accepted: 0 or more")
    if rate is None:
        return np.exp(-times * eigenvalues)
    if not rate > 0:
        raise FedsimError(f"rate: given {rate}; accepted: above 0")
    steps = np.rint(times / rate)
    if not np.allclose(steps * rate, times, rtol=1e-9, atol=0):
        raise FedsimError(f"t: given times that are no whole numbers of steps; accepted: multiples of the rate {rate}")
    kept: Array = (1 - rate * eigenvalues) ** steps
    return kept


def _variances(signal: float, noise: float, init: float) -> None:
    for name, value in (("signal", signal), ("noise", noise), ("init", init)):
        if not 0 <= value < math.inf:
            raise FedsimError(f"{name}: given {value}; accepted: a variance, 0 or more")
