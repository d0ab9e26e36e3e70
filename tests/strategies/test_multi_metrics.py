"""Multi-metrics against 80-digit arithmetic, its ablation, and what it does with the unusual."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import torch

from fedsim.errors import ScenarioError
from fedsim.geometry import geometry
from fedsim.registry import make
from fedsim.updates import Updates
from strategies.multi_metrics import code_features, whitened

METRICS = ("cosine", "manhattan", "euclidean")
SIZES = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]


def rows(n, size, *, d=12, seed=0, dtype=torch.float64, common=0.0):
    """Updates of about this norm around weights of norm 10; the first client is the odd one."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(n, d))
    values[0] = values[0] * 1.5 + 0.5
    values /= np.linalg.norm(values, axis=1, keepdims=True) / (size * generator.uniform(0.7, 1.4, size=(n, 1)))
    reference = generator.normal(size=d)
    reference *= 10 / np.linalg.norm(reference)
    values = values + common * generator.normal(size=d)
    as_tensor = torch.from_numpy(values).to(dtype)
    return Updates(as_tensor, torch.arange(1, n + 1), list(range(n)), torch.from_numpy(reference).to(dtype))


def exact_features(updates, variant):
    """The (n, 3) features c, m, l as mpmath numbers."""
    base = [mpmath.mpf(float(x)) for x in updates.reference]
    deltas = [[mpmath.mpf(float(x)) for x in row] for row in updates.values]
    models = [[b + x for b, x in zip(base, row, strict=True)] for row in deltas]

    def dot(a, b):
        return mpmath.fsum(x * y for x, y in zip(a, b, strict=True))

    def norm(a):
        return mpmath.sqrt(dot(a, a))

    def cosine(a, b):
        return dot(a, b) / (norm(a) * norm(b))

    def manhattan(a, b):
        return mpmath.fsum(abs(x - y) for x, y in zip(a, b, strict=True))

    n = len(models)
    if variant == "code":
        pairs = {
            (i, j): ((1 - cosine(models[i], models[j])) ** 2, manhattan(models[i], models[j]))
            for i, j in itertools.permutations(range(n), 2)
        }
        return [
            [
                mpmath.fsum(pairs[i, j][0] for j in range(n) if j != i),
                mpmath.fsum(pairs[i, j][1] for j in range(n) if j != i),
                mpmath.fsum(abs(norm(models[i]) - norm(models[j])) for j in range(n) if j != i),
            ]
            for i in range(n)
        ]
    values = [(cosine(base, w), manhattan(w, base), norm(x)) for w, x in zip(models, deltas, strict=True)]
    return [
        [mpmath.fsum(abs(values[i][k] - values[j][k]) for j in range(n) if j != i) for k in range(3)] for i in range(n)
    ]


def exact_scores(features, variant, weighting="whitened"):
    n, k = len(features), len(features[0])
    if weighting == "max":
        largest = [max(row[a] for row in features) for a in range(k)]
        return [mpmath.fsum(row[a] / largest[a] for a in range(k)) for row in features]
    means = [mpmath.fsum(row[a] for row in features) / n for a in range(k)]
    covariance = mpmath.matrix(k, k)
    for a, b in itertools.product(range(k), repeat=2):
        covariance[a, b] = mpmath.fsum((row[a] - means[a]) * (row[b] - means[b]) for row in features) / (n - 1)
    inverse = covariance**-1
    scores = [mpmath.fsum(row[a] * inverse[a, b] * row[b] for a in range(k) for b in range(k)) for row in features]
    return [mpmath.sqrt(score) for score in scores] if variant == "paper" else scores


def assert_agrees(updates, variant, keep=0.3, weighting="whitened", metrics=METRICS):
    with mpmath.workdps(80):
        features = [[row[METRICS.index(m)] for m in metrics] for row in exact_features(updates, variant)]
        scores = exact_scores(features, variant, weighting)
        part = make("defense", "multi_metrics", variant=variant, keep=keep, weighting=weighting, metrics=list(metrics))
        result = part.aggregate(updates)
        np.testing.assert_allclose(result.scores["multi_metrics"], [float(s) for s in scores], rtol=1e-6)
    n = len(updates)
    kept = sorted(range(n), key=scores.__getitem__)[: int(keep * n + 1e-9) if isinstance(keep, float) else keep]
    assert (result.weights > 0).nonzero().flatten().tolist() == sorted(kept)
    counts = updates.num_examples[kept]
    np.testing.assert_allclose(result.weights[kept], counts / counts.sum())
    return scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", [6, 10])
def test_scores_and_selection_agree_with_80_digits(n, size, variant, dtype):
    for seed in range(3):
        assert_agrees(rows(n, size, seed=seed, dtype=dtype), variant, keep=0.5)


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_a_large_common_step_changes_nothing_about_accuracy(variant):
    assert_agrees(rows(8, 1e-5, seed=3, common=1.0), variant)


def plain_numpy_scores(updates):
    """The authors' repository, in float64: weights are formed, cosines are taken of them."""
    models = (updates.reference + updates.values).numpy()
    norms = np.linalg.norm(models, axis=1)
    cosines = models @ models.T / np.outer(norms, norms)
    features = np.stack(
        [
            ((1 - cosines) ** 2).sum(axis=1),
            np.abs(models[:, None] - models[None]).sum(axis=2).sum(axis=1),
            np.abs(norms[:, None] - norms[None]).sum(axis=1),
        ],
        axis=1,
    )
    covariance = np.cov(features.T)
    return np.einsum("ia,ab,ib->i", features, np.linalg.pinv(covariance), features), features


def test_plain_float64_is_wrong_where_ours_is_right():
    updates = rows(10, 1e-6)
    with mpmath.workdps(80):
        exact = [float(row[0]) for row in exact_features(updates, "code")]
        scores = np.array([float(score) for score in exact_scores(exact_features(updates, "code"), "code")])
    plain_scores, features = plain_numpy_scores(updates)
    assert np.abs(features[:, 0] / exact - 1).max() > 1e-3
    assert np.abs(plain_scores / scores - 1).max() > 0.1
    np.testing.assert_allclose(code_features(updates)["cosine"], exact, rtol=1e-8)


ABLATION = [
    *[
        (weighting, list(m))
        for r in (1, 2, 3)
        for m in itertools.combinations(METRICS, r)
        for weighting in ("whitened", "max")
    ]
]


@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize(("weighting", "metrics"), ABLATION, ids=str)
def test_every_row_of_the_ablation_runs(weighting, metrics, variant):
    assert_agrees(rows(9, 1e-2, seed=1), variant, 3, weighting, metrics)


def test_one_larger_update_is_kept_far_less_often_than_by_chance():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(300, generator=generator)
    slips = 0
    for trial in range(60):
        values = torch.randn(10, 300, generator=generator) * 0.01
        attacker = trial % 10
        values[attacker] *= 2
        result = make("defense", "multi_metrics").aggregate(Updates(values, torch.ones(10), list(range(10)), reference))
        assert int((result.weights > 0).sum()) == 3
        slips += int(result.weights[attacker] > 0)
    assert slips / 60 <= 0.1


@pytest.mark.parametrize(
    ("n", "keep", "kept"), [(10, 0.3, 3), (4, 0.3, 1), (13, 0.3, 3), (8, 5, 5), (6, 1.0, 6), (5, 0.1, 1)]
)
def test_keeps_the_whole_part_of_the_share_and_one_at_least(n, keep, kept):
    weights = make("defense", "multi_metrics", keep=keep).aggregate(rows(n, 1e-2)).weights
    assert int((weights > 0).sum()) == kept


def test_a_constant_metric_is_left_out():
    columns = torch.tensor([[1.0, 5.0, 2.0], [2.0, 5.0, 1.0], [4.0, 5.0, 0.5], [3.0, 5.0, 4.0]], dtype=torch.float64)
    np.testing.assert_allclose(whitened(columns), whitened(columns[:, [0, 2]]), rtol=1e-12)
    assert whitened(torch.ones(4, 3, dtype=torch.float64)).tolist() == [0.0] * 4


def test_unknown_metrics_and_none_at_all_are_refused():
    for metrics in ([], ["chebyshev"]):
        with pytest.raises(ScenarioError, match="metrics"):
            make("defense", "multi_metrics", metrics=metrics)


def angles(models):
    with mpmath.workdps(60):
        norms = [mpmath.sqrt(mpmath.fsum(x * x for x in w)) for w in models]
        return [
            [
                float(1 - mpmath.fsum(x * y for x, y in zip(a, b, strict=True)) / (p * q))
                for b, q in zip(models, norms, strict=True)
            ]
            for a, p in zip(models, norms, strict=True)
        ]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda u, w, r: u, id="small"),
        pytest.param(lambda u, w, r: u + r.uniform(-1, 1, (len(u), 1)) * 1e-3 * w, id="mostly along the weights"),
        pytest.param(lambda u, w, r: np.concatenate([u[:1] + 1e-12 * u[1:4], u]), id="nearly equal rows"),
        pytest.param(lambda u, w, r: np.concatenate([[-0.999 * w], u]), id="one shrunk model"),
        pytest.param(lambda u, w, r: np.concatenate([[-3 * w], u]), id="one reversed model"),
        pytest.param(lambda u, w, r: u * 1e9, id="updates far larger than the weights"),
        pytest.param(lambda u, w, r: np.concatenate([-w + u[:3], -2 * w + u]), id="both sides of zero"),
    ],
)
def test_angles_are_accurate_wherever_the_models_lie(change):
    generator = np.random.default_rng(4)
    updates = generator.normal(size=(7, 12)) * 1e-5
    reference = generator.normal(size=12) * 3
    values = change(updates, reference, generator)
    with mpmath.workdps(60):
        models = [[mpmath.mpf(x) + mpmath.mpf(y) for x, y in zip(row, reference, strict=True)] for row in values]
    got = geometry(torch.from_numpy(values), torch.from_numpy(reference)).one_minus_cosine
    np.testing.assert_allclose(got, angles(models), rtol=1e-6, atol=1e-30)


def test_a_model_of_zeros_has_no_direction():
    reference = torch.ones(5, dtype=torch.float64)
    values = torch.stack([-reference, 0 * reference, 1e-3 * torch.arange(5.0, dtype=torch.float64)])
    got = geometry(values, reference)
    assert got.one_minus_cosine[0].tolist() == [0.0, 1.0, 1.0]
    np.testing.assert_allclose(float(got.norm_differences[1, 0]), 5**0.5)
