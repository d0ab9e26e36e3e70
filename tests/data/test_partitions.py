"""Partitions: nothing is lost or doubled, the seed decides, and each skew is the one that is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import registry
from fedsim.data.examples import DataInfo, Dataset, Examples
from fedsim.errors import ScenarioError


def dataset(labels: np.ndarray, classes: int) -> Dataset:
    n = len(labels)
    examples = Examples(torch.arange(n, dtype=torch.float32)[:, None], torch.from_numpy(labels.astype(np.int64)))
    return Dataset(examples, examples, DataInfo((1,), classes, n, n))


def balanced(n: int, classes: int = 10) -> Dataset:
    return dataset(np.arange(n) % classes, classes)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 300), st.integers(1, 40)).filter(lambda s: s[0] >= s[1]),
    classes=st.integers(1, 12),
    alpha=st.sampled_from([1e-4, 0.01, 0.5, 100.0]),
    seed=st.integers(0, 5),
    name=st.sampled_from(["iid", "dirichlet"]),
)
def test_every_example_goes_to_exactly_one_client(sizes, classes, alpha, seed, name):
    examples, clients = sizes
    labels = np.random.default_rng(seed).integers(0, classes, examples)
    options = {"alpha": alpha} if name == "dirichlet" else {}
    shares = registry.make("partition", name, **options).assign(dataset(labels, classes), clients, seed)
    assert len(shares) == clients
    assert sorted(shares.indices.tolist()) == list(range(examples))
    assert shares.sizes.sum() == examples
    assert shares.sizes.min() >= 1


@pytest.mark.parametrize(("name", "options"), [("iid", {}), ("iid", {"examples": 7}), ("dirichlet", {"alpha": 0.3})])
def test_the_seed_decides(name, options):
    part = registry.make("partition", name, **options)
    first, again, other = (part.assign(balanced(500), 12, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.indices, again.indices)
    np.testing.assert_array_equal(first.offsets, again.offsets)
    assert first.indices.tolist() != other.indices.tolist()


def test_iid_deals_evenly():
    shares = registry.make("partition", "iid").assign(balanced(103), 10, 0)
    assert sorted(shares.sizes.tolist()) == [10] * 7 + [11] * 3


def label_shares(data: Dataset, shares) -> np.ndarray:
    labels = data.train.targets.numpy()
    counts = np.stack([np.bincount(labels[mine], minlength=data.info.num_classes) for mine in shares])
    return counts / counts.sum(axis=1, keepdims=True)


def test_dirichlet_is_skewed_for_small_alpha_and_iid_for_large():
    data = balanced(10_000)
    top = {
        alpha: label_shares(data, registry.make("partition", "dirichlet", alpha=alpha).assign(data, 20, 1))
        .max(axis=1)
        .mean()
        for alpha in (0.05, 0.5, 1000.0)
    }
    assert top[0.05] > 0.65
    assert 0.25 < top[0.5] < 0.6
    assert top[1000.0] < 0.13


def test_dirichlet_gives_the_moments_of_its_distribution():
    """Var of a Dir(α·1) share over K clients is (1/K)(1 - 1/K) / (Kα + 1)."""
    clients, alpha, per_class = 5, 0.7, 4000
    data = balanced(200 * per_class, 200)
    labels = data.train.targets.numpy()
    shares = registry.make("partition", "dirichlet", alpha=alpha, min_examples=0).assign(data, clients, 0)
    share = np.stack([np.bincount(labels[mine], minlength=200) for mine in shares]) / per_class
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert share.mean() == pytest.approx(1 / clients)
    assert share.var() == pytest.approx(expected, rel=0.12)


def test_dirichlet_keeps_the_least_size():
    shares = registry.make("partition", "dirichlet", alpha=0.01, min_examples=8).assign(balanced(400), 30, 0)
    assert shares.sizes.min() == 8
    assert sorted(shares.indices.tolist()) == list(range(400))


@pytest.mark.parametrize("size", [1, 5, 40, 77, 80])
def test_iid_draws_distinct_examples_for_each_client(size):
    shares = registry.make("partition", "iid", examples=size).assign(balanced(80), 2000, 0)
    rows = shares.indices.reshape(2000, size)
    assert (np.diff(np.sort(rows, axis=1), axis=1) > 0).all()
    counts = np.bincount(shares.indices, minlength=80)
    expected, sd = 2000 * size / 80, np.sqrt(2000 * (size / 80) * (1 - size / 80))
    assert np.abs(counts - expected).max() <= 4.5 * sd


def test_a_client_s_draw_does_not_depend_on_how_many_others_there_are():
    part = registry.make("partition", "iid", examples=9)
    few, many = (part.assign(balanced(5000), clients, 2) for clients in (10, 1000))
    np.testing.assert_array_equal(few.indices, many.indices[: len(few.indices)])


def test_a_million_clients_cost_their_index_array(monkeypatch):
    import tracemalloc

    tracemalloc.start()
    shares = registry.make("partition", "iid", examples=16).assign(balanced(60_000), 1_000_000, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(shares) == 1_000_000
    assert shares.indices.dtype == np.int32
    assert len(shares[999_999]) == 16
    assert peak < 250 * 2**20


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_more_clients_than_examples_is_one_line(name):
    with pytest.raises(
        ScenarioError, match=r"data\.clients: given 21; accepted: up to 20: there are 20 training examples"
    ):
        registry.make("partition", name).assign(balanced(20), 21, 0)


def test_more_clients_than_examples_is_fine_where_they_share():
    shares = registry.make("partition", "iid", examples=3).assign(balanced(20), 21, 0)
    assert len(shares) == 21
