"""The catalogue's defenses against loops over NumPy arrays from the papers, and on attacks that they are for."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.errors import ScenarioError, UpdatesError
from fedsim.losses import HarmonicHead
from fedsim.registry import make
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.testing import defenses as toy
from fedsim.updates import Layout, Updates
from strategies.crfl import votes
from strategies.deepsight import energy_shares
from strategies.defense import Round
from strategies.fedid import modified_z
from strategies.fldetector import hessian_product
from strategies.pipeline import aggregate
from strategies.rflbat import main_plane


def rows(n, d=7, seed=0, outliers=0, shift=0.0):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(n, d)) + shift
    values[:outliers] += generator.normal(size=d) * 20
    counts = generator.integers(1, 40, size=n)
    return Updates(torch.from_numpy(values), torch.from_numpy(counts), list(range(n)), torch.zeros(d).double())


def backdoored(n=12, bad=4, d=200, seed=0, along=3.0):
    """Honest updates around a common direction, and attackers (the first ones) that share another."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=d) + generator.normal(size=(n, d)) * 0.7
    values[:bad] = along * generator.normal(size=d) + generator.normal(size=(bad, d)) * 0.05
    reference = torch.from_numpy(generator.normal(size=d))
    return Updates(torch.from_numpy(values), torch.ones(n), list(range(n)), reference)


def kept(result):
    return [i for i, weight in enumerate(result.weights.tolist()) if weight > 0]


def mean_of(values, chosen):
    return np.mean([values[i] for i in chosen], axis=0)


@pytest.mark.parametrize(("n", "f"), [(7, 2), (8, 3), (5, 0)])
def test_meamed_averages_what_is_nearest_to_the_median(n, f):
    given = rows(n, seed=n)
    expected = []
    for column in given.values.numpy().T:
        middle = np.median(column)
        expected.append(np.mean(sorted(column, key=lambda value, m=middle: abs(value - m))[: n - f]))
    np.testing.assert_allclose(make("defense", "meamed", malicious=f).aggregate(given).update, expected, rtol=1e-12)


@pytest.mark.parametrize(("n", "f", "seed"), [(8, 2, 0), (9, 3, 1), (7, 3, 2), (6, 0, 3), (12, 5, 4)])
def test_mda_and_smea_find_the_best_of_all_subsets(n, f, seed):
    given = rows(n, seed=seed, outliers=f // 2)
    values = given.values.numpy()

    def diameter(subset):
        return max(np.linalg.norm(values[i] - values[j]) for i in subset for j in subset)

    def spread(subset):
        return np.linalg.eigvalsh(np.cov(values[list(subset)].T, bias=True))[-1]

    for name, cost in (("mda", diameter), ("smea", spread)):
        best = min(itertools.combinations(range(n), n - f), key=cost)
        result = make("defense", name, malicious=f).aggregate(given)
        assert cost(kept(result)) == pytest.approx(cost(best), rel=1e-9), name
        np.testing.assert_allclose(result.update, mean_of(values, kept(result)), rtol=1e-12)
        assert len(kept(result)) == n - f


def test_mda_of_a_hundred_clients_is_no_search_through_all_subsets():
    given = rows(100, seed=5, outliers=12)
    assert kept(make("defense", "mda", malicious=12).aggregate(given)) == list(range(12, 100))


@pytest.mark.parametrize(("n", "f", "seed"), [(9, 2, 0), (10, 4, 1), (7, 3, 2)])
def test_caf_as_its_algorithm_is_written(n, f, seed):
    given = rows(n, seed=seed, outliers=f)
    values, c = given.values.numpy(), np.ones(n)
    smallest, best = np.inf, None
    while c.sum() > n - 2 * f:
        mean = np.average(values, axis=0, weights=c)
        away = values - mean
        eigenvalues, vectors = np.linalg.eigh((away * c[:, None]).T @ away / c.sum())
        if eigenvalues[-1] < smallest:
            smallest, best = eigenvalues[-1], mean
        tau = (away @ vectors[:, -1]) ** 2
        c = c * (1 - tau / tau[c > 0].max())
        c[c < 1e-12] = 0
    np.testing.assert_allclose(make("defense", "caf", malicious=f).aggregate(given).update, best, rtol=1e-7)


def test_dnc_drops_along_the_first_singular_vector():
    given = rows(10, d=30, seed=3, outliers=3)
    values = given.values.numpy()
    away = values - values.mean(axis=0)
    along = (away @ np.linalg.svd(away)[2][0]) ** 2
    expected = sorted(np.argsort(along)[:7])
    result = make("defense", "dnc", malicious=3).aggregate(given)
    assert kept(result) == expected
    np.testing.assert_allclose(result.scores["dnc"], along, rtol=1e-8)
    np.testing.assert_allclose(result.update, mean_of(values, expected), rtol=1e-12)


def test_dnc_draws_other_coordinates_in_other_rounds_and_keeps_who_is_always_good():
    given = rows(10, d=30, seed=3, outliers=2)
    part = make("defense", "dnc", malicious=2, coordinates=5, iterations=4)
    scores = [part.aggregate(given, Round(round=number)).scores["dnc"] for number in (1, 2)]
    assert not torch.equal(*scores)
    assert not {0, 1} & set(kept(part.aggregate(given, Round(round=1))))


@pytest.mark.parametrize(("n", "size"), [(6, 2), (7, 3), (4, 1), (5, 9)])
def test_buckets_are_means_of_a_random_partition(n, size):
    given = rows(n, seed=n)
    part = make("defense", "bucketing", size=size)
    mixed = part.transform(given, Round(round=1))
    assert len(mixed) == math.ceil(n / size)
    values, mixing = given.values.numpy(), part.transform(given.replace(mixing=None), Round(round=1)).mixing.numpy()
    assert ((mixing > 0).sum(axis=0) == 1).all()
    for bucket, row, client in zip(mixing, mixed.values, mixed.client_ids, strict=True):
        members = np.flatnonzero(bucket)
        np.testing.assert_allclose(row, mean_of(values, members), rtol=1e-12)
        assert client == members[0]
    assert mixed.num_examples.tolist() == [1.0] * len(mixed)


@pytest.mark.parametrize("rule", ["fldetector", "foolsgold", "sam_gs"])
@pytest.mark.parametrize("mixer", ["bucketing", "nnm"])
def test_what_remembers_clients_does_not_stand_behind_what_mixes_them(mixer, rule):
    with pytest.raises(ScenarioError, match=rf"server\.defenses\[1\]: given '{rule}'.*behind '{mixer}'"):
        Scenario(server={"defenses": [mixer, rule]})
    Scenario(server={"defenses": [mixer, "median"]})


def test_buckets_change_over_rounds_and_a_rule_behind_them_names_the_clients():
    given = rows(8, seed=1, outliers=1)
    parts = [make("defense", "bucketing"), make("defense", "krum", malicious=0)]
    results = [aggregate(parts, given, [Round(round=number), Round()]) for number in range(1, 6)]
    assert len({tuple(kept(result)) for result in results}) > 1
    for result in results:
        assert len(kept(result)) == 2
        assert 0 not in kept(result)
        np.testing.assert_allclose(result.weights @ given.values, result.update, rtol=1e-12)


def foolsgold_weights(history, confidence):
    n = len(history)
    unit = history / np.linalg.norm(history, axis=1, keepdims=True)
    cs = [[0.0 if i == j else float(unit[i] @ unit[j]) for j in range(n)] for i in range(n)]
    most = [max(row) for row in cs]
    for i in range(n):
        for j in range(n):
            if i != j and most[j] > most[i]:
                cs[i][j] *= most[i] / most[j]
    alpha = np.clip([1 - max(row) for row in cs], 0, 1)
    alpha = alpha / alpha.max()
    with np.errstate(divide="ignore"):
        return np.clip(confidence * (np.log(alpha / (1 - alpha)) + 0.5), 0, 1)


@pytest.mark.parametrize("confidence", [0.1, 1.0])
def test_foolsgold_weighs_by_the_similarity_of_whole_histories(confidence):
    part, state, history, between = make("defense", "foolsgold", confidence=confidence), {}, np.zeros((6, 5)), 0
    for number in range(1, 5):
        given = rows(6, d=5, seed=number, shift=0.5)
        present = [0, 1, 2, 3, 4, 5] if number != 2 else [0, 2, 3, 5]
        here = given.rows(present)
        history[present] += here.values.numpy()
        result = part.aggregate(here, Round(round=number, state=state))
        expected = foolsgold_weights(history[present], confidence)
        np.testing.assert_allclose(result.weights, expected / expected.sum(), atol=1e-6)
        between += int(((expected > 0) & (expected < 1)).sum())
    assert between >= 3, "weights that are neither 0 nor 1 tell the histories apart"


def test_foolsgold_silences_sybils_and_not_the_honest():
    result = make("defense", "foolsgold").aggregate(backdoored())
    assert float(result.weights[:4].sum()) < 1e-6
    assert bool((result.weights[4:] > 0).all())


@pytest.mark.parametrize("of", ["models", "updates"])
def test_flame_drops_the_small_cluster_and_clips_to_the_median(of):
    given = backdoored()
    values = given.values.numpy()
    middle = np.sort(np.linalg.norm(values, axis=1))[(len(values) - 1) // 2]
    result = make("defense", "flame", of=of).aggregate(given)
    chosen = kept(result)
    assert not set(range(4)) & set(chosen)
    assert len(chosen) >= 7
    clipped = [values[i] * min(1, middle / np.linalg.norm(values[i])) for i in chosen]
    np.testing.assert_allclose(result.update, np.mean(clipped, axis=0), rtol=1e-10)


@pytest.mark.parametrize("of", ["models", "updates"])
def test_flames_cluster_is_of_more_than_half(of):
    """Seven honest clients of two kinds: the five attackers are the largest of the three tight groups."""
    generator = np.random.default_rng(0)
    attackers, common = generator.normal(size=200), generator.normal(size=200)
    kinds = [common + 0.5 * generator.normal(size=200) for _ in range(2)]
    groups = ((attackers, 5, 0.02), (kinds[0], 4, 0.05), (kinds[1], 3, 0.05))
    values = np.concatenate([center + wide * generator.normal(size=(n, 200)) for center, n, wide in groups])
    reference = torch.from_numpy(generator.normal(size=200))
    given = Updates(torch.from_numpy(values), torch.ones(12), list(range(12)), reference)
    assert kept(make("defense", "flame", of=of).aggregate(given)) == list(range(5, 12))


def test_flames_noise_is_a_share_of_the_median_norm():
    part, ctx = make("defense", "flame", noise=0.5), Round(round=1)
    given = backdoored(d=20_000)
    part.aggregate(given, ctx)
    noise = part.finish(torch.zeros(20_000), ctx)
    assert float(noise.std()) == pytest.approx(0.5 * float(given.norms.median()), rel=0.03)


def test_signguard_drops_turned_signs_and_unusual_lengths():
    generator = np.random.default_rng(0)
    common = np.abs(generator.normal(size=1000))
    values = common + 0.5 * generator.normal(size=(12, 1000))
    values[0] *= -1
    values[1] *= -1
    values[2] *= 50
    values[3] *= 0.01
    given = Updates(torch.from_numpy(values), torch.ones(12), list(range(12)), torch.zeros(1000).double())
    chosen = kept(make("defense", "signguard").aggregate(given))
    assert set(chosen) <= set(range(4, 12))
    assert len(chosen) >= 6


def test_signguard_counts_zeros_as_a_sign_of_their_own():
    """Shares of positive, zero and negative coordinates: a sparse client is farther off than its signs alone say."""
    values = rows(8, d=60, seed=2).values.clone()
    values[0, :6] = 0.0
    result = make("defense", "signguard", coordinates=1.0).aggregate(rows(8, d=60, seed=2).replace(values=values))
    features = np.stack([(np.sign(values.numpy()) == sign).mean(axis=1) for sign in (1, 0, -1)], axis=1)
    expected = np.linalg.norm(features - features[kept(result)].mean(axis=0), axis=1)
    np.testing.assert_allclose(result.scores["signguard"], expected, rtol=1e-10)


@pytest.mark.parametrize("threshold", [0, 3, 0.6, 7])
def test_robust_learning_rate_turns_where_votes_are_few(threshold):
    given = rows(7, d=40, seed=1, shift=0.3)
    values, counts = given.values.numpy(), given.num_examples.numpy()
    least = threshold if isinstance(threshold, int) else int(threshold * 7)
    expected = np.average(values, axis=0, weights=counts)
    expected[np.abs(np.sign(values).sum(axis=0)) < least] *= -1
    result = make("defense", "robust_learning_rate", threshold=threshold).aggregate(given)
    np.testing.assert_allclose(result.update, expected, rtol=1e-12)


def test_fltrust_trains_on_its_root_data_and_trusts_by_angle():
    root, given = toy.root_data(), toy.updates(dtype=torch.float64)
    layer = torch.nn.Linear(toy.INPUTS, toy.CLASSES).double()
    toy.LAYOUT.load(layer, given.reference)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(root.inputs.double()), root.targets).backward()
        optimizer.step()
    own = (torch.cat([each.detach().flatten() for each in layer.parameters()]) - given.reference).numpy()
    expected, total = np.zeros(len(own)), 0.0
    for row in given.values.numpy():
        score = max(0.0, row @ own / np.linalg.norm(row) / np.linalg.norm(own))
        expected += score * np.linalg.norm(own) / np.linalg.norm(row) * row
        total += score
    part = make("defense", "fltrust", lr=0.3, epochs=4, batch_size=40)
    result = part.aggregate(given, toy.context(part, {}))
    np.testing.assert_allclose(result.update, expected / total, rtol=1e-8)


def test_fltrust_needs_root_data():
    with pytest.raises(UpdatesError, match=r"fltrust: given no root data; accepted: data\.root"):
        make("defense", "fltrust").aggregate(toy.updates())


def output_layer(weights, biases):
    """Updates of a model whose last layer is (classes, width), its first one zero."""
    n, classes, width = weights.shape
    layout = Layout((("first", (width, 3)), ("last", (classes, width)), ("bias", (classes,))))
    values = torch.cat([torch.zeros(n, 3 * width), weights.flatten(1), biases], dim=1).double()
    return Updates(values, torch.ones(n), list(range(n)), torch.zeros(values.shape[1]).double(), layout=layout)


def test_deepsights_energies_are_those_of_the_output_layer():
    generator = torch.Generator().manual_seed(0)
    weights, biases = torch.randn(3, 5, 4, generator=generator), torch.randn(3, 5, generator=generator)
    energy = biases.abs() + weights.abs().sum(2)
    expected = energy**2 / (energy**2).sum(1, keepdim=True)
    np.testing.assert_allclose(energy_shares(output_layer(weights, biases)), expected, rtol=1e-6)


def test_deepsights_differences_are_those_of_loops_over_a_net_of_two_layers():
    """DDif_c: mean over random inputs of softmax(f(x, received + update))_c / softmax(f(x, received))_c."""
    generator = np.random.default_rng(4)
    inner, classes, features, n = 3, 4, 2, 3
    d = inner * features + classes * inner
    received, updates = generator.normal(size=d), generator.normal(size=(n, d))

    def net(parameters, inputs):
        first = parameters[: inner * features].reshape(inner, features)
        return (
            torch.relu(inputs.to(parameters.dtype) @ first.T) @ parameters[inner * features :].reshape(classes, inner).T
        )

    def answer(parameters, x):
        first, last = parameters[: inner * features].reshape(inner, features), parameters[inner * features :]
        hidden = [max(0.0, sum(first[h, j] * x[j] for j in range(features))) for h in range(inner)]
        outputs = [sum(last.reshape(classes, inner)[c, h] * hidden[h] for h in range(inner)) for c in range(classes)]
        return np.exp(outputs) / np.sum(np.exp(outputs))

    part = make("defense", "deepsight", samples=5, seeds=2, shape=[features])
    sent = Updates(torch.from_numpy(updates), torch.ones(n), list(range(n)), torch.from_numpy(received))
    ctx = Round(round=1, part="deepsight", predict=net)
    found = part._differences(sent, ctx)
    assert len(found) == 2
    for seed, differences in enumerate(found):
        inputs = torch.rand((5, features), generator=ctx.torch_stream(f"inputs.{seed}")).double().numpy()
        for i in range(n):
            ratios = [answer(received + updates[i], x) / answer(received, x) for x in inputs]
            np.testing.assert_allclose(differences[i], np.mean(ratios, axis=0), rtol=1e-6)
    assert not torch.allclose(found[0], found[1])


def test_deepsight_says_which_shape_the_inputs_have():
    """A wrong one ends the round with a reason, and is refused at load where the data set tells its own."""
    part = make("defense", "deepsight", samples=5, shape=[8])
    sent = Updates(torch.ones(3, 12), torch.ones(3), [0, 1, 2], torch.zeros(12))
    ctx = Round(round=1, part="deepsight", predict=lambda parameters, inputs: inputs @ parameters.reshape(6, 2))
    with pytest.raises(UpdatesError, match=r"deepsight: given inputs of shape \[8\]"):
        part._differences(sent, ctx)
    with pytest.raises(ScenarioError, match=r"server\.defenses\[0\]\.shape: given \[8\]; accepted: \[1, 8, 8\]"):
        Scenario(server={"defenses": [{"name": "deepsight", "shape": [8]}]})


def test_deepsights_threshold_exceedings_by_hand():
    """Of C = 4 classes the threshold is 1/4 of the largest NEUP, energies .5 of the largest: 4, 3, 1 exceed it."""
    energies = torch.tensor([[4.0, 3.0, 3.0, 3.0], [4.0, 3.0, 2.1, 1.0], [4.0, 1.9, 1.9, 1.9]])
    updates = output_layer(torch.zeros(3, 4, 2), energies)
    selection = make("defense", "deepsight").select(updates, Round())
    assert (-selection.scores).tolist() == [4, 3, 1]


def test_deepsight_drops_a_cluster_that_learnt_few_classes():
    generator = torch.Generator().manual_seed(1)
    weights = 1 + 0.2 * torch.randn(12, 10, 6, generator=generator)
    biases = torch.randn(12, 10, generator=generator)
    weights[:4, 1:] *= 0.01
    biases[:4] = 0.01
    biases[:4, 0] = 3.0
    result = make("defense", "deepsight").aggregate(output_layer(weights, biases))
    assert kept(result) == list(range(4, 12))


def test_the_hessians_product_is_that_of_bfgs():
    generator = np.random.default_rng(0)
    root = generator.normal(size=(6, 6))
    hessian = root @ root.T + np.eye(6)
    steps = generator.normal(size=(3, 6))
    turns = steps @ hessian
    dense = (turns[-1] @ steps[-1]) / (steps[-1] @ steps[-1]) * np.eye(6)
    for s, y in zip(steps, turns, strict=True):
        dense = dense - np.outer(dense @ s, dense @ s) / (s @ dense @ s) + np.outer(y, y) / (y @ s)
    vector = generator.normal(size=6)
    found = hessian_product(torch.from_numpy(steps), torch.from_numpy(turns), torch.from_numpy(vector))
    np.testing.assert_allclose(found, dense @ vector, rtol=1e-8)


def test_fldetector_finds_who_does_not_follow_from_the_round_before():
    part, state = make("defense", "fldetector", window=5), {}
    generator = np.random.default_rng(2)
    offsets, weights = generator.normal(size=(10, 30)), np.full(30, 5.0)
    for number in range(1, 9):
        values = -0.1 * (weights - offsets) + 0.001 * generator.normal(size=(10, 30))
        values[:3] = generator.normal(size=(3, 30))
        given = Updates(torch.from_numpy(values), torch.ones(10), list(range(10)), torch.from_numpy(weights.copy()))
        result = part.aggregate(given, Round(round=number, state=state))
        weights = weights + result.update.numpy()
    assert kept(result) == list(range(3, 10))
    assert float(result.scores["fldetector"][:3].min()) > float(result.scores["fldetector"][3:].max())


def test_fldetectors_scores_by_loops():
    """ĝ_i = g_i^{t−1} + Ĥ(w_t − w_{t−1}); who was away is predicted by the last mean; s_i over the last N rounds."""
    part, state, window = make("defense", "fldetector", window=3), {}, 3
    generator = np.random.default_rng(4)
    offsets, scale = generator.normal(size=(6, 8)), generator.uniform(0.2, 2.0, size=8)
    weights, means, before, past = [generator.normal(size=8)], [], {}, {}
    for number in range(1, 8):
        present = [i for i in range(6) if (i, number) not in {(1, 4), (1, 5), (3, 2)}]
        gradients = {i: scale * (weights[-1] - offsets[i]) + 0.3 * generator.normal(size=8) for i in present}
        rows = torch.from_numpy(np.stack([-gradients[i] for i in present]))
        given = Updates(rows, torch.ones(len(present)), present, torch.from_numpy(weights[-1].copy()))
        result = part.aggregate(given, Round(round=number, state=state))
        if number >= 3:
            steps = np.diff(weights[:-1], axis=0)[-window:]
            turns = np.diff(means, axis=0)[-window:]
            moved = torch.from_numpy(weights[-1] - weights[-2])
            change = hessian_product(torch.from_numpy(steps), torch.from_numpy(turns), moved).numpy()
            away = {i: np.linalg.norm(before.get(i, means[-1]) + change - gradients[i]) for i in present}
            for i in present:
                past[i] = [*past.get(i, []), away[i] / sum(away.values())][-window:]
            expected = [np.mean(past[i]) for i in present]
            np.testing.assert_allclose(result.scores["fldetector"], expected, rtol=1e-8)
            assert np.linalg.norm(change) > 0.1 * np.mean(list(away.values())), "the Hessian matters here"
        before.update(gradients)
        means.append(np.mean(list(gradients.values()), axis=0))
        weights.append(weights[-1] + 0.3 * rows.numpy().mean(0))


def test_rflbat_drops_the_cluster_whose_members_are_alike():
    for seed in range(3):
        chosen = kept(make("defense", "rflbat").aggregate(backdoored(along=6.0, seed=seed)))
        assert chosen
        assert set(chosen) <= set(range(4, 12))


def test_rflbat_looks_for_strays_once_more_in_what_stays():
    given = rows(12, d=30, seed=1)
    values = given.values.clone()
    values[5] += 40.0
    found = [
        kept(make("defense", "rflbat", first=1000.0, second=second, clusters=1).aggregate(given.replace(values=values)))
        for second in (4.0, 1000.0)
    ]
    assert found == [[i for i in range(12) if i != 5], list(range(12))]


def test_rflbats_plane_is_that_of_the_principal_components():
    values = rows(8, d=15, seed=1).values.numpy()
    away = values - values.mean(axis=0)
    left, singular, _ = np.linalg.svd(away, full_matrices=False)
    expected = np.abs(left[:, :2] * singular[:2])
    np.testing.assert_allclose(main_plane(rows(8, d=15, seed=1).squared_distances()).abs(), expected, rtol=1e-7)


def test_fedid_drops_outliers_alone():
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0], dtype=torch.float64)
    np.testing.assert_allclose(modified_z(scores), 0.6745 * (scores.numpy() - 3), rtol=1e-12)
    even = torch.tensor([2.0, 2.0, 2.0, 2.0, 7.0], dtype=torch.float64)
    np.testing.assert_allclose(modified_z(even), [0, 0, 0, 0, 5 / 1.253314], rtol=1e-12)
    given = backdoored(n=20, bad=2, along=8.0)
    ranked = make("defense", "multi_metrics", keep=20).aggregate(given).scores["multi_metrics"].numpy()
    deviation = np.median(np.abs(ranked - np.median(ranked)))
    expected = np.flatnonzero(0.6745 * (ranked - np.median(ranked)) / deviation <= 1.5)
    assert 0 < len(expected) < 20
    assert kept(make("defense", "fedid", cutoff=1.5).aggregate(given)) == expected.tolist()
    assert len(kept(make("defense", "fedid", cutoff=1e9).aggregate(given))) == 20


@pytest.mark.parametrize(("n", "percent"), [(5, 10.0), (8, 8.0), (12, 25.0), (3, 50.0), (6, 0.0)])
def test_winsorized_mean_clips_to_numpys_percentiles(n, percent):
    values = rows(n, d=30, seed=n).values.numpy()
    low, high = np.percentile(values, [percent, 100 - percent], axis=0)
    expected = np.clip(values, low, high).mean(axis=0)
    result = make("defense", "winsorized_mean", percent=percent).aggregate(rows(n, d=30, seed=n))
    np.testing.assert_allclose(result.update, expected, rtol=1e-10, atol=1e-14)


def test_rm3_is_the_median_of_three_rounds_and_waits_for_them():
    part, state, means = make("defense", "rm3"), {}, []
    for number in range(1, 6):
        given = rows(5, seed=number)
        means.append(np.average(given.values.numpy(), axis=0, weights=given.num_examples.numpy()))
        expected = np.median(means[-3:], axis=0) if number > 2 else np.zeros(7)
        result = part.aggregate(given, Round(round=number, state=state))
        np.testing.assert_allclose(result.update, expected, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("pairs", ["distinct", "all"])
@pytest.mark.parametrize("rescale", [False, True])
def test_sam_gs_in_both_branches(gamma, pairs, rescale):
    part, state = make("defense", "sam_gs", gamma=gamma, pairs=pairs, rescale=rescale), {}
    moments, h = np.zeros((4, 7)), 0.0
    for number in range(1, 4):
        given = rows(4, seed=number)
        gradients = -given.values.numpy()
        norms = np.linalg.norm(gradients, axis=1)
        over = itertools.combinations(norms, 2) if pairs == "distinct" else itertools.product(norms, norms)
        psi = np.mean([2 * a * b / (a * a + b * b) for a, b in over])
        moments = 0.9 * moments + 0.1 * gradients
        h = 0.99 * h + 0.01 * (1 - psi) ** 2 + 1e-8
        if psi < gamma:
            weights = (norms.mean() / norms)[:, None]
        else:
            weights = np.abs(moments / (1 - 0.9**number)) / (np.sqrt(h / (1 - 0.99**number)) + 1e-8)
        wanted = -(weights * gradients).mean(axis=0)
        if rescale and psi >= gamma:
            wanted *= np.linalg.norm(gradients.mean(axis=0)) / np.linalg.norm(wanted)
        result = part.aggregate(given, Round(round=number, state=state))
        np.testing.assert_allclose(result.update, wanted, rtol=1e-9)


@pytest.mark.parametrize("name", ["weak_dp", "crfl"])
def test_the_noise_arrives_and_is_anothers_in_another_round(name):
    part = make("defense", name, noise=0.3)
    zeros = torch.zeros(20_000)
    first, again, later = (part.finish(zeros, Round(round=number, part=name)) for number in (1, 1, 2))
    assert float(first.std()) == pytest.approx(0.3, rel=0.03)
    assert torch.equal(first, again)
    assert abs(float(np.corrcoef(first, later)[0, 1])) < 0.03


def test_weak_dp_clips_and_crfl_bounds_the_model():
    given = rows(6, seed=3)
    bound = make("defense", "norm_bound", radius=2.0).aggregate(given).update
    torch.testing.assert_close(make("defense", "weak_dp", radius=2.0).aggregate(given).update, bound)
    part = make("defense", "crfl", radius=2.0, growth=0.5, noise=0.0)
    long, short = torch.full((100,), 7.0), torch.full((100,), 0.1)
    assert float(part.finish(long, Round(round=4)).norm()) == pytest.approx(4.0)
    assert torch.equal(part.finish(short, Round(round=4)), short)


def test_crfls_votes_are_those_of_noisy_copies():
    inputs, parameters = torch.tensor([[3.0], [-3.0], [0.0]]), torch.tensor([1.0])

    def predict(vector, given):
        return torch.cat([given * vector[:1], torch.zeros_like(given)], dim=1)

    counts = votes(predict, parameters, inputs, noise=1.0, copies=400)
    assert counts.sum(dim=1).tolist() == [400] * 3
    assert float(counts[0, 0]) / 400 == pytest.approx(0.841, abs=0.06)
    assert votes(predict, parameters, inputs[:2], noise=0.0, copies=3).tolist() == [[3, 0], [0, 3]]


def test_fltrust_trains_on_root_data_of_a_regression_too() -> None:
    data = {"dataset": {"name": "synthetic_regression", "examples": 200, "test": 40, "hidden": 0}, "clients": 4}
    scenario = Scenario(
        rounds=3,
        data={**data, "root": 40},
        model={"name": "linear"},
        client={"per_round": 4, "optimizer": {"name": "sgd", "lr": 0.05}},
        server={"defenses": ["fltrust"]},
    )
    lines = simulate(scenario).lines
    assert not [fault for line in lines for fault in line["faults"]]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


def test_deepsight_takes_a_share_a_class_of_a_head_without_a_bias():
    layout = Layout.of(nn.Sequential(nn.Linear(2, 4), HarmonicHead(4, 3, distance="mahalanobis")))
    rows = Updates(torch.randn(5, layout.d), torch.ones(5), list(range(5)), torch.zeros(layout.d), layout=layout)
    (place,) = (slice(start, stop) for name, start, stop, _ in layout.slices if name == "1.weight")
    energy = rows.values[:, place].double().abs().view(5, 3, 4).sum(2)
    shares = (energy / energy.amax(1, keepdim=True)).square()
    np.testing.assert_allclose(energy_shares(rows), shares / shares.sum(1, keepdim=True), rtol=1e-6)
