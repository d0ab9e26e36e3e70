"""The theory of generalization against numerical integrals, exact spectra, and gradient descent itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

import fedsim
from fedsim.analysis.generalization import (
    Stopping,
    Task,
    generalization_error,
    gradient_descent,
    marchenko_pastur,
    mode_stopping,
    mse_time,
    optimal_stopping,
    teacher_student,
    training_error,
)
from fedsim.errors import FedsimError

Array = NDArray[np.float64]


def integral(function, alpha: float) -> float:
    """∫ρ(λ) function(λ)dλ by adaptive quadrature in θ, with the mass at 0."""

    def integrand(angle: float) -> float:
        value = 1 + alpha + 2 * math.sqrt(alpha) * math.cos(angle)
        return (2 * math.sqrt(alpha) * math.sin(angle)) ** 2 / (2 * math.pi * value) * function(value)

    whole = quad(integrand, 0, math.pi, limit=2000, epsabs=1e-12, epsrel=1e-12)[0]
    return whole + (max(0.0, 1 - alpha) * function(0.0) if alpha < 1 else 0.0)


def test_it_is_reached_by_its_public_name() -> None:
    assert fedsim.analysis.generalization.generalization_error is generalization_error


# At α = 1 the published figure is .5670; the integral is .56752 (adaptive quadrature below), 5e-4 above.
@pytest.mark.parametrize(("alpha", "time", "error"), [(0.5, 2.707, 0.8261), (1.0, 3.067, 0.5675), (2.0, 2.394, 0.3541)])
def test_the_best_time_to_stop(alpha: float, time: float, error: float) -> None:
    best = optimal_stopping(alpha, signal=1.0, noise=0.2, init=0.0)
    assert best.time == pytest.approx(time, abs=6e-4)
    assert best.error == pytest.approx(error, abs=6e-5)

    def by_quadrature(t: float) -> float:
        def mode(value: float) -> float:
            learned = 0.2 / value * (1 - math.exp(-value * t)) ** 2 if value else 0.0
            return math.exp(-2 * value * t) + learned

        return integral(mode, alpha) + 0.2

    theirs = minimize_scalar(by_quadrature, bounds=(1, 5), method="bounded", options={"xatol": 1e-7})
    assert best.time == pytest.approx(theirs.x, abs=1e-4)
    assert best.error == pytest.approx(theirs.fun, abs=1e-10)


@pytest.mark.parametrize("alpha", [0.2, 0.9, 1.0, 1.1, 4.0])
@pytest.mark.parametrize("t", [0.0, 0.7, 30.0, 1e4])
def test_both_errors_are_the_integrals(alpha: float, t: float) -> None:
    signal, noise, init = 0.8, 0.3, 0.5

    def general(value: float) -> float:
        learned = noise / value * (1 - math.exp(-value * t)) ** 2 if value else 0.0
        return (signal + init) * math.exp(-2 * value * t) + learned

    def train(value: float) -> float:
        return (value * (signal + init) + noise) * math.exp(-2 * value * t)

    assert generalization_error(t, alpha, signal, noise, init) == pytest.approx(
        integral(general, alpha) + noise, rel=1e-7
    )
    assert training_error(t, alpha, signal, noise, init) == pytest.approx(
        integral(train, alpha) / alpha + (1 - 1 / alpha) * noise, rel=1e-7, abs=1e-9
    )


@pytest.mark.parametrize("alpha", [0.3, 0.99, 1.0, 3.0])
def test_the_spectrum_has_the_moments_of_marchenko_and_pastur(alpha: float) -> None:
    spectrum = marchenko_pastur(alpha)
    moments = [float(spectrum.weights @ spectrum.eigenvalues**k) for k in (1, 2, 3)]
    assert moments == pytest.approx([alpha, alpha + alpha**2, alpha + 3 * alpha**2 + alpha**3], rel=1e-12)
    assert spectrum.weights.sum() + spectrum.frozen == pytest.approx(1, abs=1e-6)


def test_the_spectrum_is_that_of_the_drawn_data() -> None:
    task = teacher_student(800, 1200, seed=1)
    values = np.linalg.eigvalsh(task.inputs.T @ task.inputs)
    spectrum = marchenko_pastur(1.5)
    for power in (-1, 1, 2):
        assert float((values**power).mean()) == pytest.approx(
            float(spectrum.weights @ spectrum.eigenvalues**power), rel=0.02
        )


def test_few_examples_leave_a_frozen_subspace_whose_error_never_falls() -> None:
    for init in (0.0, 1.0):
        floor = generalization_error(1e9, 0.25, noise=0.0, init=init)
        assert floor == pytest.approx(0.75 * (1 + init), abs=1e-9)
    task = teacher_student(40, 10, init=1.0, seed=0)
    last = gradient_descent(task.inputs, task.targets, task.start, 0.3, 100_000)
    _, _, right = np.linalg.svd(task.inputs)
    np.testing.assert_allclose(right[10:] @ last, right[10:] @ task.start, atol=1e-12)
    np.testing.assert_allclose(task.inputs @ last, task.targets, atol=1e-9)


def test_training_error_starts_at_the_variance_of_the_labels_and_ends_at_the_unfitted_noise() -> None:
    assert training_error(0.0, 0.5, 1.0, 0.2, 0.3) == pytest.approx(1 + 0.3 + 0.2)
    assert training_error(1e9, 0.5, 1.0, 0.2) == pytest.approx(0, abs=1e-9)
    assert training_error(1e9, 4.0, 1.0, 0.2) == pytest.approx(0.75 * 0.2)
    assert generalization_error(0.0, 0.5, 1.0, 0.2, 0.3) == pytest.approx(1 + 0.3 + 0.2)


def test_overtraining_hurts_most_where_examples_equal_inputs() -> None:
    late = {alpha: float(generalization_error(1e4, alpha)) for alpha in (0.25, 0.5, 1.0, 2.0, 4.0)}
    assert max(late, key=late.__getitem__) == 1.0
    assert late[1.0] > 10 * late[2.0]
    assert [optimal_stopping(alpha).error for alpha in (0.25, 0.5, 1.0, 2.0, 4.0)] == sorted(
        (optimal_stopping(alpha).error for alpha in (0.25, 0.5, 1.0, 2.0, 4.0)), reverse=True
    )


def test_a_small_start_is_better() -> None:
    errors = [optimal_stopping(0.7, init=init).error for init in (0.0, 0.1, 1.0)]
    assert errors == sorted(errors)
    times = np.linspace(0, 20, 30)
    assert (generalization_error(times, 0.7, init=0.0) <= generalization_error(times, 0.7, init=0.5)).all()


@pytest.mark.parametrize("value", [0.01, 1.0, 3.0])
def test_a_mode_is_best_stopped_where_its_error_is_least(value: float) -> None:
    def mode(t: float) -> float:
        return 1.5 * math.exp(-2 * value * t) + 0.2 / value * (1 - math.exp(-value * t)) ** 2

    theirs = minimize_scalar(mode, bounds=(0, 20), method="bounded", options={"xatol": 1e-9})
    assert mode_stopping(value, 1.0, 0.2, 0.5) == pytest.approx(theirs.x, rel=1e-5)


def test_the_ends_of_stopping() -> None:
    assert mode_stopping([0.0, 1.0]) == pytest.approx([5.0, math.log(6)])
    assert mode_stopping(0.0) == pytest.approx(float(mode_stopping(1e-9)))
    assert np.isinf(mode_stopping([0.0, 1.0], noise=0.0)).all()
    assert optimal_stopping(0.5, noise=0.0) == Stopping(math.inf, 0.5)
    assert optimal_stopping(0.5, signal=0.0) == Stopping(0.0, 0.2)


def test_the_times_to_stop_are_a_minimum() -> None:
    for alpha, noise in ((0.1, 5.0), (0.999, 0.01), (1.0, 1e-3), (10.0, 0.5)):
        best = optimal_stopping(alpha, noise=noise)
        around = generalization_error(best.time * np.geomspace(0.01, 100, 400), alpha, noise=noise)
        assert best.error <= around.min() + 1e-12


def test_discrete_steps_are_exact_and_tend_to_the_flow() -> None:
    alpha, rate, steps = 1.5, 0.2, 7
    spectrum = marchenko_pastur(alpha)
    kept = (1 - rate * spectrum.eigenvalues) ** steps
    by_hand = (kept**2 + 0.2 / spectrum.eigenvalues * (1 - kept) ** 2) @ spectrum.weights + 0.2
    assert generalization_error(rate * steps, alpha, rate=rate) == pytest.approx(by_hand, rel=1e-12)
    flow = generalization_error(1.0, alpha)
    gaps = [abs(float(generalization_error(1.0, alpha, rate=rate) - flow)) for rate in (0.2, 0.02, 0.002)]
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2]
    assert training_error(2.0, alpha, rate=0.002) == pytest.approx(float(training_error(2.0, alpha)), rel=0.01)


def test_a_rate_that_is_too_large_diverges_with_either_sign() -> None:
    errors = generalization_error(np.array([3.0, 6.0, 9.0]), 1.5, rate=1.0)
    assert (np.diff(errors) > 0).all()


def descended(task: Task, rate: float, steps: int) -> list[float]:
    """Mean squared distance to the teacher before each step and after the last, by plain gradient descent."""
    weights, errors = task.start.copy(), []
    for _ in range(steps + 1):
        errors.append(float(np.mean((weights - task.teacher) ** 2)))
        weights += rate * task.inputs.T @ (task.targets - task.inputs @ weights)
    return errors


# A single draw with N = 200 strays by some percent: its teacher's norm alone has a spread of 10 %.
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_forty_draws_are_within_six_percent_of_the_theory(alpha: float, seed: int) -> None:
    inputs, rate, steps = 200, 0.1, 80
    seeds = range(40 * seed, 40 * seed + 40)
    draws = [descended(teacher_student(inputs, int(alpha * inputs), seed=each), rate, steps) for each in seeds]
    theory = generalization_error(rate * np.arange(steps + 1), alpha, rate=rate)
    np.testing.assert_allclose(np.mean(draws, 0) + 0.2, theory, rtol=0.06)


def federated_sgd(shares: list[tuple[Array, Array]], start: Array, lr: float, steps: int, local: int = 1) -> Array:
    """FedAvg of full-batch SGD on torch's mse_loss, weights n_k / n."""
    total = sum(len(labels) for _, labels in shares)
    weights = torch.from_numpy(start)
    for _ in range(steps):
        mean = torch.zeros_like(weights)
        for inputs, labels in shares:
            own = weights.clone().requires_grad_()
            optimizer = torch.optim.SGD([own], lr=lr)
            for _ in range(local):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(torch.from_numpy(inputs) @ own, torch.from_numpy(labels)).backward()
                optimizer.step()
            mean += len(labels) / total * own.detach()
        weights = mean
    return weights.numpy()


def unequal(seed: int = 0) -> tuple[Task, list[tuple[Array, Array]]]:
    task = teacher_student(30, 45, init=0.5, seed=seed)
    bounds = [(0, 4), (4, 15), (15, 45)]
    return task, [(task.inputs[low:high], task.targets[low:high]) for low, high in bounds]


def test_fedsgd_is_gradient_descent_in_closed_form() -> None:
    task, shares = unequal()
    lr, steps = 2.0, 60
    ours = federated_sgd(shares, task.start, lr, steps)
    closed = gradient_descent(task.inputs, task.targets, task.start, 2 * lr / 45, steps)
    np.testing.assert_allclose(ours, closed, rtol=0, atol=1e-10)


def test_the_time_of_mean_squared_error_has_a_two_and_a_mean() -> None:
    task = teacher_student(30, 45, seed=1)
    lr, steps = 2.0, 60
    weights = torch.from_numpy(task.start.copy()).requires_grad_()
    optimizer = torch.optim.SGD([weights], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(torch.from_numpy(task.inputs) @ weights, torch.from_numpy(task.targets)).backward()
        optimizer.step()
    rate = mse_time(lr, 1, 45)
    assert mse_time(lr, steps, 45) == pytest.approx(steps * rate) == pytest.approx(2 * lr * steps / 45)
    closed = gradient_descent(task.inputs, task.targets, task.start, rate, steps)
    np.testing.assert_allclose(weights.detach(), closed, atol=1e-10)


def test_the_pooled_gradient_needs_the_clients_sizes() -> None:
    task, shares = unequal()
    gradients = [2 / len(y) * x.T @ (x @ task.start - y) for x, y in shares]
    pooled = 2 / 45 * task.inputs.T @ (task.inputs @ task.start - task.targets)
    weighted = sum(len(y) / 45 * gradient for gradient, (_, y) in zip(gradients, shares, strict=True))
    np.testing.assert_allclose(weighted, pooled, atol=1e-12)
    assert np.abs(np.mean(gradients, axis=0) - pooled).max() > 0.05


def test_inputs_of_another_variance_run_on_another_clock() -> None:
    task = teacher_student(100, 200, seed=0)
    assert task.inputs.var() == pytest.approx(1 / 100, rel=0.03)
    unscaled = gradient_descent(10 * task.inputs, task.targets, task.start, 0.001, 50)
    slow = gradient_descent(task.inputs, 0.1 * task.targets, task.start, 0.1, 50)
    np.testing.assert_allclose(unscaled, slow, atol=1e-12)


def test_local_steps_drift_away_from_the_theory() -> None:
    task, shares = unequal()
    lr, steps = 2.0, 60
    closed = gradient_descent(task.inputs, task.targets, task.start, 2 * lr / 45, steps)
    drift = [
        float(np.linalg.norm(federated_sgd(shares, task.start, lr, steps // local, local) - closed))
        for local in (1, 5, 20)
    ]
    assert drift[0] < 1e-10 < drift[1] < drift[2]


def test_the_stopping_round_is_predicted() -> None:
    rate = 0.05
    best = [int(np.argmin(descended(teacher_student(200, 200, seed=seed), rate, 160))) for seed in range(5)]
    assert np.mean(best) == pytest.approx(optimal_stopping(1.0).time / rate, rel=0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generalization_error(1.0, 0.0), "alpha"),
        (lambda: generalization_error(-1.0, 1.0), "t: given"),
        (lambda: generalization_error(1.0, 1.0, noise=-0.1), "noise"),
        (lambda: training_error(1.0, 1.0, rate=0.0), "rate"),
        (lambda: training_error(1.0, 1.0, rate=0.3), "whole"),
    ],
)
def test_it_refuses(call, message: str) -> None:
    with pytest.raises(FedsimError, match=message):
        call()
