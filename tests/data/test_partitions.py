"""Partitions: nothing is lost or doubled, the seed decides, and each skew is the one that is asked for."""

from __future__ import annotations

import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import registry
from fedsim.data.describe import labels_of, partition_table
from fedsim.data.examples import DataInfo, Dataset, Examples, Shares
from fedsim.data.index_file import write
from fedsim.errors import FedsimError, ScenarioError
from fedsim.scenario import Scenario


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
    name=st.sampled_from(["iid", "dirichlet", "balanced_dirichlet", "shards", "quantity", "similarity"]),
)
def test_every_example_goes_to_exactly_one_client(sizes, classes, alpha, seed, name):
    examples, clients = sizes
    labels = np.random.default_rng(seed).integers(0, classes, examples)
    options = {
        "dirichlet": {"alpha": alpha},
        "balanced_dirichlet": {"alpha": alpha},
        "quantity": {"law": "dirichlet", "alpha": alpha},
        "shards": {"shards": 1},
    }
    part = registry.make("partition", name, **options.get(name, {}))
    shares = part.assign(dataset(labels, classes), clients, seed)
    assert len(shares) == clients
    assert sorted(shares.indices.tolist()) == list(range(examples))
    assert shares.sizes.sum() == examples
    assert shares.sizes.min() >= 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iid", {}),
        ("iid", {"examples": 7}),
        ("dirichlet", {"alpha": 0.3}),
        ("balanced_dirichlet", {"alpha": 0.3}),
        ("shards", {}),
        ("similarity", {}),
        ("labels_per_client", {}),
        ("label_bias", {}),
        ("quantity", {}),
        ("quantity", {"law": "dirichlet"}),
        ("flwr:DirichletPartitioner", {"alpha": 0.5}),
        ("flwr:IidPartitioner", {}),
    ],
)
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


@pytest.mark.parametrize(("weights", "alpha"), [((1, 1, 1, 1), 2.0), ((4, 3, 2, 1), 5.0), ((1, 1, 1, 1), 1000.0)])
def test_balanced_dirichlet_gives_equal_sizes_and_the_moments_of_its_distribution(weights, alpha):
    """Of m labels from q ~ Dir(α·p): mean p, variance p(1 - p)·(1 + (m - 1)/(α + 1))/m; less by what is dealt out."""
    clients, m = 1500, 40
    prior = np.array(weights) / sum(weights)
    data = dataset(np.repeat(np.arange(4), (clients * m * prior).round().astype(int)), 4)
    shares = registry.make("partition", "balanced_dirichlet", alpha=alpha).assign(data, clients, 0)
    assert set(shares.sizes.tolist()) == {m}
    share = label_shares(data, shares)
    np.testing.assert_allclose(share.mean(axis=0), prior, rtol=1e-9)
    expected = prior * (1 - prior) * (1 + (m - 1) / (alpha + 1)) / m
    np.testing.assert_allclose(share.var(axis=0), expected, rtol=0.15)


def test_balanced_dirichlet_leaves_few_labels_to_a_client_for_small_alpha():
    data = balanced(10_007)
    shares = registry.make("partition", "balanced_dirichlet", alpha=1e-6).assign(data, 500, 0)
    assert sorted(set(shares.sizes.tolist())) == [20, 21]
    held = (label_shares(data, shares) > 0).sum(axis=1)
    assert np.median(held) == 1


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


def test_a_million_clients_cost_their_index_array():
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


def test_shards_give_each_client_few_labels():
    data = balanced(1000)
    shares = registry.make("partition", "shards", shards=2).assign(data, 50, 0)
    assert set(shares.sizes.tolist()) == {20}
    assert ((label_shares(data, shares) > 0).sum(axis=1) <= 2).all()


def label_counts(data: Dataset, shares: Shares) -> np.ndarray:
    labels = data.train.targets.numpy()
    return np.stack([np.bincount(labels[mine], minlength=data.info.num_classes) for mine in shares])


def test_similarity_zero_sorts_by_label_and_one_is_iid():
    data = balanced(1000)
    sorted_by_label = label_counts(data, registry.make("partition", "similarity", gamma=0.0).assign(data, 10, 0))
    assert sorted(sorted_by_label.argmax(axis=1).tolist()) == list(range(10))
    assert sorted_by_label.max(axis=1).tolist() == [100] * 10
    neighbours = label_counts(data, registry.make("partition", "similarity", gamma=0.0).assign(data, 7, 0))
    assert all(np.ptp(np.flatnonzero(row)) == len(np.flatnonzero(row)) - 1 <= 2 for row in neighbours)
    large = balanced(20_000)
    uniform = label_counts(large, registry.make("partition", "similarity", gamma=1.0).assign(large, 10, 0))
    assert np.abs(uniform - 200).max() < 4.5 * np.sqrt(200 * 0.9 * 0.9)


@pytest.mark.parametrize("gamma", [0.1, 0.33, 0.66])
def test_similarity_leaves_each_client_the_share_that_is_sorted(gamma):
    """With a client a label, the client's own label has γ/L + 1 - γ of its examples, each other one γ/L.

    Where the sorted rest is cut, the labels' counts in it differ from their means: by less than three standard
    deviations of a hypergeometric count on the average, which is what a neighbour's label gets.
    """
    examples = 1_000_000
    data = balanced(examples)
    counts = label_counts(data, registry.make("partition", "similarity", gamma=gamma).assign(data, 10, 2))
    assert set(counts.sum(axis=1).tolist()) == {examples // 10}
    cut = 3 * np.sqrt(examples * (1 - gamma) * gamma / 4) / (examples / 10)
    own = np.sort(counts.max(axis=1)) / (examples / 10)
    assert own.mean() == pytest.approx(gamma / 10 + 1 - gamma, abs=cut)
    others = (counts.sum() - counts.max(axis=1).sum()) / (9 * examples)
    assert others == pytest.approx(gamma / 10, abs=cut / 9)


@settings(max_examples=40, deadline=None)
@given(clients=st.integers(5, 60), labels=st.integers(2, 10), seed=st.integers(0, 3))
def test_each_client_holds_as_many_labels_as_it_is_told(clients, labels, seed):
    data = balanced(6000)
    shares = registry.make("partition", "labels_per_client", labels=labels).assign(data, clients, seed)
    counts = label_counts(data, shares)
    assert sorted(shares.indices.tolist()) == list(range(6000))
    assert ((counts > 0).sum(axis=1) == labels).all()
    holders = (counts > 0).sum(axis=0)
    assert np.ptp(holders) <= 1
    for label in range(10):
        held = counts[counts[:, label] > 0, label]
        assert np.ptp(held) <= 1, "its holders share a label evenly"


def test_labels_that_nobody_could_hold_are_refused():
    part = registry.make("partition", "labels_per_client", labels=2)
    with pytest.raises(ScenarioError, match="labels: given 2; accepted: at least 3, so that 4 clients hold all 10"):
        part.assign(balanced(100), 4, 0)
    with pytest.raises(ScenarioError, match="labels: given 11; accepted: up to 10, the labels there are"):
        registry.make("partition", "labels_per_client", labels=11).assign(balanced(100), 40, 0)


@pytest.mark.parametrize("bias", [0.1, 0.5, 0.95])
def test_label_bias_sends_a_label_to_its_group_with_its_probability(bias):
    """Groups are told by the label that they are biased to; q of each label lies there, (1-q)/(L-1) in each other."""
    data = balanced(100_000, 5)
    counts = label_counts(data, registry.make("partition", "label_bias", bias=bias).assign(data, 20, 1))
    if bias == 0.1:
        group = counts.argmin(axis=1)  # q < 1/L: its own label is the rarest.
    else:
        group = counts.argmax(axis=1)
    assert np.bincount(group).tolist() == [4] * 5
    share = np.stack([counts[group == each].sum(axis=0) for each in range(5)]) / 20_000
    expected = np.where(np.eye(5, dtype=bool), bias, (1 - bias) / 4)
    np.testing.assert_allclose(share, expected, atol=4.5 * 0.5 / np.sqrt(20_000))
    within = counts[group == 0].sum(axis=1)
    assert np.abs(within - within.mean()).max() < 4.5 * np.sqrt(within.mean()), "uniform in a group"


def test_label_bias_of_one_in_labels_is_iid():
    data = balanced(50_000, 5)
    counts = label_counts(data, registry.make("partition", "label_bias", bias=0.2).assign(data, 10, 0))
    assert np.abs(counts - 1000).max() < 4.5 * np.sqrt(1000)


def test_label_bias_needs_a_group_for_each_label():
    with pytest.raises(ScenarioError, match=r"data\.clients: given 9; accepted: at least 10: a group of clients for"):
        registry.make("partition", "label_bias").assign(balanced(100), 9, 0)


@pytest.mark.parametrize("name", ["labels_per_client", "label_bias"])
def test_no_client_is_left_without_examples(name):
    shares = registry.make("partition", name).assign(balanced(40), 30, 0)
    assert sorted(shares.indices.tolist()) == list(range(40))
    assert shares.sizes.min() >= 1


def test_quantity_follows_the_power_law():
    shares = registry.make("partition", "quantity", exponent=1.0, min_examples=0).assign(balanced(100_000), 4, 0)
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4
    expected = [100_000 / harmonic / rank for rank in (4, 3, 2, 1)]
    np.testing.assert_allclose(np.sort(shares.sizes), expected, atol=1)


def test_quantity_without_exponent_is_even():
    shares = registry.make("partition", "quantity", exponent=0.0).assign(balanced(100), 4, 0)
    assert shares.sizes.tolist() == [25] * 4


@pytest.mark.parametrize(
    ("partition", "said"),
    [
        ({"alpha": 0.5}, r"alpha: given 0\.5; accepted: none with law = 'power'"),
        ({"law": "dirichlet", "exponent": 2.0}, r"exponent: given 2\.0; accepted: none with law = 'dirichlet'"),
    ],
)
def test_quantity_refuses_what_its_law_does_not_read(partition, said):
    with pytest.raises(ScenarioError, match=said):
        Scenario(data={"clients": 4, "partition": {"name": "quantity", **partition}}).check()


def with_column(values: list[int]) -> Dataset:
    data = balanced(len(values))
    return Dataset(data.train, data.test, data.info, {"writer": np.array(values)})


def test_natural_gives_each_value_one_client():
    shares = registry.make("partition", "natural", column="writer").assign(with_column([7, 7, 3, 5, 3, 7]), 3, 0)
    assert [sorted(mine.tolist()) for mine in shares] == [[2, 4], [3], [0, 1, 5]]


def test_natural_never_splits_a_value():
    values = np.random.default_rng(0).integers(0, 30, 400)
    shares = registry.make("partition", "natural", column="writer").assign(with_column(values.tolist()), 7, 0)
    held = [set(values[mine].tolist()) for mine in shares]
    assert sum(len(each) for each in held) == len(set().union(*held)) == 30
    assert {len(each) for each in held} == {4, 5}
    assert sorted(shares.indices.tolist()) == list(range(400))


def test_natural_names_the_columns_and_the_values_there_are():
    data = with_column([1, 1, 2, 2])
    with pytest.raises(FedsimError, match=r"given 'writr'; accepted: target, writer \(did you mean 'writer'\?\)"):
        registry.make("partition", "natural", column="writr").assign(data, 2, 0)
    with pytest.raises(ScenarioError, match="given 3; accepted: up to 2, the different values of column 'writer'"):
        registry.make("partition", "natural", column="writer").assign(data, 3, 0)


LISTS = [[0, 3], [], [1, 2, 4]]


@pytest.mark.parametrize("form", ["json", "csr", "arrays"])
def test_file_round_trip(tmp_path, form):
    file = tmp_path / ("shares.json" if form == "json" else "shares.npz")
    if form == "json":
        file.write_text(json.dumps(LISTS))
    elif form == "csr":
        write(file, Shares.of([np.array(each, dtype=np.int64) for each in LISTS]))
    else:
        np.savez(file, **{f"client_{i}": np.array(LISTS[i], dtype=np.int64) for i in (2, 0, 1)})
    shares = registry.make("partition", "file", path=str(file)).assign(balanced(5), 3, 0)
    assert [mine.tolist() for mine in shares] == LISTS


@pytest.mark.parametrize(
    ("lists", "options", "says"),
    [
        ([[0, 1], [2]], {}, "holds 2 clients; accepted: data.clients = 3"),
        ([[0, 1], [2], [3]], {}, "leaves out 1 examples; accepted: all of them, or partial = true"),
        ([[0, 1, 2], [2], [3, 4]], {}, "1 examples have several clients; accepted: one, or shared = true"),
        ([[0, 1, 1], [2], [3, 4]], {"shared": True}, "client 0 holds an example twice"),
        ([[0, 1], [2], [3, 5]], {}, "positions 0 to 5; accepted: 0 to 4"),
        ([[0.5], [2], [3]], {}, "accepted: a .json or .npz file of index arrays"),
    ],
)
def test_file_says_what_is_wrong(tmp_path, lists, options, says):
    file = tmp_path / "shares.json"
    file.write_text(json.dumps(lists))
    with pytest.raises(FedsimError, match=says):
        registry.make("partition", "file", path=str(file), **options).assign(balanced(5), 3, 0)


def test_file_may_share_and_leave_out_where_that_is_asked_for(tmp_path):
    file = tmp_path / "shares.json"
    file.write_text("[[0, 1], [1], [3]]")
    shares = registry.make("partition", "file", path=str(file), shared=True, partial=True).assign(balanced(5), 3, 0)
    assert [mine.tolist() for mine in shares] == [[0, 1], [1], [3]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("IidPartitioner", {}),
        ("LinearPartitioner", {}),
        ("SquarePartitioner", {}),
        ("DirichletPartitioner", {"alpha": 0.5}),
        ("PathologicalPartitioner", {"num_classes_per_partition": 2, "class_assignment_mode": "deterministic"}),
        ("ShardPartitioner", {"num_shards_per_partition": 2}),
        ("NaturalIdPartitioner", {}),
        ("GroupedNaturalIdPartitioner", {"group_size": 1}),
        ("ContinuousPartitioner", {"strictness": 0.5}),
        ("SizePartitioner", {"partition_sizes": [50] * 10}),
        ("InnerDirichletPartitioner", {"partition_sizes": [50] * 10, "alpha": 0.5}),
        (
            "DistributionPartitioner",
            {
                "distribution_array": [[2.0]] * 5 + [[5.0]] * 5,
                "num_unique_labels_per_partition": 1,
                "preassigned_num_samples_per_label": 2,
            },
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_flower_s_partitioners_work_by_their_own_names(name, options):
    shares = registry.make("partition", f"flwr:{name}", **options).assign(balanced(500), 10, 0)
    assert len(shares) == 10
    assert len(np.unique(shares.indices)) == len(shares.indices)
    if name != "DistributionPartitioner":
        assert len(shares.indices) == 500


def test_flower_s_options_are_checked_like_ours():
    with pytest.raises(ScenarioError, match=r"alpa: given 0.5; accepted: no such option \(did you mean 'alpha'\?\)"):
        registry.make("partition", "flwr:DirichletPartitioner", alpa=0.5)
    with pytest.raises(ScenarioError, match=r"'flwr:Dirichlet' does not exist .did you mean 'DirichletPartitioner'"):
        registry.make("partition", "flwr:Dirichlet")
    with pytest.raises(FedsimError, match=r"makes 10 partitions; accepted: data.clients = 10"):
        registry.make("partition", "flwr:NaturalIdPartitioner").assign(balanced(500), 4, 0)


@pytest.mark.parametrize("name", ["dirichlet", "shards"])
def test_label_partitions_refuse_a_regression(name):
    data = balanced(20)
    regression = Dataset(data.train, data.test, DataInfo((1,), 0, 20, 20))
    with pytest.raises(ScenarioError, match=r"data.partition.name: given .*; accepted: a data set with classes"):
        registry.make("partition", name).assign(regression, 2, 0)


def scenario(dataset: str, options: dict[str, object], clients: int, root: int = 0) -> SimpleNamespace:
    part = SimpleNamespace(name=dataset, options=options)
    return SimpleNamespace(data=SimpleNamespace(dataset=part, clients=clients, root=root))


def test_check_finds_faults_without_reading_the_data():
    dirichlet = registry.make("partition", "dirichlet", min_examples=10)
    (fault,) = dirichlet.check(scenario("fashion_mnist", {}, 6001))
    assert (fault.key, fault.given) == ("/data.clients", 6001)
    assert fault.accepted == "up to 6000 with 10 examples each at the least: there are 60000 training examples"
    assert not list(dirichlet.check(scenario("fashion_mnist", {}, 6000)))
    assert len(list(dirichlet.check(scenario("fashion_mnist", {}, 6000, root=1)))) == 1
    (fault,) = registry.make("partition", "feature_shift").check(scenario("synthetic_classification", {}, 10))
    assert fault.key == "name"
    assert not list(dirichlet.check(scenario("huggingface", {"path": "a/b"}, 10**9)))
    assert not list(dirichlet.check(scenario("no_such_set", {}, 10**9)))
    (fault,) = registry.make("partition", "iid", examples=2000).check(scenario("digits", {}, 10))
    assert (fault.key, fault.accepted) == ("examples", "up to 1438, the training examples there are")


def images(n: int = 6) -> Examples:
    return Examples(torch.rand(n, 1, 9, 9, generator=torch.Generator().manual_seed(0)), torch.arange(n))


@pytest.mark.parametrize("shift", ["rotation", "noise", "colour"])
def test_feature_shift_is_each_client_s_own_and_stays_in_range(shift):
    part = registry.make("partition", "feature_shift", shift=shift)
    clean = images()
    before = clean.inputs.clone()
    first, again, other = (part.view(clean, client, 0).inputs for client in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, before)
    assert torch.equal(clean.inputs, before)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(part.view(clean, 0, 0).targets, clean.targets)


@pytest.mark.parametrize("shift", ["rotation", "noise", "colour"])
def test_feature_shift_of_no_strength_changes_nothing(shift):
    part = registry.make("partition", "feature_shift", shift=shift, strength=0.0)
    torch.testing.assert_close(part.view(images(), 3, 0).inputs, images().inputs, atol=1e-5, rtol=0)


def test_rotation_turns_counter_clockwise():
    from fedsim.data.feature_shift import rotate

    square = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotate(square, 90.0), torch.rot90(square, 1, (2, 3)), atol=1e-5, rtol=0)
    oblong = torch.rand(1, 1, 4, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotate(oblong, 180.0), oblong.flip(2, 3), atol=1e-5, rtol=0)


def test_feature_shift_deals_like_iid():
    ours = registry.make("partition", "feature_shift")
    data = Dataset(images(40), images(), DataInfo((1, 9, 9), 40, 40, 6))
    np.testing.assert_array_equal(
        ours.assign(data, 4, 0).indices, registry.make("partition", "iid").assign(data, 4, 0).indices
    )


def test_the_table_counts_labels_for_each_client():
    data = dataset(np.array([0, 1, 1, 2, 0, 2]), 3)
    shares = Shares.of([np.array([0, 1, 2]), np.array([], dtype=np.int64), np.array([3, 4, 5])])
    assert partition_table(data, shares).tolist() == [[1, 2, 0], [0, 0, 0], [1, 0, 2]]
    assert labels_of(data) == ["0", "1", "2"]


def test_the_table_of_a_regression_goes_by_deciles():
    examples = Examples(torch.zeros(100, 1), torch.arange(100.0))
    data = Dataset(examples, examples, DataInfo((1,), 0, 100, 100))
    table = partition_table(data, Shares.of([np.arange(50), np.arange(50, 100)]))
    assert table.tolist() == [[10] * 5 + [0] * 5, [0] * 5 + [10] * 5]
    assert len(labels_of(data)) == 10


def test_a_scenario_with_more_clients_than_examples_names_the_key():
    from fedsim.scenario import Scenario

    with pytest.raises(ScenarioError) as caught:
        Scenario(data={"dataset": "digits", "partition": {"name": "dirichlet", "min_examples": 20}, "clients": 100})
    (fault,) = caught.value.faults
    assert fault.key == "data.clients"
    assert fault.accepted == "up to 71 with 20 examples each at the least: there are 1438 training examples"
    assert Scenario(data={"dataset": "digits", "partition": {"name": "iid", "examples": 20}, "clients": 2000})


def test_flower_s_options_are_explained():
    part = registry.get("partition", "flwr:DirichletPartitioner")
    explained = {option.name: option.meaning for option in registry.options(part)}
    assert explained["alpha"].startswith("Concentration parameter")
    assert "num_partitions" not in explained
    assert "seed" not in explained
    assert registry.source(part) == "flwr-datasets, DirichletPartitioner."
