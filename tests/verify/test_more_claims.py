"""Pieces of the claims on heads, maps, coherence and width, at toy size; figures with what there is."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from fedsim.data.examples import DataInfo, Dataset, Examples
from fedsim.federation import build
from fedsim.losses import fit_monge_map
from fedsim.optim.diffgrad import DiffGrad
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.verify import (
    coherence_examples,
    diffgrad,
    generalization_width,
    harmonic_language,
    monge_costs,
    softmax_sweep,
)
from fedsim.verify.claim import Measured, Row, claims_of
from fedsim.verify.runner import derived_rows
from fedsim.verify.softmax_models import NAMES, architecture


@pytest.mark.parametrize("name", NAMES)
def test_architectures_map_digits_to_ten_logits(name: str) -> None:
    torch.manual_seed(0)
    model = architecture(name).eval()
    x = torch.rand(3, 64)
    assert model(x).shape == (3, 10)
    assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)


def test_a_line_starts_at_the_loss_and_has_the_bound_of_the_linear_model() -> None:
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(64, 10), torch.rand(20, 64), torch.arange(20) % 10
    bound, losses, hits = softmax_sweep._line(model, x, y, 2.0)
    loss = torch.nn.functional.cross_entropy(model(x) / 2, y)
    assert losses[0] == pytest.approx(float(loss.detach()))
    assert len(losses) == len(hits) == len(softmax_sweep.STEPS) + 1
    weight, bias = torch.autograd.grad(loss, list(model.parameters()))
    length = float((weight.square().sum() + bias.square().sum()).sqrt())
    moved = -(x @ weight.T + bias) / length
    assert bound == pytest.approx(2 * math.pi / float((moved.amax(1) - moved.amin(1)).max()), rel=1e-4)


SMALL = {"name": "python_library", "packages": ["html", "json"], "characters": 1600, "context": 8, "stride": 8}


def language(name: str) -> Scenario:
    """A cell of the language scenario in small."""
    changes = {"data.dataset": SMALL, "data.clients": 2, "client.per_round": 2, "client.batch_size": 8}
    model = {"name": "char_transformer", "width": 8, "depth": 1, "heads": 2}
    small = {"rounds": 4, "client.steps": 2, "evaluate.every": 2, "model": model}
    return harmonic_language.cells()[name].changed(**changes, **small)


def test_language_has_a_cell_for_each_head() -> None:
    distances = {name: cell.client.loss.options.get("distance") for name, cell in harmonic_language.cells().items()}
    assert distances == {"cross_entropy": None, "cosine": "cosine", "euclidean": "euclidean"}


def test_models_are_kept_on_the_way_of_one_run() -> None:
    found, spread = harmonic_language.federated(language("cosine"))
    whole = simulate(language("cosine"))
    assert found.digest == whole.digest
    norms = [
        norm
        for last, result in ((2, simulate(language("cosine").changed(rounds=2))), (4, whole))
        for norm in harmonic_language.gradient_norms(build(language("cosine")), result, last)
    ]
    assert len(norms) == 2 * 2 * harmonic_language.BATCHES
    assert spread == pytest.approx(np.std(norms) / np.mean(norms))


def test_language_is_measured_by_the_runs_own_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {name: language(name) for name in harmonic_language.HEADS}
    monkeypatch.setattr(harmonic_language, "cells", lambda: small)
    found = harmonic_language.language(1)
    claim = next(each for each in claims_of("harmonic") if each.key == "language")
    assert set(claim.rows) == set(found.values)
    lines = simulate(small["euclidean"].changed(seed=1)).lines
    assert found.values["euclidean_perplexity"] == pytest.approx(math.exp(lines[-1]["loss"]))
    assert found.series["language euclidean"] == [line["train_loss"] for line in lines[1:]]
    assert "sha256" in found.facts["text"]


def test_embeddings_along_one_line_are_explained_by_it() -> None:
    line = torch.arange(20.0)[:, None] * torch.randn(1, 12)
    assert harmonic_language.explained(line + 5.0) == pytest.approx(1.0)
    assert harmonic_language.explained(torch.eye(16)) == pytest.approx(8 / 15)


def test_what_no_example_reaches_stays() -> None:
    values = generalization_width.frozen(3).values
    assert values["moved"] < 1e-12
    assert values["error"] == pytest.approx(0.75, abs=0.05)


def test_a_student_has_an_error_for_each_width_no_smaller_than_on_the_way() -> None:
    last, least = generalization_width.student(0, (2, 32), steps=200)
    assert len(last) == 2
    assert all(0 < low <= end < 2 for low, end in zip(least, last, strict=True))
    assert last[1] < last[0]


def test_maps_for_three_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monge_costs, "fit_monge_map", partial(fit_monge_map, steps=3, batch_size=16))
    found = monge_costs.costs(0)
    claim = next(each for each in claims_of("monge_gap") if each.key == "costs")
    assert set(claim.rows) <= set(found.values)
    assert all(math.isfinite(value) for value in found.values.values())


def test_an_example_is_learned_at_the_epoch_since_which_it_is_right() -> None:
    epochs = coherence_examples._learned(0, 0, epochs=2)
    assert set(np.unique(epochs)) <= {1, 2, 3}


def test_fedsgd_stands_beside_our_own_central_run() -> None:
    """The known figure is .707; ours may lie on its other side, so that two short distances are one long."""
    found = {
        "cmnist_hgp": [Measured({"test": 0.72}), Measured({"test": 0.74})],
        "cmnist_fedsgd_hgp": [Measured({"fedsgd": 0.69})],
        "cmnist_diagonal": [Measured({"test": 0.70})],
        "cmnist_fedsgd_diagonal": [Measured({"fedsgd": 0.71})],
    }
    hgp, diagonal = derived_rows("hessian_alignment", found)
    assert (hgp.mean, hgp.verdict) == (pytest.approx(0.04), "fails")
    assert (diagonal.mean, diagonal.verdict) == (pytest.approx(0.01), "holds")
    assert derived_rows("hessian_alignment", {})[0].verdict == "not run"
    assert derived_rows("gns", {}) == []


def test_tables_of_pairs_know_what_follows() -> None:
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 4, (4000, 3), generator=g, dtype=torch.int32)
    train = Examples(codes, (codes[:, -1].long() + 1) % 4)
    single, pairs = harmonic_language.by_tables(Dataset(train, train, DataInfo((3,), 4, 4000, 4000, 4)))
    assert single == pytest.approx(4.0, rel=0.01)
    p = (1000 + 20 / 4) / 1020
    assert pairs == pytest.approx(1 / p, rel=0.01), "certain, but for the prior"


def test_the_friction_of_the_aliased_bug_is_told_from_diffgrads() -> None:
    """Means of ξ are so near ½ that bounds on them hold for the bug as well; what is beyond ½ does not."""
    network = next(each for each in claims_of("diffgrad") if each.key == "network")
    ours, aliased = {"friction": 0.5011}, {"friction": 0.50001}
    fashion = {"friction_diffgrad": 0.50055, "friction_aliased": 0.5}
    found = {"network": [Measured(ours)], "fashion_central": [Measured(fashion)]}
    assert [row.verdict for row in derived_rows("diffgrad", found)] == ["holds", "holds", "not run", "not run"]
    bug = {"network": [Measured(aliased)], "fashion_central": [Measured(fashion | {"friction_diffgrad": 0.50005})]}
    assert [row.verdict for row in derived_rows("diffgrad", bug)][:2] == ["fails", "fails"]
    assert Row("diffgrad", "k", network.rows["friction"], "s", [0.50001]).verdict == "fails"


def test_the_aliased_bug_has_a_half_on_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffgrad, "DiffGrad", partial(DiffGrad, aliased=True))
    row = derived_rows("diffgrad", {"network": [diffgrad.network(0)]})[0]
    assert (row.key, row.verdict) == ("network.beyond", "fails")


def test_a_control_and_a_start_stand_beside_what_they_are_held_against() -> None:
    starts = [Measured({}, {"real": [7.3, 6.0], "random": [1.5, 1.0]}), Measured({}, {"real": [5.3], "random": [1.3]})]
    wrong = [Measured({"rm3": 0.024, "ra3": 0.020}), Measured({"rm3": 0.022, "ra3": 0.024})]
    real, random, beyond = derived_rows("coherence", {"over_training": starts, "wrong_labels": wrong})
    assert (real.values, random.values) == ([7.3, 5.3], [1.5, 1.3])
    assert (beyond.mean, beyond.verdict) == (pytest.approx(0.001), "holds")
    heads = [Measured({"harmonic": 92.2, "cross_entropy": 92.5}), Measured({"harmonic": 92.3, "cross_entropy": 92.5})]
    (ahead,) = derived_rows("harmonic", {"mnist_linear": heads})
    assert (ahead.mean, ahead.verdict) == (pytest.approx(0.25), "differs")
