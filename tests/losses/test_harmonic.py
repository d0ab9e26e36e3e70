"""Harmonic heads: every distance against scipy, the exponent's two readings, and the traps."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from scipy.spatial import distance as scipy_distance
from torch import Tensor
from torch.nn import functional

from fedsim.errors import FedsimError
from fedsim.losses import HarmonicHead, mask_absent, prototype_average
from fedsim.losses.harmonic import (
    Distance,
    class_counts,
    distances,
    harmonic_logits,
    negative_power_logits,
    present_classes,
)

NAMES = get_args(Distance)
B, C, D = 7, 4, 5


def points(seed: int = 0, positive: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(n, D, generator=g, dtype=torch.float64).to(dtype) for n in (B, C))
    return (x.abs(), w.abs()) if positive else (x, w)


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("euclidean", "euclidean", {}),
        ("squared_euclidean", "sqeuclidean", {}),
        ("manhattan", "cityblock", {}),
        ("minkowski", "minkowski", {"p": 3.0}),
        ("minkowski", "minkowski", {"p": 1.0}),
        ("minkowski", "minkowski", {"p": 7.5}),
        ("chebyshev", "chebyshev", {}),
        ("cosine", "cosine", {}),
        ("canberra", "canberra", {}),
    ],
)
@pytest.mark.parametrize("positive", [False, True])
def test_distances_equal_scipy(name: Distance, theirs: str, options: dict[str, float], positive: bool) -> None:
    x, w = points(positive=positive)
    wanted = torch.from_numpy(scipy_distance.cdist(x.numpy(), w.numpy(), theirs, **options))
    torch.testing.assert_close(distances(x, w, name, **options), wanted, rtol=1e-12, atol=1e-14)


def test_bray_curtis_is_scipys_for_non_negative_data_only() -> None:
    x, w = points(positive=True)
    wanted = torch.from_numpy(scipy_distance.cdist(x.numpy(), w.numpy(), "braycurtis"))
    torch.testing.assert_close(distances(x, w, "bray_curtis"), wanted)
    x, w = points()
    ours = distances(x, w, "bray_curtis")
    by_hand = (x[0] - w[1]).abs().sum() / (x[0].abs() + w[1].abs()).sum()
    torch.testing.assert_close(ours[0, 1], by_hand)
    assert ours.min() >= 0
    assert ours.max() <= 1
    assert (ours - torch.from_numpy(scipy_distance.cdist(x.numpy(), w.numpy(), "braycurtis"))).abs().max() > 0.01


def test_mahalanobis_equals_scipy_with_the_factors_product() -> None:
    x, w = points()
    factor = torch.randn(D, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inverse = (factor @ factor.T).numpy()
    wanted = torch.from_numpy(scipy_distance.cdist(x.numpy(), w.numpy(), "mahalanobis", VI=inverse))
    torch.testing.assert_close(distances(x, w, "mahalanobis", factor=factor), wanted)


def test_soft_hamming_by_hand_and_in_its_limit() -> None:
    x, w = torch.tensor([[0.0, 1.0, 2.0, 5.0]]), torch.tensor([[0.0, 1.0, 3.0, 7.0]])
    wanted = (2 - torch.exp(torch.tensor(-1.0)) - torch.exp(torch.tensor(-4.0))) / 4
    torch.testing.assert_close(distances(x, w, "hamming").squeeze(), wanted)
    hard = scipy_distance.hamming(x[0].numpy(), w[0].numpy())
    assert float(distances(x, w, "hamming", temperature=0.1)) == pytest.approx(hard)


def test_mahalanobis_learns_its_factor_and_starts_as_euclidean() -> None:
    torch.manual_seed(0)
    head = HarmonicHead(D, C, distance="mahalanobis")
    x = points(dtype=torch.float32)[0]
    torch.testing.assert_close(head.distances(x), distances(x, head.weight, "euclidean"))
    functional.cross_entropy(head(x), torch.arange(B) % C).backward()
    assert head.factor is not None
    assert head.factor.grad is not None
    assert head.factor.grad.abs().max() > 1e-4
    assert {name for name, _ in head.named_parameters()} == {"weight", "factor"}


def test_squared_with_n_equals_euclidean_with_twice_n() -> None:
    x, w = points()
    squared = harmonic_logits(distances(x, w, "squared_euclidean"), 4.0, eps=1e-300)
    torch.testing.assert_close(squared, harmonic_logits(distances(x, w, "euclidean"), 8.0, eps=1e-300))


def test_probabilities_are_inverse_powers_of_the_distance() -> None:
    torch.manual_seed(0)
    head = HarmonicHead(D, C, exponent=3.0).double()
    x = points()[0]
    powers = torch.cdist(x, head.weight) ** -3.0
    torch.testing.assert_close(head(x).softmax(1), powers / powers.sum(1, keepdim=True), rtol=1e-6, atol=1e-8)


def test_exponent_is_the_root_of_the_dimension_by_default() -> None:
    assert HarmonicHead(64, 10).exponent == 8.0
    assert HarmonicHead(64, 10, 3.5).exponent == 3.5
    assert [name for name, _ in HarmonicHead(64, 10).named_parameters()] == ["weight"]


@pytest.mark.parametrize("name", NAMES)
def test_no_nan_where_a_row_meets_a_prototype(name: Distance) -> None:
    """Trap: the power form, and the root's gradient, give NaN at x = w_i."""
    torch.manual_seed(0)
    head = HarmonicHead(8, 3, exponent=28.0, distance=name)
    x = torch.cat([head.weight[1:2].detach(), torch.zeros(1, 8), torch.randn(2, 8)]).requires_grad_()
    logits = head(x)
    loss = functional.cross_entropy(logits, torch.tensor([1, 0, 2, 1]))
    gradients = torch.autograd.grad(loss, [x, *head.parameters()])
    assert all(bool(each.isfinite().all()) for each in (logits, loss, *gradients))
    assert logits[0].argmax() == 1
    with torch.no_grad():
        power = head.distances(x) ** -28.0
        assert name == "cosine" or bool((power / power.sum(1, keepdim=True)).isnan().any())  # a cosine is rounded


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name: Distance) -> None:
    x, w = (each.requires_grad_() for each in points(5))
    factor = torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    if name == "mahalanobis":
        assert torch.autograd.gradcheck(lambda a, b, f: distances(a, b, name, factor=f), (x, w, factor))
    else:
        assert torch.autograd.gradcheck(lambda a, b: distances(a, b, name, p=2.5), (x, w))


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_stacked_clients_change_nothing(name: Distance, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(2)
    x, w = (torch.randn(3, n, D, generator=g, dtype=torch.float64).requires_grad_() for n in (B, C))
    whole = distances(x, w, name)
    whole_gradients = torch.autograd.grad(whole.square().sum(), [x, w])
    each = torch.stack([distances(a, b, name) for a, b in zip(x, w, strict=True)])
    torch.testing.assert_close(whole, each, rtol=1e-12, atol=1e-14)
    monkeypatch.setattr("fedsim.losses.harmonic.BROADCAST", 2 * 3 * C * D)
    chunked = distances(x, w, name)
    assert chunked.shape == (3, B, C)
    torch.testing.assert_close(chunked, whole, rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(chunked.square().sum(), [x, w])
    torch.testing.assert_close(gradients, whole_gradients, rtol=1e-9, atol=1e-10)


def test_large_broadcasts_are_not_kept_for_the_way_back() -> None:
    """The broadcast is 16 million numbers; autograd keeps rows and prototypes, and computes the rest again."""
    x, w = torch.randn(400, 64), torch.randn(640, 64, requires_grad=True)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        distances(x, w, "canberra")
    assert sum(kept) < 1_000_000


def test_leading_axes_of_inputs_are_kept() -> None:
    torch.manual_seed(0)
    head = HarmonicHead(D, C, distance="manhattan")
    x = torch.randn(2, 3, D)
    assert head(x).shape == (2, 3, C)
    torch.testing.assert_close(head(x)[1, 2], head(x[1, 2]))


def test_negative_powers_are_not_the_harmonic_loss() -> None:
    """Trap: with −d^{−n} as logits the nearest class is the least likely."""
    near = torch.tensor([[0.5, 1.0, 2.0]])
    assert harmonic_logits(near, 2.0).argmax() == 0
    torch.testing.assert_close(negative_power_logits(near, 2.0, 1e-12), torch.tensor([[-4.0, -1.0, -0.25]]))
    assert negative_power_logits(near, 2.0).argmin() == 0


def test_masked_classes_get_neither_probability_nor_gradient() -> None:
    torch.manual_seed(0)
    head = HarmonicHead(D, C)
    x, labels = torch.randn(B, D), torch.tensor([0, 2, 0, 2, 2, 0, 0])
    present = present_classes(labels, C)
    assert present.tolist() == [True, False, True, False]
    masked = mask_absent(head(x), present)
    assert masked.softmax(1)[:, 1].max() == 0
    loss = functional.cross_entropy(masked, labels)
    torch.testing.assert_close(loss, functional.cross_entropy(head(x)[:, [0, 2]], labels // 2))
    (gradient,) = torch.autograd.grad(loss, head.weight)
    assert gradient[[1, 3]].abs().max() == 0
    (pushed,) = torch.autograd.grad(functional.cross_entropy(head(x), labels), head.weight)
    assert pushed[[1, 3]].abs().min() > 0


def test_prototypes_are_averaged_by_class_counts() -> None:
    weights = torch.tensor([[[1.0], [10.0], [5.0]], [[4.0], [20.0], [7.0]]])
    counts = torch.stack([class_counts(torch.tensor(y), 3) for y in ([0, 0, 1], [0])])
    assert counts.tolist() == [[2, 1, 0], [1, 0, 0]]
    average = prototype_average(weights, counts, torch.tensor([[0.0], [0.0], [-1.0]]))
    torch.testing.assert_close(average, torch.tensor([[2.0], [10.0], [-1.0]]))


@pytest.mark.parametrize(
    "options",
    [
        {"distance": "euclidian"},
        {"exponent": 0.0},
        {"eps": 0.0},
        {"p": 0.5},
        {"temperature": 0.0},
    ],
)
def test_refuses(options: dict[str, object]) -> None:
    with pytest.raises(FedsimError, match="accepted"):
        HarmonicHead(D, C, **options)  # type: ignore[arg-type]


def test_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(FedsimError, match="accepted"):
        distances(torch.ones(2, 3), torch.ones(2, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "exponent", "least", "most"),
    [
        ("cross_entropy", None, 0.91, 0.95),
        ("squared_euclidean", 8.0, 0.915, 0.96),
        ("cosine", 8.0, 0.935, 0.97),
        ("mahalanobis", 8.0, 0.95, 0.99),
        ("euclidean", 1.0, 0.78, 0.88),
    ],
)
def test_digits_table(name: str, exponent: float | None, least: float, most: float) -> None:
    """A linear head on the digits: AdamW 1e-3, batches of 64, 40 epochs."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=0.3, random_state=0, stratify=y)
    x_train, x_test, y_train, y_test = (torch.from_numpy(each) for each in parts)
    torch.manual_seed(0)
    linear = name == "cross_entropy"
    head = torch.nn.Linear(64, 10) if linear else HarmonicHead(64, 10, exponent, name)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in range(40):
        for index in torch.randperm(len(x_train)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(head(x_train[index].float()), y_train[index]).backward()
            optimizer.step()
    accuracy = float((head(x_test.float()).argmax(1) == y_test).double().mean())
    assert least <= accuracy <= most


@pytest.mark.parametrize("distance", get_args(Distance))
def test_a_head_in_half_precision_stays_finite(distance):
    head = HarmonicHead(8, 3, distance=distance).half()
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).half()
    rows[0] = head.weight[0].detach()
    rows.requires_grad_()
    logits = head(rows)
    assert logits.dtype == torch.float16
    torch.nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 2, 0, 1])).backward()
    assert all(bool(each.isfinite().all()) for each in (logits, rows.grad, head.weight.grad))
