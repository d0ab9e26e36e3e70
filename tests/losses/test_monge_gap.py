"""The Monge gap against closed forms of Gaussians, the Sinkhorn parts against plain iterations, and fitted maps."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import fedsim
from fedsim import losses
from fedsim.errors import FedsimError
from fedsim.losses import MongeMap, fit_monge_map, linear_monge_gap, monge_gap, sinkhorn_divergence
from fedsim.losses.sinkhorn import cost_matrix, entropic_cost, entropic_self_cost, pair_costs

QUARTER = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


def whitened(x: Tensor) -> Tensor:
    """The same cloud with the identity as its second moments."""
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / len(x))).T


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rotation_by_a_quarter_is_4() -> None:
    """On a cloud that the rotation maps onto itself the best assignment moves nothing, so that the gap is exact."""
    x = normal(32, 2)
    cloud = torch.cat([x, x @ QUARTER.T, -x, -x @ QUARTER.T])
    cloud = cloud / (cloud.square().sum(1).mean() / 2).sqrt()
    assert float(monge_gap(cloud, cloud @ QUARTER.T)) == pytest.approx(4.0, abs=1e-12)
    assert float(linear_monge_gap(QUARTER)) == pytest.approx(4.0)


def test_reflection_in_four_dimensions_is_16() -> None:
    x = normal(100, 4)
    cloud = whitened(torch.cat([x, -x]))
    assert float(monge_gap(cloud, -cloud)) == pytest.approx(16.0, abs=1e-12)
    assert float(linear_monge_gap(-torch.eye(4))) == pytest.approx(16.0)


def test_positive_definite_maps_and_translations_have_none() -> None:
    x, root = normal(200, 3), normal(3, 3, seed=1)
    spd = root @ root.T + 0.1 * torch.eye(3, dtype=torch.float64)
    assert float(monge_gap(x, x @ spd)) == pytest.approx(0.0, abs=1e-12)
    assert float(linear_monge_gap(spd)) == pytest.approx(0.0, abs=1e-12)
    for cost in ("squared_euclidean", "euclidean", "manhattan"):
        assert float(monge_gap(x, x + torch.tensor([3.0, -1.0, 2.0]), cost=cost)) == pytest.approx(0.0, abs=1e-12)


def test_samples_come_to_the_gap_of_the_distributions() -> None:
    x, matrix = normal(600, 2), torch.tensor([[0.6, -1.2], [0.9, 1.4]], dtype=torch.float64)
    exact = float(linear_monge_gap(matrix))
    assert exact == pytest.approx(2 * (math.hypot(2.0, 2.1) - 2.0))  # ‖M‖_*² = (a + d)² + (b − c)² if det M > 0
    assert float(monge_gap(x, x @ matrix.T)) == pytest.approx(exact, rel=0.2)


@pytest.mark.parametrize("cost", ["squared_euclidean", "euclidean", "manhattan", "cosine"])
def test_gap_is_not_negative_and_as_scipy_has_it(cost: str) -> None:
    x, y = normal(40, 3), normal(40, 3, seed=1)
    costs = cost_matrix(x, y, cost).numpy()
    wanted = costs.diagonal().mean() - costs[linear_sum_assignment(costs)].mean()
    assert float(monge_gap(x, y, cost=cost)) == pytest.approx(wanted)
    assert wanted > 0
    order = torch.as_tensor(linear_sum_assignment(costs)[1])
    assert float(monge_gap(x, y[order], cost=cost)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("method", ["exact", "entropic"])
def test_any_function_is_a_cost(method: str) -> None:
    x, y = normal(20, 3), normal(20, 3, seed=1)
    ours = monge_gap(x, y, cost=lambda a, b: (a - b).square().sum(-1), method=method)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, monge_gap(x, y, method=method))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["exact", "entropic"])
@pytest.mark.parametrize("cost", ["squared_euclidean", "euclidean"])
def test_envelope_gradients_are_those_of_finite_differences(method: str, cost: str) -> None:
    x, y = normal(10, 2), normal(10, 2, seed=1)
    epsilon = 0.5 if method == "entropic" else None

    def gap(a: Tensor, b: Tensor) -> Tensor:
        return monge_gap(a, b, cost=cost, method=method, epsilon=epsilon)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(gap, (x.requires_grad_(), y.requires_grad_()), atol=2e-4)
    assert torch.autograd.gradcheck(
        lambda a, b: sinkhorn_divergence(a, b, cost=cost, epsilon=0.5),  # type: ignore[arg-type]
        (x, y),
        atol=2e-4,
    )


def test_entropic_gap_has_a_floor_of_epsilon_log_n_and_the_exact_one_has_none() -> None:
    """Trap: an entropic gap of an optimal map is not 0."""
    x = torch.arange(50, dtype=torch.float64)[:, None]
    assert float(monge_gap(x, x + 1)) == pytest.approx(0.0, abs=1e-12)
    floor = 0.02 * math.log(50)
    assert float(monge_gap(x, x, method="entropic", epsilon=0.02)) == pytest.approx(floor, rel=1e-6)


def test_default_epsilon_is_a_twentieth_of_the_costs_deviation() -> None:
    x, y = normal(30, 2), normal(30, 2, seed=1)
    epsilon = 0.05 * float(cost_matrix(x, y).std(correction=0))
    wanted = monge_gap(x, y, method="entropic", epsilon=epsilon)
    torch.testing.assert_close(monge_gap(x, y, method="entropic"), wanted)


def plain_sinkhorn(costs: Tensor, epsilon: float) -> Tensor:
    """⟨P, C⟩ − ε H(P) after 3,000 scalings."""
    n, m = costs.shape
    kernel = torch.exp(-costs / epsilon)
    v = torch.ones(m, dtype=costs.dtype)
    for _ in range(3_000):
        u = 1 / (n * (kernel @ v))
        v = 1 / (m * (kernel.T @ u))
    plan = u[:, None] * kernel * v
    return (plan * costs).sum() + epsilon * (plan * plan.log()).sum()


def test_entropic_cost_is_that_of_the_plain_iteration() -> None:
    x, y = normal(12, 2), normal(9, 2, seed=1)
    between, within = cost_matrix(x, y), cost_matrix(x, x)
    torch.testing.assert_close(entropic_cost(between, 0.3), plain_sinkhorn(between, 0.3), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(entropic_self_cost(within, 0.3), plain_sinkhorn(within, 0.3), rtol=1e-6, atol=1e-4)


def test_small_epsilon_neither_overflows_nor_underflows() -> None:
    """A kernel exp(−C/ε) would be 0 everywhere: costs of 10⁴ at ε = 1."""
    x, y = normal(30, 2), normal(30, 2, seed=1) + 100
    costs = cost_matrix(x, y)
    rows, columns = linear_sum_assignment(costs.numpy())
    exact = float(costs[rows, columns].mean())
    value = float(entropic_cost(costs, 1.0))
    assert exact - math.log(30**2) <= value <= exact
    assert math.isfinite(float(entropic_cost(costs, 0.05)))


def test_divergence_of_a_sample_with_itself_is_0_and_of_a_translation_its_square() -> None:
    x = normal(60, 2)
    assert float(sinkhorn_divergence(x, x)) == pytest.approx(0.0, abs=1e-4)
    assert float(sinkhorn_divergence(x, x + torch.tensor([3.0, 4.0]), epsilon=0.5)) == pytest.approx(25.0, abs=1e-3)
    assert float(sinkhorn_divergence(x, normal(90, 2, seed=2))) > 0


def test_gradients_are_finite_where_a_map_starts_as_the_identity() -> None:
    """Trap: the root of |x − y|² has no gradient at 0."""
    x = normal(20, 3).requires_grad_()
    mapped = x * 1.0
    for method in ("exact", "entropic"):
        gap = monge_gap(x, mapped, cost="euclidean", method=method)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(gap, x, retain_graph=True)
        assert bool(gradient.isfinite().all())


def test_permuted_classes_cost_the_divergence_nothing_and_the_gap_much() -> None:
    """Trap: without the gap a map that swaps two clusters is as good as one that keeps them."""
    left, right = normal(30, 2) * 0.1 - 2, normal(30, 2, seed=1) * 0.1 + 2
    x, swapped = torch.cat([left, right]), torch.cat([right, left])
    torch.testing.assert_close(sinkhorn_divergence(swapped, x), sinkhorn_divergence(x, x))
    assert float(monge_gap(x, swapped)) > 30
    assert float(monge_gap(x, x)) == 0


def test_the_function_stays_when_its_module_is_imported() -> None:
    """The function has its module's name, and an import of a module binds that name on the package."""
    import importlib

    importlib.import_module("fedsim.losses.monge_gap")
    assert callable(losses.monge_gap)
    assert callable(fedsim.losses.monge_gap)
    assert all(callable(getattr(losses, name)) for name in losses.__all__)


def test_map_is_the_identity_at_the_start_and_trains_reproducibly() -> None:
    def fitted() -> tuple[Tensor, losses.monge_map.MongeFit]:
        torch.manual_seed(0)
        model = MongeMap(2, hidden=[16])
        x = normal(64, 2).float()
        assert torch.equal(model(x), x)
        fit = fit_monge_map(model, x, x + 1.0, steps=12, batch_size=64, generator=torch.Generator().manual_seed(1))
        return nn.utils.parameters_to_vector(model.parameters()).detach(), fit

    (first, fit), (second, _) = fitted(), fitted()
    assert torch.equal(first, second)
    assert len(fit.divergences) == len(fit.gaps) == 12
    assert fit.divergences[-1] < fit.divergences[0]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: monge_gap(x, x[:-1]),
        lambda x: monge_gap(x[:0], x[:0]),
        lambda x: monge_gap(x, x, cost="euclid"),
        lambda x: monge_gap(x, x, method="exakt"),
        lambda x: monge_gap(x, x, epsilon=0.1),
        lambda x: monge_gap(x, x, method="entropic", epsilon=0.0),
        lambda x: monge_gap(x, x * float("nan")),
        lambda x: monge_gap(x, x * float("nan"), method="entropic"),
        lambda x: fit_monge_map(MongeMap(2), x, x[:, :1]),
        lambda x: fit_monge_map(MongeMap(2), x, x, gap_weight=-1.0),
        lambda x: pair_costs(x, x, "l2"),
    ],
)
def test_refuses(call: object) -> None:
    with pytest.raises(FedsimError, match="accepted"):
        call(normal(8, 2))  # type: ignore[operator]


def spd(d: int, seed: int, low: float, high: float) -> Tensor:
    """A positive definite matrix with eigenvalues from low to high."""
    basis, _ = torch.linalg.qr(normal(d, d, seed=seed))
    return basis @ torch.diag(torch.linspace(low, high, d, dtype=torch.float64)) @ basis.T


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fit_of_a_gaussian_recovers_the_transport_map(seed: int) -> None:
    """L2-UVP = 100 · E|T − T*|² / Var(ν), on fresh points: .97, .62, .67 with the gap; 7.2, 23, 2.1 without."""
    matrix, shift = spd(2, seed, 0.5, 2.0).float(), torch.tensor([2.0, -1.0])
    x, y, fresh = (normal(n, 2, seed=10 * seed + k).float() for k, n in enumerate((4096, 4096, 4096)))
    errors = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(seed)
        model = MongeMap(2)
        generator = torch.Generator().manual_seed(seed)
        fit_monge_map(model, x, y @ matrix + shift, gap_weight=weight, generator=generator)
        with torch.no_grad():
            off = (model(fresh) - fresh @ matrix - shift).square().sum(1).mean()
        errors[weight] = float(100 * off / matrix.square().sum())
    assert errors[1.0] <= 3.0
    assert errors[0.0] >= 2 * errors[1.0]


@pytest.mark.slow
def test_adapter_brings_shifted_features_back_and_keeps_their_classes() -> None:
    """Five classes in eight dimensions, seen through a positive definite map; nearest centre classifies.

    From a random start the divergence alone swaps classes, with the gap it does not; nor does the residual form.
    """
    d, each = 8, 200
    centres = 3 * normal(5, d, seed=7)
    labels = torch.arange(5).repeat_interleave(each)
    reference = (centres[labels] + normal(5 * each, d, seed=8)).float()
    original = (centres[labels] + normal(5 * each, d, seed=9)).float()
    shifted = original @ spd(d, 3, 0.3, 3.0).float() + 4.0

    def accuracy(features: Tensor) -> float:
        return float((torch.cdist(features, centres.float()).argmin(1) == labels).double().mean())

    def fitted(weight: float, residual: bool) -> float:
        torch.manual_seed(0)
        layers = (nn.Linear(d, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, d))
        model = MongeMap(d) if residual else nn.Sequential(*layers)
        generator = torch.Generator().manual_seed(0)
        fit_monge_map(model, shifted, reference, gap_weight=weight, generator=generator)
        with torch.no_grad():
            return accuracy(model(shifted))

    assert accuracy(original) > 0.99
    assert accuracy(shifted) < 0.56
    assert fitted(0.0, residual=False) < 0.5
    assert fitted(1.0, residual=False) >= 0.96
    assert fitted(1.0, residual=True) >= 0.96
    assert fitted(0.1, residual=True) >= 0.966, "a weaker weight is enough where the map starts as the identity"


def test_a_rotation_is_not_recovered() -> None:
    """Trap: features that came through a rotation go back by the cheapest map, which is another one.

    N(0, diag(4, 1)) turned by a quarter has the covariance diag(1, 4): diag(½, 2) brings it there, without a gap, and
    the rotation, which brings it there as well, has one.
    """
    spread = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    x = whitened(torch.cat([normal(60, 2), -normal(60, 2)])) @ spread
    turned, cheapest = x @ QUARTER.T, x @ torch.diag(torch.tensor([0.5, 2.0], dtype=torch.float64))
    for cloud in (turned, cheapest):
        torch.testing.assert_close(cloud.T @ cloud / len(x), torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
    assert float(monge_gap(x, cheapest)) == pytest.approx(0.0, abs=1e-12)
    assert float(monge_gap(x, turned)) > 1.0
    torch.manual_seed(0)
    model = MongeMap(2, hidden=[32]).double()
    fit_monge_map(model, x, turned, steps=150, batch_size=120, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mapped = model(x)
    near, far = ((mapped - cloud).square().sum(1).mean() for cloud in (cheapest, turned))
    assert float(near) < float(far) / 5


def test_class_proportions_matter() -> None:
    """Trap: an exact map between clouds of other class shares has to move part of a class onto another."""
    left, right = normal(40, 2) * 0.1 - 2, normal(40, 2, seed=1) * 0.1 + 2
    features = torch.cat([left, right])
    wanted = torch.cat([left[:10], right, right + 0.01])[:80]  # a quarter of the left is left, the rest are right
    labels = torch.arange(2).repeat_interleave(40)
    moved = {}
    for name, reference in (("same", features + 0.5), ("other", wanted + 0.5)):
        torch.manual_seed(0)
        model = MongeMap(2, hidden=[32]).double()
        fit_monge_map(model, features, reference, steps=150, batch_size=80, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            moved[name] = float(((model(features)[:, 0] > 0.5).long() == labels).double().mean())
    assert moved["same"] == 1.0
    assert moved["other"] < 0.85
