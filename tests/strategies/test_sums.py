"""The numbers under every rule: their accuracy, and bits that depend on neither threads nor caches."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from fedsim import runtime
from fedsim.blocks import squared_distances, sum_blocks
from fedsim.geometry import geometry
from fedsim.order_statistics import mean_of_ranks
from fedsim.pairwise import manhattan
from fedsim.registry import make
from fedsim.updates import Selection, Updates, lowest, ranked

ROOT = Path(__file__).resolve().parents[2]


def matrix(n, d, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def updates(n, d, seed=0, dtype=torch.float32):
    return Updates(matrix(n, d, seed, dtype), torch.arange(1, n + 1), list(range(n)), matrix(1, d, seed + 1, dtype)[0])


def everything(rows):
    """All quantities that rules are built on."""
    models = geometry(rows.values, rows.reference)
    weights = torch.linspace(0, 1, len(rows), dtype=torch.float64)
    return [
        rows.gram,
        rows.norms,
        rows.squared_distances(),
        rows.mean(),
        rows.weighted_sum(weights),
        rows.mix(torch.softmax(rows.gram / rows.gram.max(), dim=1)).values,
        manhattan(rows.values),
        models.one_minus_cosine,
        models.norm_differences,
        mean_of_ranks(rows.values, 2, len(rows) - 3),
    ]


@pytest.mark.parametrize("d", [1000, 300_001])
def test_bits_do_not_depend_on_threads(d, monkeypatch):
    rows = updates(12, d)
    expected = everything(rows)
    before = torch.get_num_threads()
    try:
        for cores, threads in ((1, 1), (2, 1), (2, 2), (4, 4), (3, 1)):
            monkeypatch.setattr(runtime, "cores", lambda cores=cores: cores)
            torch.set_num_threads(threads)
            for got, wanted in zip(everything(rows.replace()), expected, strict=True):
                assert torch.equal(got, wanted)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_two_threads_at_once_get_the_bits_of_one():
    rows = updates(10, 250_000)
    expected, found = everything(rows), {}

    def work(number):
        found[number] = everything(rows.replace())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results in found.values():
        assert all(torch.equal(got, wanted) for got, wanted in zip(results, expected, strict=True))
    assert len(found) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(1, 5), (2, 1), (3, 16), (5, 47), (8, 2049), (7, 8200), (4, 140_003)])
def test_manhattan_agrees_with_scipy(n, d, dtype):
    rows = matrix(n, d, dtype=dtype)
    exact = cdist(rows.double(), rows.double(), "cityblock")
    np.testing.assert_allclose(manhattan(rows), exact, rtol=1e-7 if dtype == torch.float32 else 1e-13)


def test_manhattan_of_far_rows_is_accurate_too():
    rows = matrix(3, 200_000)
    rows[0] = 1e8
    np.testing.assert_allclose(manhattan(rows), cdist(rows.double(), rows.double(), "cityblock"), rtol=1.2e-7)
    rows[0], rows[1] = 3e38, -3e38
    assert bool(manhattan(rows).isfinite().all())


def test_manhattan_takes_columns_of_a_larger_matrix_and_transposed_rows():
    rows = matrix(9, 300)
    np.testing.assert_array_equal(manhattan(rows[:, 10:210]), manhattan(rows[:, 10:210].contiguous()))
    np.testing.assert_array_equal(manhattan(rows.T), manhattan(rows.T.contiguous()))
    assert manhattan(rows[:, :0]).tolist() == np.zeros((9, 9)).tolist()


KERNEL = """
import hashlib, fedsim, torch
from fedsim.pairwise import manhattan
x = torch.randn(7, 150_011, generator=torch.Generator().manual_seed(3))
digest = hashlib.sha256()
for rows in (x, x.double(), x[:, :5000]):
    digest.update(manhattan(rows).numpy().tobytes())
print(digest.hexdigest())
"""


def test_a_fresh_and_a_cached_kernel_give_the_same_bits(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    digests = []
    for _ in range(2):
        command = [sys.executable, "-c", KERNEL]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
        digests.append(run.stdout.strip())
        assert list(tmp_path.rglob("*.nbc"))
    assert digests[0] == digests[1]
    rows = matrix(7, 150_011, seed=3)
    here = hashlib.sha256()
    for each in (rows, rows.double(), rows[:, :5000]):
        here.update(manhattan(each).numpy().tobytes())
    assert digests[0] == here.hexdigest()


def test_gram_and_distances_agree_with_float64():
    rows = updates(9, 40_000)
    exact = rows.values.double()
    np.testing.assert_allclose(rows.gram, exact @ exact.T, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(rows.squared_distances(), cdist(exact, exact, "sqeuclidean"), rtol=1e-12)
    np.testing.assert_allclose(rows.norms, exact.norm(dim=1), rtol=1e-13)


def test_distances_between_nearly_equal_rows_are_accurate():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, generator=generator, dtype=torch.float64) * 100
    near = torch.randn(5, 40, generator=generator, dtype=torch.float64)
    rows = torch.cat(
        [base + 1e-7 * near, base[None], base[None], (base + 1e-7 * near[0] + 1e-12 * near[1])[None], -base[None]]
    )
    given = Updates(rows, torch.ones(9), list(range(9)), torch.zeros(40, dtype=torch.float64))
    exact = [[((a - b) ** 2).sum().item() for b in rows.numpy()] for a in rows.numpy()]
    np.testing.assert_allclose(given.squared_distances(), exact, rtol=1e-10)
    assert given.squared_distances()[5, 6] == 0


def test_distances_ask_for_few_rows_only():
    rows = matrix(6, 30, dtype=torch.float64)
    rows[4] = rows[1] * (1 + 1e-12)
    asked = []

    def block(index, columns):
        asked.append(sorted(index.tolist()))
        return rows[index, columns]

    squared_distances(rows @ rows.T, block, 30)
    assert asked
    assert all(set(each) <= {1, 4} for each in asked)


def test_sums_add_blocks_in_order():
    seen = []

    def block(columns):
        seen.append(columns.start)
        return torch.tensor([float(columns.stop - columns.start)])

    assert sum_blocks(block, 1, 10_000, columns=64).item() == 10_000
    assert seen == sorted(seen)
    assert sum_blocks(block, 3, 0) is None


def test_an_error_in_a_block_comes_through():
    def block(columns):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        sum_blocks(block, 1000, 100_000)


def test_weighted_sum_does_not_read_rows_without_weight():
    rows = updates(4, 50)
    rows.values[2] = torch.nan
    result = rows.weighted_sum(torch.tensor([0.5, 0.0, 0.0, 0.5], dtype=torch.float64))
    np.testing.assert_allclose(result, (rows.values[0] + rows.values[3]) / 2, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 30, 257])
def test_ranks_agree_with_sorting(n):
    rows = matrix(n, 500)
    ordered = rows.double().sort(dim=0).values
    for first, last in {(0, 0), (n - 1, n - 1), (0, n - 1), (n // 3, n - 1 - n // 3)}:
        expected = ordered[first : last + 1].mean(dim=0).float()
        np.testing.assert_allclose(mean_of_ranks(rows, first, last), expected, rtol=1e-6, atol=1e-7)
    shuffled = rows[torch.randperm(n, generator=torch.Generator().manual_seed(1))]
    assert torch.equal(mean_of_ranks(rows, 0, n - 1), mean_of_ranks(shuffled, 0, n - 1))


def test_ranked_breaks_ties_by_id_and_puts_nan_last():
    rows = Updates(torch.zeros(5, 1), torch.ones(5), [9, 4, 7, 1, 3], torch.zeros(1))
    scores = torch.tensor([2.0, 1.0, 1.0 + 1e-14, float("nan"), 1.0], dtype=torch.float64)
    assert [rows.client_ids[i] for i in ranked(scores, rows)] == [3, 4, 7, 9, 1]
    assert [rows.client_ids[i] for i in lowest(scores, 2, rows)] == [3, 4]
    assert [rows.client_ids[i] for i in lowest(torch.tensor([-1.0, -2.0, -2.1, 0.0, 5.0]), 2, rows)] == [7, 4]


def test_selections_carry_or_equalise_weights():
    rows = updates(4, 3)
    assert Selection.of(torch.tensor([1, 3]), rows).weights.tolist() == [0, 2, 0, 4]
    assert Selection.equal(torch.tensor([1, 3]), rows).weights.tolist() == [0, 1, 0, 1]


MEMORY = """
import resource, sys, fedsim, torch
rows = torch.empty(40, 1_500_000)
for row in rows:
    row.normal_()
part = fedsim.make("defense", "multi_metrics")
reference = torch.randn(1_500_000)
small = fedsim.Updates(rows[:5, :200_000], torch.ones(5), list(range(5)), reference[:200_000])
part.aggregate(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
part.aggregate(fedsim.Updates(rows, torch.ones(40), list(range(40)), reference))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (rows.numel() * 4))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_the_filter_needs_little_memory_beside_the_updates():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEMORY]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert float(run.stdout) < 0.3


def test_every_rule_reads_rows_of_a_larger_matrix():
    big = matrix(9, 400)
    reference = matrix(1, 300, seed=5)[0]
    for name in ("median", "multi_krum", "multi_metrics", "geometric_median", "centered_clipping", "nnm"):
        strided = Updates(big[:, :300], torch.ones(9), list(range(9)), reference)
        compact = Updates(big[:, :300].contiguous(), torch.ones(9), list(range(9)), reference)
        part = make("defense", name)
        assert torch.equal(part.aggregate(strided).update, part.aggregate(compact).update)
