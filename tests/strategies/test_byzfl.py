"""ByzFL's aggregators and attacks beside ours, on random rows: equal, or different as our part's docstring says.

ByzFL 0.0.11 (https://github.com/LPD-EPFL/byzfl) is installed alone, without its dependencies, into ``.cache/byzfl`` at
first use; where that cannot be done the tests are skipped. It has ARC and MoNNA, which we do not. Of the other peers,
Blades' package (0.1.1234) wants torchvision 0.15 and a module ``fllib`` that no index has, and FLPoison has no package.
"""

from __future__ import annotations

import importlib
import itertools
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from attacks.adversary import Adversary
from attacks.attack import Compromised, Craft
from fedsim import registry
from fedsim.data.examples import Examples
from fedsim.registry import make
from fedsim.updates import Updates
from strategies.defense import Round
from strategies.pipeline import aggregate

pytestmark = pytest.mark.slow

VERSION = "0.0.11"
ROOT = Path(__file__).parents[2]
CASES = [(7, 1, 0), (9, 2, 1), (11, 3, 2), (12, 4, 3)]
"""(clients, malicious ones among them, seed)."""
D = 7


def fetched():
    """The folder in which ByzFL lies; a skip where it cannot be installed."""
    folder = ROOT / ".cache" / "byzfl"
    if not (folder / "byzfl").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--retries", "0", "--target", str(folder)]
        flags = shlex.split(os.environ.get("PIP_FLAGS", ""))
        done = subprocess.run([*pip, *flags, f"byzfl=={VERSION}"], capture_output=True, text=True, timeout=300)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"byzfl {VERSION} cannot be installed: {last}")
    return folder


@pytest.fixture(scope="module")
def byzfl():
    """ByzFL's modules ``aggregators`` and ``attacks``, without what its own ``__init__`` imports (torchvision)."""
    package = types.ModuleType("byzfl")
    package.__path__ = [str(fetched() / "byzfl")]
    before = dict(sys.modules)
    sys.modules["byzfl"] = package
    try:
        found = types.SimpleNamespace(
            **vars(importlib.import_module("byzfl.aggregators")),
            **{
                name: part
                for name, part in vars(importlib.import_module("byzfl.attacks")).items()
                if isinstance(part, type) and part.__module__ == "byzfl.attacks.attacks"
            },
        )
    except ImportError as error:
        pytest.skip(f"byzfl {VERSION} cannot be imported: {error}")
    finally:
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] == "byzfl":
                del sys.modules[name]
    return found


def values(n, f, seed, d=D):
    """(n, d) rows, f of them far from the others."""
    generator = np.random.default_rng(seed)
    found = generator.normal(size=(n, d))
    found[:f] += generator.normal(size=d) * 5
    return found


def updates(rows):
    given = torch.from_numpy(np.ascontiguousarray(rows))
    return Updates(given, torch.ones(len(given)), list(range(len(given))), torch.zeros(given.shape[1]).double())


def ours(name, rows, **options):
    return make("defense", name, **options).aggregate(updates(rows)).update.numpy()


def mixed(name, rows, **options):
    return make("defense", name, **options).transform(updates(rows), Round()).values.numpy()


EQUAL = {
    "fedavg": (lambda peer, f: peer.Average(), lambda f: {}),
    "median": (lambda peer, f: peer.Median(), lambda f: {}),
    "trimmed_mean": (lambda peer, f: peer.TrMean(f), lambda f: {"trim": f}),
    "mda": (lambda peer, f: peer.MDA(f), lambda f: {"malicious": f}),
    "meamed": (lambda peer, f: peer.Meamed(f), lambda f: {"malicious": f}),
    "centered_clipping": (
        lambda peer, f: peer.CenteredClipping(tau=2.0, L=3),
        lambda f: {"radius": 2.0, "iterations": 3},
    ),
    # Its limit: ByzFL stops after three steps from zero, with a smoothing that is a length.
    "geometric_median": (lambda peer, f: peer.GeometricMedian(nu=1e-9, T=2000), lambda f: {}),
    # ByzFL sums n - f - 1 distances to the other rows, the paper n - f - 2.
    "krum": (lambda peer, f: peer.Krum(f), lambda f: {"malicious": f - 1}),
}


@pytest.mark.parametrize(("n", "f", "seed"), CASES)
@pytest.mark.parametrize("name", EQUAL)
def test_aggregators_are_equal(byzfl, name, n, f, seed):
    theirs, options = EQUAL[name]
    rows = values(n, f, seed)
    np.testing.assert_allclose(ours(name, rows, **options(f)), theirs(byzfl, f)(rows), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("n", "f", "seed"), CASES)
def test_multi_krum_is_equal_but_for_one_neighbour(byzfl, n, f, seed):
    rows = values(n, f, seed)
    np.testing.assert_allclose(ours("multi_krum", rows, malicious=f - 1, keep=n - f), byzfl.MultiKrum(f)(rows))


def test_centered_clipping_remembers_alike(byzfl):
    theirs, state = byzfl.CenteredClipping(tau=1.5, L=2), {}
    part = make("defense", "centered_clipping", radius=1.5, iterations=2)
    for number in range(1, 5):
        rows = values(9, 2, number)
        got = part.aggregate(updates(rows), Round(round=number, state=state)).update
        np.testing.assert_allclose(got, theirs(rows), rtol=1e-9)


@pytest.mark.parametrize(("n", "f", "seed"), CASES)
def test_pre_aggregators_are_equal(byzfl, monkeypatch, n, f, seed):
    rows = values(n, f, seed)
    np.testing.assert_allclose(mixed("nnm", rows, malicious=f), byzfl.NNM(f)(rows))
    np.testing.assert_allclose(mixed("norm_bound", rows, radius=2.0), byzfl.Clipping(2.0)(rows.copy()))
    order = Round().stream("buckets").permutation(n)
    monkeypatch.setattr(np.random, "permutation", lambda given: given[order])
    buckets = mixed("bucketing", rows, size=2)
    np.testing.assert_allclose(sorted(buckets.tolist()), sorted(byzfl.Bucketing(2)(rows).tolist()))


@pytest.mark.parametrize(("n", "f", "seed"), CASES)
def test_smea_is_equal_where_there_is_one_direction_and_narrower_elsewhere(byzfl, n, f, seed):
    line = values(n, f, seed, d=1)
    np.testing.assert_allclose(ours("smea", line, malicious=f), byzfl.SMEA(f)(line))
    rows = values(n, f, seed)
    np.random.seed(seed)  # ByzFL guesses each subset's eigenvalue from one power step on a random vector.
    guessed = byzfl.SMEA(f)(rows)
    kept = make("defense", "smea", malicious=f).aggregate(updates(rows)).weights.numpy() > 0
    subsets = map(list, itertools.combinations(range(n), n - f))
    theirs = next(subset for subset in subsets if np.allclose(rows[subset].mean(axis=0), guessed))
    assert spread(rows[kept]) <= spread(rows[theirs]) * (1 + 1e-9)


def spread(rows):
    return np.linalg.eigvalsh(np.cov(rows.T, bias=True))[-1]


def filtered(rows, f, among_all):
    """CAF, with the maximum over all rows or over those that still count."""
    weights, best, smallest = np.ones(len(rows)), None, np.inf
    while weights.sum() > len(rows) - 2 * f:
        mean = weights @ rows / weights.sum()
        off = rows - mean
        roots, vectors = np.linalg.eigh((weights[:, None] * off).T @ off / weights.sum())
        if roots[-1] < smallest:
            best, smallest = mean, roots[-1]
        along = (off @ vectors[:, -1]) ** 2
        weights = weights * (1 - along / (along if among_all else along[weights > 0]).max())
        weights = np.maximum(weights, 0)
    return best


@pytest.mark.parametrize(("n", "f", "seed"), CASES)
def test_caf_differs_by_the_rows_over_which_the_maximum_is_taken(byzfl, n, f, seed):
    line = values(n, f, seed, d=1)
    np.testing.assert_allclose(byzfl.CAF(f)(line), filtered(line, f, among_all=True), rtol=1e-6)
    for rows in (line, values(n, f, seed)):
        np.testing.assert_allclose(ours("caf", rows, malicious=f), filtered(rows, f, among_all=False), rtol=1e-6)


def crafted(name, own, honest, **options):
    adversary = Adversary([make("attack", name, **options)], 20, count=len(own), knowledge="omniscient")
    sent, _ = adversary.craft(updates(own), updates(honest), round=1, num_clients=len(own) + len(honest))
    return sent.numpy()


@pytest.mark.parametrize("seed", range(3))
def test_attacks_are_equal(byzfl, seed):
    own, honest = values(3, 0, seed), values(9, 0, seed + 10)
    everyone, n = np.concatenate([own, honest]), 12
    for name, options, theirs in (
        ("sign_flip", {"of": "mean"}, byzfl.SignFlipping()(honest)),
        ("ipm", {"epsilon": 0.7}, byzfl.InnerProductManipulation(0.7)(honest)),
        # Ours goes the paper's way, down, by standard deviations with ddof 0; ByzFL goes up, with ddof 1.
        ("alie", {"z": -1.5 * (n / (n - 1)) ** 0.5}, byzfl.ALittleIsEnough(1.5)(everyone)),
        ("non_finite", {"value": "inf"}, byzfl.Inf()(honest)),
    ):
        np.testing.assert_allclose(crafted(name, own, honest, **options), np.tile(theirs, (3, 1)), rtol=1e-9)


def test_mimic_copies_the_row_that_byzfl_is_told(byzfl):
    own, honest = values(3, 0, 0), values(9, 0, 1)
    sent = crafted("mimic", own, honest)
    copied = [i for i in range(9) if np.array_equal(byzfl.Mimic(i)(honest), sent[0])]
    assert len(copied) == 1
    assert np.array_equal(sent, np.tile(honest[copied], (3, 1)))


def test_gaussian_has_the_same_distribution(byzfl):
    np.random.seed(0)
    theirs = byzfl.Gaussian(sigma=2.0)(np.zeros((1, 20_000)))
    got = crafted("gaussian", np.zeros((2, 20_000)), np.zeros((2, 20_000)), scale=2.0)
    assert stats.ks_2samp(got[0], theirs).pvalue > 0.01
    assert abs(np.corrcoef(got)[0, 1]) < 0.03


def test_labels_flip_alike(byzfl):
    """ByzFL's client flips y to C - 1 - y; its attack is then the mean of what such clients learnt."""
    targets = torch.arange(10)
    flipped = make("attack", "label_flip").poison(Examples(torch.zeros(10, 1), targets), Compromised(0, 0, 1, 1, 0, 10))
    assert torch.equal(flipped.targets, targets.sub(10 - 1).mul(-1))
    rows = values(4, 0, 0)
    np.testing.assert_allclose(byzfl.LabelFlipping()(rows), rows.mean(axis=0))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["ipm", "alie"])
def test_our_search_of_the_scalar_finds_no_less(byzfl, name, seed):
    """Both search one scalar through NNM and the median; ours scans before it refines."""
    f = 3
    own, honest = values(f, 0, seed), values(9, 0, seed + 20)
    parts = [make("defense", "nnm", malicious=f), make("defense", "median")]

    def server(rows):
        return aggregate(parts, updates(np.concatenate([rows.numpy(), honest])), [Round(), Round()]).update

    trained = torch.from_numpy(own)
    option = {"ipm": "epsilon", "alie": "z"}[name]
    part = make("attack", "optimal", attack=name, low=0.05, high=20.0, steps=60, refine=12)
    ctx = Craft(
        rows=trained,
        reference=torch.zeros(D).double(),
        clients=list(range(f)),
        num_clients=12,
        num_malicious=f,
        num_examples=torch.ones(f),
        knowledge="omniscient",
        server_lr=1.0,
        round=1,
        seed=0,
        honest_rows=torch.from_numpy(honest),
        honest_examples=torch.ones(9),
        server=server,
    )
    sent = part.craft(trained, ctx)
    chosen = {"agg": byzfl.Median(), "pre_agg_list": [byzfl.NNM(f)], "f": f, "evals": 40}
    if name == "ipm":
        theirs = byzfl.Optimal_InnerProductManipulation(**chosen)(honest)
        value = -theirs[0] / honest.mean(axis=0)[0]
    else:
        # ByzFL goes up and we go down; both rules are odd, so that the rows with their signs turned are our problem.
        theirs = -byzfl.Optimal_ALittleIsEnough(**chosen)(-np.concatenate([own, honest]))
        everyone = np.concatenate([own, honest])
        value = (everyone.mean(axis=0) - theirs)[0] / everyone.std(axis=0, ddof=0)[0]
    before = server(trained)
    reached = float((server(sent) - before).norm())
    fixed = registry.make("attack", name, **{option: float(np.clip(value, 0.05, 20.0))}).craft(trained, ctx)
    assert reached >= float((server(fixed) - before).norm()) * 0.999
