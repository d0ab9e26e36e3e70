"""Gradient-normalized smoothness: the paper's iteration counts, each Hessian against an oracle, and the traps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import fedsim
from fedsim.errors import FedsimError
from fedsim.optim import gns, gns_curvature, gns_problems
from fedsim.optim.gns import Curve, Evaluate, LowRank, Products, minimize, search


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(problem: gns_problems.Problem, curvature: str, **options: object) -> gns.Trace:
    return minimize(
        problem.value_and_gradient, problem.curvatures[curvature], problem.x0, metric=problem.metric, **options
    )


def test_it_is_reached_by_its_public_name() -> None:
    assert fedsim.optim.gns.minimize is minimize


def test_rosenbrock_to_the_digit() -> None:
    trace = run(gns_problems.rosenbrock(), "exact")
    assert [round(value, 4) for value in trace.values[:4]] == [409.0, 87.403, 10.5689, 6.2146]
    assert trace.gammas[:6] == [1, 2, 4, 8, 2, 0.5]
    assert trace.reached(0.0) == 51
    assert trace.converged
    np.testing.assert_allclose(trace.x, [1, 1], atol=1e-8)


@pytest.mark.parametrize(
    ("problem", "curvature", "expected"),
    [
        (gns_problems.rosenbrock_nle(), "exact", 56),
        (gns_problems.linear_operator(), "exact", 27),
        (gns_problems.linear_operator(), "fisher", 18),
        (gns_problems.log_sum_exp(), "exact", 14),
        (gns_problems.log_sum_exp(), "weighted_gauss_newton", 21),
    ],
)
def test_iterations_of_the_committed_instances(problem: gns_problems.Problem, curvature: str, expected: int) -> None:
    reached = run(problem, curvature).reached(problem.optimum)
    assert reached is not None
    assert abs(reached - expected) <= 2


def test_a_gradient_method_takes_more_than_a_thousand_on_log_sum_exp() -> None:
    problem = dataclasses.replace(gns_problems.log_sum_exp(), metric=None)
    assert run(problem, "zero", max_iterations=1000).reached(problem.optimum) is None


@pytest.mark.parametrize("seed", [0, 1])
def test_the_minimum_is_scipys(seed: int) -> None:
    problem = gns_problems.log_sum_exp(d=6, functions=9, seed=seed)
    theirs = scipy.optimize.minimize(
        lambda x: float(problem.function(torch.from_numpy(x))), problem.x0.numpy(), method="BFGS", tol=1e-10
    )
    ours = run(problem, "exact")
    assert ours.values[-1] == pytest.approx(theirs.fun, abs=1e-9)
    np.testing.assert_allclose(ours.x, 0.0, atol=1e-6)


def test_the_instances_have_the_gradients_and_minima_that_they_state() -> None:
    for problem in (
        gns_problems.rosenbrock(),
        gns_problems.rosenbrock_nle(),
        gns_problems.linear_operator(4, 6),
        gns_problems.log_sum_exp(5, 7),
    ):
        _, gradient = problem.value_and_gradient(problem.x0)
        numeric = scipy.optimize.approx_fprime(
            problem.x0.numpy(), lambda x, f=problem.function: float(f(torch.from_numpy(x))), 1e-6
        )
        np.testing.assert_allclose(gradient, numeric, rtol=1e-3)
    lse = gns_problems.log_sum_exp(5, 7)
    assert lse.value_and_gradient(torch.zeros(5, dtype=torch.float64))[1].norm() < 1e-12


def test_exact_is_scipys_hessian_of_rosenbrock() -> None:
    problem = gns_problems.rosenbrock()
    point = np.array([-1.3, 0.7])
    np.testing.assert_allclose(
        problem.curvatures["exact"](torch.from_numpy(point)), scipy.optimize.rosen_hess(point), rtol=1e-12
    )


@pytest.mark.parametrize("power", [2.0, 3.0, 5.0])
def test_gauss_newton_is_the_hessian_of_the_linearised_residuals(power: float) -> None:
    def residuals(x: Tensor) -> Tensor:
        return torch.stack([1 - x[0], 10 * (x[1] - x[0] ** 2), torch.sin(x[0] * x[1])])

    x = torch.tensor([-0.4, 1.1], dtype=torch.float64)
    jacobian, at = torch.func.jacrev(residuals)(x), residuals(x)
    linear = torch.autograd.functional.hessian(lambda y: (at + jacobian @ (y - x)).norm() ** power / power, x)
    torch.testing.assert_close(gns_curvature.gauss_newton(residuals, power)(x), linear)


def test_fisher_is_the_papers_rank_one_term() -> None:
    problem, power = gns_problems.linear_operator(5, 8), 4.0
    x = normal(8)
    value, gradient = problem.value_and_gradient(x)
    term = problem.curvatures["fisher"](x)
    assert isinstance(term, LowRank)
    assert term.factors.shape == (8, 1)
    torch.testing.assert_close(term.dense(), (power - 2) / (power * value) * torch.outer(gradient, gradient))


def test_no_approximation_breaks_down_at_a_root() -> None:
    def residuals(x: Tensor) -> Tensor:
        return x**3

    x = torch.zeros(2, dtype=torch.float64)
    for curvature in (gns_curvature.fisher(residuals, 3.0)(x).dense(), gns_curvature.gauss_newton(residuals, 3.0)(x)):
        assert torch.equal(curvature, torch.zeros(2, 2, dtype=torch.float64))


def test_weighted_gauss_newton_leaves_out_the_negative_rank_one_term() -> None:
    matrix, x = normal(7, 4), normal(4, seed=1)
    share = torch.softmax(matrix @ x, 0)
    whole = torch.autograd.functional.hessian(lambda y: torch.logsumexp(matrix @ y, 0), x)
    mean = matrix.T @ share
    for weights in (share, torch.diag(share)):
        ours = gns_curvature.weighted_gauss_newton(lambda y: matrix @ y, lambda y, w=weights: w)(x)
        torch.testing.assert_close(ours, whole + torch.outer(mean, mean))


def test_empirical_fisher_is_the_weighted_sum_of_outer_products() -> None:
    gradients = normal(5, 3)
    mean = gns_curvature.empirical_fisher(lambda x: gradients)(normal(3)).dense()
    torch.testing.assert_close(mean, torch.stack([torch.outer(g, g) for g in gradients]).mean(0))
    weights = [0.1, 0.2, 0.3, 0.4, 0.0]
    weighted = gns_curvature.empirical_fisher(lambda x: gradients, weights)(normal(3)).dense()
    torch.testing.assert_close(weighted, sum(w * torch.outer(g, g) for w, g in zip(weights, gradients, strict=True)))


def test_zero_makes_normalised_gradient_steps() -> None:
    root = normal(3, 3)
    metric, target = root @ root.T + torch.eye(3, dtype=torch.float64), normal(3, seed=1)

    def value_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        return 50 * (x - target) @ (x - target), 100 * (x - target)

    start = torch.zeros(3, dtype=torch.float64)
    trace = minimize(value_and_gradient, gns_curvature.zero, start, metric=metric, gamma=1e-3, max_iterations=1)
    gradient = value_and_gradient(start)[1].numpy()
    ascent = np.linalg.solve(metric.numpy(), gradient)
    np.testing.assert_allclose(trace.x, -(1e-3 + 1e-8) * ascent / np.sqrt(gradient @ ascent), rtol=1e-10)


@pytest.mark.parametrize("name", ["fisher", "zero"])
def test_woodbury_is_the_dense_solution(name: str) -> None:
    problem = dataclasses.replace(
        gns_problems.linear_operator(5, 8), metric=torch.diag(torch.arange(1.0, 9.0)).double()
    )
    low_rank = run(problem, name, max_iterations=15)
    factors = problem.curvatures[name]
    dense = minimize(
        problem.value_and_gradient, lambda x: factors(x).dense(), problem.x0, metric=problem.metric, max_iterations=15
    )
    assert low_rank.gammas == dense.gammas
    torch.testing.assert_close(low_rank.x, dense.x, rtol=1e-9, atol=1e-10)


def test_conjugate_gradients_need_products_alone() -> None:
    problem = gns_problems.log_sum_exp(12, 15)
    products = gns_curvature.exact_products(problem.function)
    by_products = minimize(problem.value_and_gradient, products, problem.x0, metric=problem.metric)
    by_matrix = run(problem, "exact")
    assert by_products.iterations == by_matrix.iterations
    torch.testing.assert_close(by_products.x, by_matrix.x, rtol=0, atol=1e-7)


def recorded(curvature: Callable[[Tensor], object], start: float = 1.0, **options: object) -> tuple[gns.Trace, list]:
    """½x² in one dimension, with what was asked for, in order."""
    asked: list[tuple[str, float]] = []

    def value_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(("f", float(x)))
        return x @ x / 2, x

    def curve(x: Tensor) -> object:
        asked.append(("H", float(x)))
        return curvature(x)

    return minimize(value_and_gradient, curve, [start], **options), asked


@pytest.mark.parametrize("kind", ["matrix", "products"])
def test_an_indefinite_matrix_shrinks_gamma_and_no_stale_step_is_made(kind: str) -> None:
    def curvature(x: Tensor) -> object:
        return torch.tensor([[-10.0]]) if kind == "matrix" else Products(lambda v: -10 * v)

    trace, asked = recorded(curvature, max_iterations=1)
    shift, points = 1.0, []
    while len(points) < trace.evaluations - 1:
        if shift > 10:
            points.append(1 - 1 / (shift - 10))
        shift *= 2
    assert [point for name, point in asked if name == "f"] == pytest.approx([1.0, *points], rel=1e-6)
    assert trace.values[1] < trace.values[0]
    assert trace.gammas[1] == pytest.approx(2 * 2 / shift)


def test_a_search_that_finds_nothing_ends_where_it_was() -> None:
    trace, asked = recorded(lambda x: torch.tensor([[-1e30]]))
    assert (trace.iterations, trace.evaluations, trace.converged) == (0, 1, False)
    assert float(trace.x) == 1.0
    assert asked == [("f", 1.0), ("H", 1.0)]


def test_the_hessian_is_asked_for_once_an_iteration_where_f_and_g_are() -> None:
    trace, asked = recorded(lambda x: torch.zeros(1, 1), gamma=64.0)
    points = [point for name, point in asked if name == "H"]
    assert len(points) == trace.iterations == len(trace.values) - 1 == len(trace.gammas) - 1
    assert trace.evaluations == sum(name == "f" for name, _ in asked)
    for position, (name, point) in enumerate(asked):
        if name == "H":
            assert asked[position - 1] == ("f", point)


def test_it_stops_on_the_gradient_in_the_dual_norm_not_on_the_value() -> None:
    assert recorded(lambda x: torch.eye(1), start=0.0)[0].iterations == 0
    assert recorded(lambda x: torch.eye(1), start=1e-7, tolerance=1e-6)[0].converged
    assert recorded(lambda x: torch.eye(1), start=1e-7, tolerance=1e-8)[0].iterations > 0
    large = recorded(lambda x: torch.eye(1), start=1e-3, tolerance=1e-4, metric=[[1e4]])[0]
    assert (large.converged, large.iterations) == (True, 0)


def test_every_accepted_step_makes_the_promised_progress() -> None:
    problem = gns_problems.rosenbrock()
    trace = run(problem, "exact")
    assert all(after < before for before, after in zip(trace.values, trace.values[1:], strict=False))
    assert all(gamma > 0 for gamma in trace.gammas)


def test_a_trial_that_is_not_a_number_is_rejected() -> None:
    def value_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - torch.log(x)).sum(), 1 - 1 / x

    trace = minimize(value_and_gradient, gns_curvature.zero, [3.0], gamma=1000.0)
    assert trace.converged
    assert float(trace.x) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": [[1.0, 0.0], [0.0, -1.0]]}, "positive definite"),
        ({"metric": [[1.0]]}, "shape"),
        ({"gamma": 0.0}, "gamma"),
        ({"x0": [float("nan"), 0.0]}, "finite"),
        ({"curvature": lambda x: torch.zeros(3, 3)}, "curvature: given shape"),
    ],
)
def test_it_refuses(options: dict[str, object], message: str) -> None:
    problem = gns_problems.rosenbrock()
    arguments = {"curvature": problem.curvatures["exact"], "x0": problem.x0, **options}
    with pytest.raises(FedsimError, match=message):
        minimize(problem.value_and_gradient, **arguments)
    with pytest.raises(FedsimError, match="power"):
        gns_curvature.fisher(lambda x: x, 1.5)


class Client:
    """Logistic regression on a share of the examples; all weights are of the pooled mean."""

    def __init__(self, inputs: Tensor, labels: Tensor, total: int) -> None:
        self.inputs, self.labels, self.total = inputs, labels, total

    def value(self, x: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-self.labels * (self.inputs @ x)).sum() / self.total

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gradient, value = torch.func.grad_and_value(self.value)(x)
        return value, gradient

    def gauss_newton(self, x: Tensor) -> Tensor:
        def weights(y: Tensor) -> Tensor:
            share = torch.sigmoid(self.inputs @ y)
            return share * (1 - share) / self.total

        return gns_curvature.weighted_gauss_newton(lambda y: self.inputs @ y, weights)(x)

    def fisher(self, x: Tensor) -> Tensor:
        def gradients(y: Tensor) -> Tensor:
            return -(self.labels * torch.sigmoid(-self.labels * (self.inputs @ y)))[:, None] * self.inputs

        weights = torch.full((len(self.labels),), 1 / self.total, dtype=torch.float64)
        return gns_curvature.empirical_fisher(gradients, weights)(x).dense()


@pytest.mark.parametrize("approximation", ["gauss_newton", "fisher"])
def test_a_server_that_sums_over_unequal_clients_makes_the_centralised_steps(approximation: str) -> None:
    inputs = normal(60, 5)
    labels = torch.sign(inputs @ normal(5, seed=1) + normal(60, seed=2))
    bounds = [(0, 7), (7, 12), (12, 60)]
    clients = [Client(inputs[low:high], labels[low:high], 60) for low, high in bounds]
    pooled = Client(inputs, labels, 60)
    start = torch.zeros(5, dtype=torch.float64)
    central = minimize(pooled.value_and_gradient, getattr(pooled, approximation), start, tolerance=1e-7)

    method, exchanges = search(start, tolerance=1e-7), 0
    request = next(method)
    try:
        while True:
            exchanges += 1
            if isinstance(request, Evaluate):
                parts = [client.value_and_gradient(request.x) for client in clients]
                request = method.send((sum(value for value, _ in parts), sum(gradient for _, gradient in parts)))
            else:
                assert isinstance(request, Curve)
                request = method.send(sum(getattr(client, approximation)(request.x) for client in clients))
    except StopIteration as finished:
        federated = finished.value

    assert central.converged
    assert federated.gammas == central.gammas
    torch.testing.assert_close(federated.x, central.x, rtol=0, atol=1e-10)
    assert exchanges == federated.evaluations + federated.iterations
    theirs = scipy.optimize.minimize(
        lambda x: float(pooled.value(torch.from_numpy(x))), np.zeros(5), method="BFGS", tol=1e-9
    )
    np.testing.assert_allclose(federated.x, theirs.x, atol=1e-4)
