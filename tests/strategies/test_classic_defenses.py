"""The classic rules against loops over NumPy arrays, written from the papers."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from fedsim.errors import UpdatesError
from fedsim.registry import make
from fedsim.updates import Updates
from strategies.defense import Round
from strategies.pipeline import aggregate


def rows(n, d=7, seed=0, outliers=0, dtype=np.float64):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(n, d))
    values[:outliers] += generator.normal(size=d) * 20
    counts = generator.integers(1, 40, size=n)
    reference = torch.from_numpy(generator.normal(size=d).astype(dtype))
    return Updates(torch.from_numpy(values.astype(dtype)), torch.from_numpy(counts), list(range(n)), reference)


def krum_scores(values, f, among):
    scores = {}
    for i in among:
        distances = sorted(
            sum((a - b) ** 2 for a, b in zip(values[i], values[j], strict=True)) for j in among if j != i
        )
        scores[i] = sum(distances[: max(len(among) - f - 2, 1)])
    return scores


CASES = [(7, 1, 0), (9, 2, 1), (11, 3, 2), (12, 0, 3)]


@pytest.mark.parametrize(("n", "f", "seed"), CASES)
def test_krum(n, f, seed):
    given = rows(n, seed=seed, outliers=f)
    values = given.values.numpy()
    scores = krum_scores(values, f, range(n))
    result = make("defense", "krum", malicious=f).aggregate(given)
    chosen = min(scores, key=scores.get)
    np.testing.assert_array_equal(result.update, values[chosen])
    assert result.weights.tolist() == [float(i == chosen) for i in range(n)]
    np.testing.assert_allclose(result.scores["krum"], [scores[i] for i in range(n)], rtol=1e-12)


@pytest.mark.parametrize("keep", [None, 3, 0.5])
@pytest.mark.parametrize(("n", "f", "seed"), CASES)
def test_multi_krum_averages_the_best_with_equal_weights(n, f, seed, keep):
    given = rows(n, seed=seed, outliers=f)
    values = given.values.numpy()
    scores = krum_scores(values, f, range(n))
    m = {None: n - f, 3: 3, 0.5: n // 2}[keep]
    best = sorted(scores, key=scores.get)[:m]
    result = make("defense", "multi_krum", malicious=f, keep=keep).aggregate(given)
    np.testing.assert_allclose(result.update, np.mean([values[i] for i in best], axis=0), rtol=1e-12)
    np.testing.assert_allclose(result.weights, [1 / m if i in best else 0 for i in range(n)], rtol=1e-12)


@pytest.mark.parametrize(("n", "f", "seed"), [(7, 1, 0), (11, 2, 1), (13, 2, 2), (15, 3, 3), (6, 0, 4)])
def test_bulyan(n, f, seed):
    given = rows(n, seed=seed, outliers=f)
    values = given.values.numpy()
    left, selected = list(range(n)), []
    while len(selected) < n - 2 * f:
        scores = krum_scores(values, f, left)
        best = min(scores, key=scores.get)
        selected.append(best)
        left.remove(best)
    expected = []
    for column in values.T:
        chosen = [column[i] for i in selected]
        middle = np.median(chosen)
        expected.append(np.mean(sorted(chosen, key=lambda value, m=middle: abs(value - m))[: len(chosen) - 2 * f]))
    result = make("defense", "bulyan", malicious=f).aggregate(given)
    np.testing.assert_allclose(result.update, expected, rtol=1e-12)
    assert [i for i in range(n) if result.weights[i] == 0] == left
    steps = result.scores["bulyan"]
    assert [int(steps[i]) for i in selected] == list(range(len(selected)))
    assert all(steps[i] == n for i in left)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [*range(1, 14), 20, 33, 64, 300])
def test_median_takes_the_mean_of_the_two_middle_values(n, dtype):
    given = rows(n, d=50, seed=n, dtype=dtype)
    expected = np.median(given.values.numpy().astype(np.float64), axis=0).astype(dtype)
    np.testing.assert_array_equal(make("defense", "median").aggregate(given).update, expected)


@pytest.mark.parametrize(
    ("n", "trim", "cut"), [(5, 1, 1), (10, 0.2, 2), (10, 0.29, 2), (7, 3, 3), (10, 0, 0), (300, 0.1, 30)]
)
def test_trimmed_mean(n, trim, cut):
    given = rows(n, d=20, seed=n)
    expected = [np.mean(sorted(column)[cut : n - cut]) for column in given.values.numpy().T]
    result = make("defense", "trimmed_mean", trim=trim).aggregate(given)
    np.testing.assert_allclose(result.update, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(
        result.update, stats.trim_mean(given.values.numpy(), (cut + 0.5) / n), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize(("n", "seed", "outliers"), [(5, 0, 0), (8, 1, 2), (15, 2, 4)])
def test_geometric_median_minimises_the_weighted_distances(n, seed, outliers):
    given = rows(n, d=3, seed=seed, outliers=outliers)
    values, counts = given.values.numpy(), given.num_examples.numpy()

    def cost(point):
        return (counts * np.linalg.norm(values - point, axis=1)).sum() / counts.sum()

    options = {"xatol": 1e-11, "fatol": 1e-14, "maxiter": 20_000, "maxfev": 20_000}
    found = optimize.minimize(cost, np.median(values, axis=0), method="Nelder-Mead", options=options)
    result = make("defense", "geometric_median").aggregate(given)
    assert cost(result.update.numpy()) <= found.fun * (1 + 1e-9)
    np.testing.assert_allclose(result.update, found.x, atol=1e-5)
    np.testing.assert_allclose(result.weights @ given.values, result.update, rtol=1e-12)


def test_geometric_median_of_three_points_on_a_line_is_the_middle_one():
    values = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]], dtype=torch.float64)
    result = make("defense", "geometric_median").aggregate(Updates(values, torch.ones(3), [0, 1, 2], torch.zeros(2)))
    np.testing.assert_allclose(result.update, [1, 1], atol=1e-5)


def test_geometric_median_is_not_moved_by_a_huge_row():
    given = rows(9, seed=5)
    values = given.values.clone()
    values[0] = 1e30
    far = make("defense", "geometric_median").aggregate(given.replace(values=values)).update
    values[0] = 1e4
    near = make("defense", "geometric_median").aggregate(given.replace(values=values)).update
    np.testing.assert_allclose(far, near, atol=1e-3)


@pytest.mark.parametrize("iterations", [1, 4])
def test_centered_clipping_remembers_its_center(iterations):
    part, state = make("defense", "centered_clipping", radius=2.0, iterations=iterations), {}
    center = np.zeros(7)
    for number in range(1, 4):
        given = rows(6, seed=number)
        values = given.values.numpy()
        for _ in range(iterations):
            moves = []
            for row in values:
                difference = row - center
                moves.append(difference * min(1, 2.0 / np.linalg.norm(difference)))
            center = center + np.mean(moves, axis=0)
        result = part.aggregate(given, Round(round=number, state=state))
        np.testing.assert_allclose(result.update, center, rtol=1e-10)
    np.testing.assert_allclose(float(result.weights.sum()), 1)


def test_norm_bound_shortens_only_the_long():
    given = rows(6, seed=3)
    values, counts = given.values.numpy(), given.num_examples.numpy()
    clipped = [row * min(1, 2.5 / np.linalg.norm(row)) for row in values]
    assert 0 < sum(np.linalg.norm(row) > 2.5 for row in values) < 6
    result = make("defense", "norm_bound", radius=2.5).aggregate(given)
    np.testing.assert_allclose(result.update, np.average(clipped, axis=0, weights=counts), rtol=1e-12)


@pytest.mark.parametrize(("n", "f", "seed"), [(5, 1, 0), (9, 4, 1), (8, 0, 2)])
def test_nnm_mixes_each_with_its_nearest(n, f, seed):
    given = rows(n, seed=seed, outliers=f)
    values = given.values.numpy()
    buffers = torch.arange(2.0 * n, dtype=torch.float64).reshape(n, 2)
    given = given.replace(extras={"buffers": buffers})
    mixed = make("defense", "nnm", malicious=f).transform(given, Round())
    for i in range(n):
        near = sorted(range(n), key=lambda j, i=i: np.linalg.norm(values[i] - values[j]))[: n - f]
        np.testing.assert_allclose(mixed.values[i], values[near].mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(mixed.extras["buffers"][i], buffers[near].mean(dim=0), rtol=1e-12)
        np.testing.assert_allclose(mixed.mixing[i], [1 / (n - f) if j in near else 0 for j in range(n)])


def test_weights_through_nnm_and_a_selection_are_those_of_the_clients():
    given = rows(9, seed=4, outliers=2)
    parts = [make("defense", "nnm", malicious=2), make("defense", "multi_krum", malicious=2)]
    result = aggregate(parts, given, [Round(), Round()])
    np.testing.assert_allclose(result.weights @ given.values, result.update, rtol=1e-12)
    np.testing.assert_allclose(float(result.weights.sum()), 1)
    assert len(result.scores["multi_krum"]) == 9


def test_fedavg_weights_by_examples():
    given = rows(5)
    expected = np.average(given.values.numpy(), axis=0, weights=given.num_examples.numpy())
    np.testing.assert_allclose(make("defense", "fedavg").aggregate(given).update, expected, rtol=1e-12)


def test_a_tie_goes_to_the_smaller_partition_id_wherever_it_stands():
    corner = torch.tensor([1.0, 0.0], dtype=torch.float64)
    values = torch.stack([corner, -corner, corner.flip(0), -corner.flip(0), 50 * corner])
    for order in itertools.permutations(range(4)):
        index = [*order, 4]
        shuffled = Updates(values[index], torch.ones(5), [[7, 3, 9, 5, 11][i] for i in index], torch.zeros(2))
        weights = make("defense", "krum").aggregate(shuffled).weights
        assert shuffled.client_ids[int(weights.argmax())] == 3


@pytest.mark.parametrize(
    ("name", "options", "n", "message"),
    [
        ("krum", {"malicious": 2}, 6, "krum: given 6 clients with malicious = 2; accepted: more than 2·2 + 2 clients"),
        ("multi_krum", {"malicious": 1}, 4, "multi_krum: given 4 clients"),
        ("bulyan", {"malicious": 2}, 10, "bulyan: given 10 clients with malicious = 2; accepted: at least 4·2 + 3"),
        ("trimmed_mean", {"trim": 2}, 4, "trimmed_mean: given 4 clients with 2 cut on each side"),
        ("nnm", {"malicious": 2}, 4, "nnm: given 4 clients"),
        ("multi_metrics", {}, 3, "multi_metrics: given 3 clients; accepted: at least 4"),
    ],
)
def test_too_few_clients_are_one_clear_line(name, options, n, message):
    with pytest.raises(UpdatesError) as error:
        make("defense", name, **options).aggregate(rows(n))
    assert str(error.value).startswith(message)


class Scenario:
    server = SimpleNamespace(defenses=[])

    def __init__(self, cohort):
        self.cohort = cohort


@pytest.mark.parametrize(
    ("name", "options", "fits", "fails", "key"),
    [
        ("krum", {"malicious": 2}, 7, 6, "malicious"),
        ("multi_krum", {"malicious": 3}, 9, 8, "malicious"),
        ("multi_krum", {"keep": 8}, 8, 7, "keep"),
        ("bulyan", {"malicious": 2}, 11, 10, "malicious"),
        ("trimmed_mean", {"trim": 3}, 7, 6, "trim"),
        ("nnm", {"malicious": 2}, 5, 4, "malicious"),
        ("multi_metrics", {}, 4, 3, "name"),
        ("multi_metrics", {"keep": 0.2}, 5, 4, "keep"),
        ("multi_metrics", {"keep": 6}, 6, 5, "keep"),
    ],
)
def test_what_cannot_work_is_a_fault_of_the_scenario(name, options, fits, fails, key):
    part = make("defense", name, **options)
    assert list(part.check(Scenario(fits))) == []
    (fault,) = part.check(Scenario(fails))
    assert (fault.key, fault.involves) == (key, ("client.per_round",))
    assert str(fails) in fault.accepted or str(fails - 1) in fault.accepted
