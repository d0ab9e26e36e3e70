"""CORAL, IRM, V-REx and Fishr against autograd and plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedsim import losses
from fedsim.errors import FedsimError

N, M, C = 30, 4, 3


def domain(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    features, weight = (torch.randn(n, M, generator=g, dtype=torch.float64) for n in (N, C))
    return features, features @ weight.T, torch.randint(0, C, (N,), generator=g)


def test_coral_is_the_mean_over_pairs_of_moments() -> None:
    clouds = [domain(seed)[0] for seed in range(3)]
    moments = [(x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)) for x in clouds]
    pairs = [
        ((moments[i][0] - moments[j][0]) ** 2).mean() + ((moments[i][1] - moments[j][1]) ** 2).mean()
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert float(losses.coral_penalty(clouds)) == pytest.approx(np.mean(pairs))
    assert float(losses.coral_penalty(clouds[:1])) == 0
    with pytest.raises(FedsimError, match="accepted"):
        losses.coral_penalty([clouds[0][:1]])


def slope(logits: Tensor, labels: Tensor) -> Tensor:
    scale = torch.ones((), dtype=logits.dtype, requires_grad=True)
    return torch.autograd.grad(functional.cross_entropy(scale * logits, labels), scale, create_graph=True)[0]


def test_irm_is_the_squared_slope_of_a_rescaling() -> None:
    _, logits, labels = domain(0)
    logits.requires_grad_()
    ours, theirs = losses.irm_penalty(logits, labels), slope(logits, labels) ** 2
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))
    halves = slope(logits[0::2], labels[0::2]) * slope(logits[1::2], labels[1::2])
    torch.testing.assert_close(losses.irm_penalty_unbiased(logits, labels), halves)


def test_irm_of_one_sigmoid_output() -> None:
    _, logits, labels = domain(1)
    two = torch.stack([torch.zeros(N, dtype=torch.float64), logits[:, 0]], 1)
    binary = (labels > 0).long()
    torch.testing.assert_close(
        losses.irm_penalty(logits[:, 0], binary, head="sigmoid"), losses.irm_penalty(two, binary)
    )


def test_vrex_is_the_variance_of_the_risks() -> None:
    assert float(losses.vrex_penalty([torch.tensor(1.0), torch.tensor(2.0), torch.tensor(6.0)])) == pytest.approx(
        14 / 3
    )
    assert float(losses.vrex_penalty(torch.tensor([2.0, 2.0]))) == 0


def test_fishr_is_the_variance_of_the_heads_gradients_over_examples() -> None:
    domains = [domain(seed) for seed in (2, 3)]
    variances = []
    for features, logits, labels in domains:
        rows = []
        for x, o, y in zip(features, logits, labels, strict=True):
            error = o.softmax(0) - functional.one_hot(y, C)
            rows.append(torch.outer(error, torch.cat([x, torch.ones(1, dtype=x.dtype)])))
        variances.append(torch.stack(rows).var(0, correction=0))
    ours = [losses.gradient_variance(*each) for each in domains]
    torch.testing.assert_close(ours, variances)
    wanted = torch.stack([(each - sum(variances) / 2).square().mean() for each in variances]).mean()
    torch.testing.assert_close(losses.fishr_penalty(ours), wanted)


def test_fishr_average_keeps_the_size_of_the_gradient() -> None:
    average, value = losses.FishrAverage(ema=0.9), torch.tensor([2.0], requires_grad=True)
    (first,), (second,) = average([value]), average([value])
    assert first.tolist() == pytest.approx([2.0])
    assert second.tolist() == pytest.approx([2.0 + 0.9 * 2.0])
    assert torch.autograd.grad(second, value)[0].tolist() == pytest.approx([1.0])
