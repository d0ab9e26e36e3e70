"""Samplers: distinct ids, their law, their order, and what they cost."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from fedsim import rng
from fedsim.errors import ScenarioError
from fedsim.registry import make
from strategies.sampler import distinct


def stream(round=0, seed=0):
    return rng.stream(seed, "test.sampling", round=round)


SAMPLERS = [("uniform", {}), ("by_size", {}), ("poisson", {"rate": 0.3}), ("fixed", {"clients": [4, 1, 2]})]


@pytest.mark.parametrize(("name", "options"), SAMPLERS)
def test_ids_are_distinct_within_range_and_repeatable(name, options):
    part, sizes = make("sampler", name, **options), np.arange(1, 21)
    for number in range(50):
        drawn = part.sample(number, sizes, 6, stream(number))
        assert drawn.dtype == np.int64
        assert len(set(drawn.tolist())) == len(drawn)
        assert ((drawn >= 0) & (drawn < 20)).all()
        np.testing.assert_array_equal(drawn, make("sampler", name, **options).sample(number, sizes, 6, stream(number)))
        if name in ("uniform", "by_size"):
            assert len(drawn) == 6


def test_uniform_draws_every_ordered_pair_alike():
    counts = Counter(tuple(distinct(4, 2, stream(number)).tolist()) for number in range(6000))
    pairs = list(itertools.permutations(range(4), 2))
    chi2 = sum((counts[pair] - 500) ** 2 / 500 for pair in pairs)
    assert set(counts) == set(pairs)
    assert chi2 < 31.3  # 99.9 % of chi-squared with 11 degrees of freedom


def test_uniform_of_all_is_a_permutation_and_more_than_all_is_all():
    assert sorted(make("sampler", "uniform").sample(1, np.ones(9), 9, stream())) == list(range(9))
    assert sorted(make("sampler", "uniform").sample(1, np.ones(9), 30, stream())) == list(range(9))


@pytest.mark.parametrize(("name", "options"), [("uniform", {}), ("poisson", {"rate": 1e-4})])
def test_memory_does_not_grow_with_the_population(name, options):
    sizes = np.ones(1_000_000)
    tracemalloc.start()
    try:
        make("sampler", name, **options).sample(1, sizes, 200, stream())
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_by_size_draws_one_after_the_other_by_size():
    sizes = np.array([1, 2, 0, 5])
    counts = Counter(tuple(make("sampler", "by_size").sample(n, sizes, 2, stream(n)).tolist()) for n in range(8000))
    expected = {
        (i, j): sizes[i] / 8 * sizes[j] / (8 - sizes[i]) * 8000 for i, j in itertools.permutations((0, 1, 3), 2)
    }
    assert set(counts) == set(expected)
    chi2 = sum((counts[pair] - number) ** 2 / number for pair, number in expected.items())
    assert chi2 < 20.6  # 99.9 % of chi-squared with 5 degrees of freedom


def test_by_size_leaves_out_who_has_nothing():
    assert sorted(make("sampler", "by_size").sample(1, np.array([0, 3, 0, 1]), 4, stream())) == [1, 3]
    assert len(make("sampler", "by_size").sample(1, np.zeros(4), 2, stream())) == 0


def test_poisson_has_binomial_sizes_and_includes_all_alike():
    part, sizes = make("sampler", "poisson", rate=0.25), np.ones(40)
    drawn = [part.sample(n, sizes, 5, stream(n)) for n in range(2000)]
    lengths = np.array([len(each) for each in drawn])
    assert abs(lengths.mean() - 10) < 4 * np.sqrt(7.5 / 2000)
    assert abs(lengths.var() - 7.5) < 4 * 7.5 * np.sqrt(2 / 2000)
    included = np.bincount(np.concatenate(drawn), minlength=40)
    assert abs(included - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_fixed_keeps_its_order_and_knows_the_population():
    class Data:
        clients = 4

    class Scenario:
        data = Data

    assert make("sampler", "fixed", clients=[3, 0]).sample(5, np.ones(4), 2, stream()).tolist() == [3, 0]
    assert [fault.key for fault in make("sampler", "fixed", clients=[3, 0]).check(Scenario)] == []
    assert [fault.key for fault in make("sampler", "fixed", clients=[4, 0]).check(Scenario)] == ["clients"]
    assert [fault.key for fault in make("sampler", "fixed", clients=[1, 1]).check(Scenario)] == ["clients"]
    with pytest.raises(ScenarioError):
        make("sampler", "fixed", clients=[-1])
    with pytest.raises(ScenarioError):
        make("sampler", "poisson", rate=0.0)
