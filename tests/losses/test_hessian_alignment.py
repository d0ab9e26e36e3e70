"""Hessian alignment's closed forms against autograd's double backward, and both forms of its penalty."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian
from torch.nn import functional

from fedsim import losses
from fedsim.errors import FedsimError
from fedsim.losses.hessian_alignment import Domain, Statistics, alignment_penalty, signs

N, M, C = 40, 5, 3


def domain(seed: int, head: str = "softmax", dtype: torch.dtype = torch.float64, n: int = N) -> tuple[Domain, Tensor]:
    """A domain and its head (C, M + 1)."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, M, generator=g, dtype=torch.float64).to(dtype)
    weight = torch.randn(C, M + 1, generator=g, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, C, (n,), generator=g)
    if head == "sigmoid":
        labels = torch.randint(0, 2, (n, C), generator=g)
    return (features, features @ weight[:, :-1].T + weight[:, -1], labels), weight


def mean_loss(weight: Tensor, features: Tensor, labels: Tensor, head: str) -> Tensor:
    logits = features @ weight[:, :-1].T + weight[:, -1]
    if head == "softmax":
        return functional.cross_entropy(logits, labels)
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="sum") / len(features)


def by_autograd(each: Domain, weight: Tensor, head: str) -> tuple[Tensor, Tensor]:
    """Gradient (C, M + 1) and Hessian (C (M + 1), C (M + 1))."""
    features, _, labels = each
    at = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mean_loss(at, features, labels, head), at)
    size = weight.numel()
    return gradient, hessian(lambda w: mean_loss(w, features, labels, head), weight).reshape(size, size)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-7)])
def test_closed_forms_equal_double_backward(head: str, dtype: torch.dtype, tolerance: float) -> None:
    each, weight = domain(0, head, dtype)
    gradient, full = by_autograd(each, weight, head)
    product = (full @ gradient.reshape(-1)).reshape(C, M + 1)
    for ours, theirs in [
        (losses.head_gradient(*each, head=head), gradient),
        (losses.hessian_gradient_product(*each, head=head), product),
        (losses.hessian_diagonal(*each, head=head), full.diagonal().reshape(C, M + 1)),
    ]:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_one_sigmoid_output_takes_flat_logits_and_labels() -> None:
    (features, _, _), weight = domain(1)
    flat = features @ weight[0, :-1] + weight[0, -1]
    labels = (flat > 0.3).long()
    at = weight[:1].clone().requires_grad_()
    loss = functional.binary_cross_entropy_with_logits(features @ at[0, :-1] + at[0, -1], labels.double())
    (gradient,) = torch.autograd.grad(loss, at)
    torch.testing.assert_close(losses.head_gradient(features, flat, labels, head="sigmoid"), gradient)
    column = losses.head_gradient(features, flat[:, None], labels, head="sigmoid")
    torch.testing.assert_close(column, gradient)


def test_the_bias_is_last() -> None:
    (features, logits, labels), _ = domain(2)
    errors = logits.softmax(1) - functional.one_hot(labels, C)
    torch.testing.assert_close(losses.head_gradient(features, logits, labels)[:, -1], errors.mean(0))


@pytest.mark.parametrize("statistic", ["product", "diagonal"])
def test_gradients_flow_through_the_features(statistic: str) -> None:
    """Against autograd's third derivative: of the double backward's own result, down to the body's parameters."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(N, 4, generator=g, dtype=torch.float64)
    labels = torch.randint(0, C, (N,), generator=g)
    body = torch.randn(M, 4, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(C, M + 1, generator=g, dtype=torch.float64, requires_grad=True)
    features = (x @ body.T).tanh()
    logits = features @ weight[:, :-1].T + weight[:, -1]
    (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, labels), weight, create_graph=True)
    if statistic == "product":
        ours = losses.hessian_gradient_product(features, logits, labels)
        (theirs,) = torch.autograd.grad(gradient, weight, gradient, create_graph=True)
    else:
        ours = losses.hessian_diagonal(features, logits, labels)
        rows = [torch.autograd.grad(each, weight, create_graph=True)[0].reshape(-1) for each in gradient.reshape(-1)]
        theirs = torch.stack(rows).diagonal().reshape(C, M + 1)
    mine = torch.autograd.grad(ours.square().sum(), [body, weight], retain_graph=True)
    other = torch.autograd.grad(theirs.square().sum(), [body, weight])
    assert mine[0].abs().max() > 1e-4
    torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_hutchinson_is_within_five_standard_errors(head: str) -> None:
    each, weight = domain(4, head)
    _, full = by_autograd(each, weight, head)
    samples = 300
    estimate = losses.hessian_diagonal(
        *each, head=head, hutchinson_samples=samples, generator=torch.Generator().manual_seed(0)
    )
    off = full - torch.diag(full.diagonal())
    errors = (off.square().sum(1) / samples).sqrt().reshape(C, M + 1)
    apart = ((estimate - losses.hessian_diagonal(*each, head=head)) / errors).abs()
    assert apart.max() < 5
    assert apart.max() > 0.1


def test_hutchinson_in_chunks_is_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    each, _ = domain(5)

    def estimate() -> Tensor:
        return losses.hessian_diagonal(*each, hutchinson_samples=50, generator=torch.Generator().manual_seed(1))

    whole = estimate()
    monkeypatch.setattr("fedsim.losses.hessian_alignment.CHUNK", 7 * N * C)
    torch.testing.assert_close(estimate(), whole)


def test_reference_is_of_the_mean_loss_not_the_mean_of_products() -> None:
    """Trap: h̄ = H̄ ḡ, by autograd on the mean of the domains' losses."""
    both, weight = [domain(6, n=30)[0], domain(7, n=50)[0]], domain(6)[1]
    both = [(x, x @ weight[:, :-1].T + weight[:, -1], y) for x, _, y in both]
    parts = [by_autograd(each, weight, "softmax") for each in both]
    for weights, shares in ((None, (0.5, 0.5)), ([30, 50], (0.375, 0.625))):
        mean = sum(share * each[0] for share, each in zip(shares, parts, strict=True))
        full = sum(share * each[1] for share, each in zip(shares, parts, strict=True))
        statistics = losses.hgp_statistics(both, weights=weights)
        torch.testing.assert_close(statistics.mean_gradient, mean)
        torch.testing.assert_close(statistics.mean_hessian, (full @ mean.reshape(-1)).reshape(C, M + 1))
        assert (statistics.mean_hessian - statistics.hessians.mean(0)).abs().max() > 1e-4
        diagonal = losses.diagonal_statistics(both, weights=weights)
        torch.testing.assert_close(diagonal.mean_hessian, full.diagonal().reshape(C, M + 1))
    pooled = [torch.cat(each) for each in zip(*both, strict=True)]
    torch.testing.assert_close(statistics.mean_hessian, losses.hessian_gradient_product(*pooled))


def simple() -> Statistics:
    gradients = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])
    hessians = torch.tensor([[[0.0, 1.0]], [[2.0, 1.0]]])
    return Statistics(gradients, hessians, gradients.mean(0), hessians.mean(0))


def test_both_forms_by_hand() -> None:
    statistics = simple()  # ‖g_e − ḡ‖² = 2 each, ‖h_e − h̄‖² = 1 each
    assert float(losses.domainbed_penalty(statistics, alpha=10.0, beta=1.0)) == pytest.approx(12.0)
    assert float(losses.cmnist_penalty(statistics, alpha=10.0, beta=1.0)) == pytest.approx(24.0)
    assert float(losses.cmnist_penalty(statistics)) == pytest.approx(6.0)
    one = alignment_penalty(
        statistics.gradients[0],
        statistics.hessians[0],
        statistics.mean_gradient,
        statistics.mean_hessian,
        alpha=10.0,
        beta=1.0,
    )
    assert float(one) == pytest.approx(12.0)


@pytest.mark.parametrize("of", ["gradients", "hessians"])
def test_domainbed_holds_the_references_and_cmnist_does_not(of: str) -> None:
    """Trap: detached or not shows in the gradient of a reference that is not the plain mean of its parts."""
    parts, none = torch.tensor([[[1.0]], [[3.0]]], requires_grad=True), torch.zeros(1, 1)
    mean = 0.25 * parts[0] + 0.75 * parts[1]
    both = ((parts, parts * 0), (mean, none)) if of == "gradients" else ((parts * 0, parts), (none, mean))
    weighted = Statistics(*both[0], *both[1])
    (held,) = torch.autograd.grad(losses.domainbed_penalty(weighted, alpha=1.0, beta=1.0), parts, retain_graph=True)
    torch.testing.assert_close(held.reshape(-1), torch.tensor([-1.5, 0.5]))
    (moved,) = torch.autograd.grad(losses.cmnist_penalty(weighted), parts)
    torch.testing.assert_close(moved.reshape(-1), torch.tensor([-3.0 + 0.5, 1.0 + 1.5]))


def test_lambda_schedule_and_division_by_lambda() -> None:
    """Trap: λ = 1 is not divided, λ > 1 divides the whole loss, its weight decay too."""
    assert [losses.cmnist_weight(step) for step in (0, 189, 190, 500)] == [1.0, 1.0, 91257.186, 91257.186]
    loss, penalty = torch.tensor(3.0), torch.tensor(0.5)
    assert float(losses.cmnist_objective(loss, penalty, 1.0)) == 3.5
    assert float(losses.cmnist_objective(loss, penalty, 10.0)) == pytest.approx(0.8)


def test_domains_alike_have_no_penalty() -> None:
    each, _ = domain(8)
    for statistics in (losses.hgp_statistics([each, each]), losses.diagonal_statistics([each, each])):
        assert float(losses.cmnist_penalty(statistics)) < 1e-28


@pytest.mark.parametrize(
    "call",
    [
        lambda x, o, y: losses.head_gradient(x, o[:-1], y),
        lambda x, o, y: losses.head_gradient(x, o, y.double()),
        lambda x, o, y: losses.head_gradient(x[:0], o[:0], y[:0]),
        lambda x, o, y: losses.head_gradient(x, o[:, :1], y * 0),
        lambda x, o, y: losses.head_gradient(x, o, y, head="probit"),
        lambda x, o, y: losses.hessian_diagonal(x, o, hutchinson_samples=0),
        lambda x, o, y: losses.hessian_vector_product(x, o, torch.ones(C, M)),
        lambda x, o, y: losses.hgp_statistics([]),
        lambda x, o, y: losses.hgp_statistics([(x, o, y)], weights=[1.0, 2.0]),
    ],
)
def test_refuses(call: object) -> None:
    with pytest.raises(FedsimError, match="accepted"):
        call(*domain(9)[0])  # type: ignore[operator]


def analogue(flip: float, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ten numbers of shape, 2.5 standard deviations apart, and a colour that is the (noisy) label but for flips."""
    digit = torch.randint(0, 2, (n,), generator=g)
    label = digit ^ (torch.rand(n, generator=g) < 0.25).long()
    colour = label ^ (torch.rand(n, generator=g) < flip).long()
    shape = torch.randn(n, 10, generator=g)
    shape[:, 0] += 2.5 * (digit - 0.5)
    return torch.cat([shape, 2.0 * (colour[:, None] - 0.5)], 1), label


@pytest.mark.slow
@pytest.mark.parametrize("method", ["erm", "hgp", "diagonal"])
def test_synthetic_analogue_of_coloured_mnist(method: str) -> None:
    """ERM follows the colour; aligned, an MLP of 32-32 does not (about .55; the digit's own limit is .70)."""
    g = torch.Generator().manual_seed(0)
    train, (x_test, y_test) = [analogue(flip, 5000, g) for flip in (0.2, 0.1)], analogue(0.9, 5000, g)
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(11, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU())
    head = torch.nn.Linear(32, 1)
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for step in range(501):
        domains = [(features := body(x), head(features), y) for x, y in train]
        risks = [functional.binary_cross_entropy_with_logits(o.squeeze(1), y.float()) for _, o, y in domains]
        loss = torch.stack(risks).mean() + 0.0011 * sum(each.square().sum() for each in parameters)
        if method != "erm":
            of = losses.hgp_statistics if method == "hgp" else losses.diagonal_statistics
            penalty = losses.cmnist_penalty(of(domains, head="sigmoid"))
            loss = losses.cmnist_objective(loss, penalty, losses.cmnist_weight(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = float(((head(body(x_test)).squeeze(1) > 0) == y_test.bool()).float().mean())
    assert accuracy < 0.2 if method == "erm" else accuracy > 0.5


def test_signs_of_a_seed_are_fair_coins_wherever_they_are_cut() -> None:
    z = signs(torch.tensor(5), (200_000,)).double()
    assert set(z.tolist()) == {-1.0, 1.0}
    assert abs(float(z.mean())) < 5 / 200_000**0.5
    for lag in (1, 2, 7, 64):
        assert abs(float((z[:-lag] * z[lag:]).mean())) < 5 / 200_000**0.5
    other = signs(torch.tensor(6), (200_000,)).double()
    assert abs(float((z * other).mean())) < 5 / 200_000**0.5
    assert torch.equal(signs(torch.tensor(5), (10, 7), start=30).double().flatten(), z[30:100])


def test_the_estimate_from_a_seed_is_within_its_error_of_the_exact_diagonal() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    logits = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    exact = losses.hessian_diagonal(features, logits)
    z = signs(torch.tensor(11), (4000, 4, 7)).double()
    single = z * losses.hessian_vector_product(features, logits, z)
    error = single.std(0) / 4000**0.5
    estimate = losses.hessian_diagonal(features, logits, hutchinson_samples=4000, seed=torch.tensor(11))
    torch.testing.assert_close(estimate, single.mean(0))
    assert bool(((estimate - exact).abs() < 5 * error).all())
