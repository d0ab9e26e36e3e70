"""Coherence: the toy of the paper to the digit, additivity, the mini-batch law by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import fedsim
from fedsim.analysis.coherence import Coherence, GradientSums, between_clients, coherence, of_minibatches
from fedsim.errors import FedsimError


def toy(*, shared: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows ±(e_i + e_6), i = 1 … 4, or ±e_i, with their signs as labels."""
    signs = np.array([1.0, -1.0, -1.0, 1.0])
    rows = np.eye(6)[:4] + (np.eye(6)[5] if shared else 0)
    return signs[:, None] * rows, signs


def gradients(inputs: NDArray[np.float64], labels: NDArray[np.float64], weights: NDArray[np.float64]):
    return 2 * (inputs @ weights - labels)[:, None] * inputs


def test_it_is_reached_by_its_public_name() -> None:
    assert fedsim.analysis.coherence is coherence
    assert fedsim.analysis.Coherence is Coherence


@pytest.mark.parametrize(("shared", "m_coherence", "test_loss"), [(True, 2.5, 0.04), (False, 1.0, 1.0)])
def test_the_papers_toy(shared: bool, m_coherence: float, test_loss: float) -> None:
    inputs, labels = toy(shared=shared)
    first = coherence(gradients(inputs, labels, np.zeros(6)))
    assert first.m_coherence == pytest.approx(m_coherence, abs=1e-12)
    assert first.alpha == pytest.approx(m_coherence / 4, abs=1e-12)
    weights = np.zeros(6)
    for _ in range(2000):
        weights -= 0.1 * gradients(inputs, labels, weights).mean(0)
    unseen = -(np.eye(6)[4] + (np.eye(6)[5] if shared else 0))
    assert (unseen @ weights + 1) ** 2 == pytest.approx(test_loss, abs=1e-9)


def test_the_ends_of_the_scale() -> None:
    assert coherence(np.eye(7)).m_coherence == pytest.approx(1)
    assert coherence(np.tile([1.0, -2.0], (7, 1))) == Coherence(pytest.approx(7), pytest.approx(1))
    assert coherence(np.array([[1.0, 2.0], [-1.0, -2.0]])) == Coherence(0.0, 0.0)


def test_where_there_is_no_gradient_there_is_nothing_to_agree_on() -> None:
    for nothing in (np.zeros((3, 2)), np.zeros((0, 2))):
        assert math.isnan(coherence(nothing).m_coherence)
        assert math.isnan(coherence(nothing).alpha)


matrices = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).normal(0.3, 1, (9, 4)))


@given(matrices, st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_it_is_bounded_and_knows_no_scale_order_or_rotation(matrix: NDArray[np.float64], scale: float) -> None:
    ours = coherence(matrix)
    cosine_sum = float((matrix @ matrix.T).sum())
    assert ours.m_coherence == pytest.approx(cosine_sum / np.trace(matrix @ matrix.T))
    assert 0 <= ours.m_coherence <= 9
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    assert coherence(scale * matrix[::-1] @ rotation).m_coherence == pytest.approx(ours.m_coherence)


@given(matrices, st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_clients_report_the_pooled_coherence_exactly(matrix: NDArray[np.float64], cut: int) -> None:
    parts = [matrix[:cut], matrix[cut:8], matrix[max(cut, 8) :]]
    together = sum((GradientSums.of(part) for part in parts[1:]), GradientSums.of(parts[0]))
    assert together.examples == 9
    assert together.coherence().m_coherence == pytest.approx(coherence(matrix).m_coherence, rel=1e-12)
    assert together.coherence().alpha == pytest.approx(coherence(matrix).alpha, rel=1e-12)


def test_the_mean_of_the_clients_coherences_is_not_the_pooled_one() -> None:
    opposite = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[-1.0, 0.0], [-1.0, 0.0]])
    assert [coherence(part).alpha for part in opposite] == [1, 1]
    assert (GradientSums.of(opposite[0]) + GradientSums.of(opposite[1])).coherence().alpha == 0


def test_between_clients() -> None:
    assert between_clients(np.eye(5)) == pytest.approx(1 / 5)
    assert between_clients(np.tile([3.0, 4.0], (5, 1))) == pytest.approx(1)
    clients = np.random.default_rng(0).normal(0.5, 1, (6, 11))
    expected = np.linalg.norm(clients.mean(0)) ** 2 / np.mean(np.linalg.norm(clients, axis=1) ** 2)
    assert between_clients(clients) == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_the_law_of_mini_batches_by_simulation(size: int) -> None:
    generator = np.random.default_rng(0)
    matrix = generator.normal(0.5, 1, (50, 8))
    batches = matrix[generator.integers(0, 50, (40_000, size))].mean(1)
    simulated = np.linalg.norm(batches.mean(0)) ** 2 / np.mean(np.linalg.norm(batches, axis=1) ** 2)
    assert of_minibatches(coherence(matrix).alpha, size) == pytest.approx(simulated, rel=0.02)


def test_the_ends_of_the_law() -> None:
    assert of_minibatches(0.0, 10) == 0
    assert of_minibatches(1.0, 10) == 1
    assert of_minibatches(0.3, 1) == pytest.approx(0.3)


def test_torch_and_numpy_give_the_same_and_float32_is_summed_in_float64() -> None:
    matrix = np.random.default_rng(0).normal(1, 1, (100_000, 2)).astype(np.float32)
    exact = coherence(matrix.astype(np.float64)).m_coherence
    assert coherence(matrix).m_coherence == pytest.approx(exact, rel=1e-12)
    tensor = torch.from_numpy(matrix).requires_grad_()
    assert coherence(tensor).m_coherence == pytest.approx(exact, rel=1e-12)
    assert coherence(torch.ones(4, 3, dtype=torch.bfloat16)).m_coherence == pytest.approx(4)


@pytest.mark.parametrize(("alpha", "size"), [(-0.1, 2), (1.1, 2), (0.5, 0)])
def test_it_refuses(alpha: float, size: int) -> None:
    with pytest.raises(FedsimError, match="of_minibatches"):
        of_minibatches(alpha, size)
    with pytest.raises(FedsimError, match="shape"):
        coherence(np.zeros(3))
