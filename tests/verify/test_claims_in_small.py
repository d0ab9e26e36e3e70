"""What the claims of five papers are made of, at toy size: each against something that is known without it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import fedsim
from fedsim.optim import gns
from fedsim.optim.diffgrad import DiffGrad
from fedsim.scenario import Scenario, cells, read
from fedsim.verify import coherence, fashion, generalization, gns_pooled, langevin, rotated, two_objectives
from fedsim.verify.coloured import (
    METHODS,
    analogue,
    analogue_domains,
    curve,
    fedavg,
    fedsgd,
    in_federation,
    network,
    train,
)
from fedsim.verify.gns import CURVATURES, EVERY, gap, logistic

PAPERS = Path(fedsim.__file__).parent.parent / "scenarios" / "papers"
OURS = ("hessian_alignment", "cmnist", "cmnist_fedavg", "diffgrad", "langevin", "sam_gs", "gns")


@pytest.mark.parametrize("name", OURS)
def test_the_papers_scenarios_load_with_a_control(name: str) -> None:
    file = PAPERS / f"{name}.toml"
    assert len(cells(read(file), str(file))) >= 3


def test_the_analogue_has_the_label_noise_and_the_colours_that_it_says() -> None:
    x, y = analogue(0.1, 40_000, torch.Generator().manual_seed(0), ones=0.3)
    assert float(((x[:, -1] > 0).long() != y).double().mean()) == pytest.approx(0.1, abs=0.01)
    assert float(y.double().mean()) == pytest.approx(0.3 * 0.75 + 0.7 * 0.25, abs=0.01)


@pytest.mark.slow
def test_erm_follows_the_colour_central_and_by_fedsgd() -> None:
    domains = analogue_domains(0, 200)
    found = in_federation(domains, partial(fedsgd, hidden=8, method="erm", lr=1e-2, seed=0))
    torch.manual_seed(0)
    body, head = network(11, 8)
    train(domains[:2], body, head, "erm", 1e-2)
    with torch.no_grad():
        x, y = domains[2]
        central = float(((head(body(x)).squeeze(1) > 0) == y.bool()).double().mean())
    assert found < 0.35, "it follows the colour"
    assert central < 0.35, "and so does this"


@pytest.mark.parametrize(("make", "steps"), [(fedsgd, 1), (fedavg, 5)])
@pytest.mark.parametrize("method", METHODS)
def test_lambda_rises_in_the_round_of_step_190(method: str, make: Callable[..., Scenario], steps: int) -> None:
    scenario = make({"name": "cmnist"}, 4, method, 1e-3, 0)
    assert scenario.client.steps == steps
    assert scenario.rounds * steps in (500, 501)
    assert [part.options["warmup"] for part in scenario.client.regularizers] == [190 // steps] * (method != "erm")


def test_every_curve_ends_with_the_last_round() -> None:
    scenario = fedsim.Scenario(rounds=3, data={"clients": 4}, client={"per_round": 2}, evaluate={"every": 2})
    rounds, accuracies = curve(scenario)
    assert rounds[-1] == 3
    assert len(rounds) == len(accuracies)


@pytest.mark.parametrize("method", rotated.METHODS)
def test_a_penalty_vanishes_or_is_least_where_all_domains_are_one(method: str) -> None:
    if method == "erm":
        return
    g = torch.Generator().manual_seed(0)
    features, logits = torch.randn(40, 5, generator=g), torch.randn(40, 3, generator=g)
    labels = torch.randint(0, 3, (40,), generator=g)
    risk = torch.nn.functional.cross_entropy(logits, labels)
    torch.manual_seed(0)
    same = float(rotated.Penalty(method, 2000)([(features, logits, labels)] * 2, torch.stack([risk, risk])))
    other = (features + 3.0, -4 * logits, labels)
    risks = torch.stack([risk, torch.nn.functional.cross_entropy(other[1], labels)])
    torch.manual_seed(0)
    apart = float(rotated.Penalty(method, 2000)([(features, logits, labels), other], risks))
    if method == "irm":
        slopes = ((logits.softmax(1) - torch.nn.functional.one_hot(labels, 3)) * logits).sum(1)
        assert same == pytest.approx(float(slopes[::2].mean() * slopes[1::2].mean()), rel=1e-4)
    else:
        assert same == pytest.approx(0.0, abs=1e-5)
        assert apart > 100 * same


def test_optimizers_by_name_are_those_of_the_federation() -> None:
    x = torch.nn.Parameter(torch.ones(3))
    kinds = {method: type(fashion.built(method, [x])) for method in fashion.METHODS}
    assert kinds["diffgrad"] is kinds["aliased"] is DiffGrad
    assert kinds["adam_half"] is torch.optim.Adam
    assert fashion.built("adam_half", [x]).param_groups[0]["lr"] == fashion.RATE / 2
    assert fashion.built("amsgrad", [x]).param_groups[0]["amsgrad"]


def test_the_aliased_variant_walks_as_adam_at_half_the_rate() -> None:
    g = torch.Generator().manual_seed(0)
    inputs, labels = torch.rand(256, 1, 28, 28, generator=g), torch.randint(0, 10, (256,), generator=g)
    split = (inputs, labels, inputs[:100], labels[:100])
    ends = {}
    for method in ("aliased", "adam_half"):
        torch.manual_seed(0)
        model = fashion.mlp()
        _, friction = fashion.trained(model, split, method, 3, 0)
        ends[method] = torch.cat([each.detach().flatten() for each in model.parameters()])
        assert math.isnan(friction) == (method == "adam_half")
    assert float((ends["aliased"] - ends["adam_half"]).abs().mean()) < 1e-4, "but for the first step, whose ξ is σ(|g|)"


def test_a_batch_of_one_is_the_example_that_was_drawn() -> None:
    assert langevin.federated(3, 8, 200, 0.1, 20, 0, batch=1) == langevin.federated(3, 8, 200, 0.1, 20, 0)
    assert langevin.federated(3, 8, 200, 0.1, 20, 0, batch=4) != langevin.federated(3, 8, 200, 0.1, 20, 0)


def test_one_pass_takes_longer_in_more_dimensions() -> None:
    medians = [sorted(langevin.first_passage(d, 5000, 0.5 * d**-1.5, 8, 0))[3] for d in (4, 12)]
    assert 0 < medians[0] < medians[1] < math.inf


def test_clients_of_two_objectives_hold_every_example_once() -> None:
    import numpy as np

    labels = torch.arange(200) % 10
    held = two_objectives.shards(labels, np.random.default_rng(0))
    assert sorted(torch.cat(held).tolist()) == list(range(200))
    assert all(len(labels[rows].unique()) <= 2 for rows in held)


def test_two_objectives_learn_both() -> None:
    found = two_objectives.federation("sum", 0, 2)
    assert found["error"][-1] < found["error"][0]
    assert len(found["accuracy"]) == 2


def test_logistic_regression_has_the_optimum_of_an_independent_solver() -> None:
    import scipy.optimize

    problem = logistic(1, n=60, d=4)
    found = scipy.optimize.minimize(
        lambda x: float(problem.function(torch.tensor(x))), problem.x0.numpy(), method="BFGS", options={"gtol": 1e-9}
    )
    assert problem.optimum == pytest.approx(found.fun, abs=1e-9)
    exact = problem.curvatures["exact"](problem.x0)
    torch.testing.assert_close(problem.curvatures["weighted_gauss_newton"](problem.x0), exact)
    for name, _ in EVERY["logistic"]:
        trace = gns.minimize(problem.value_and_gradient, problem.curvatures[name], problem.x0)
        assert trace.reached(problem.optimum) is not None, name


@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_federation_makes_the_centralised_step(curvature: str) -> None:
    assert gap(0, 2, curvature=curvature, l2=1e-3) < 1e-10


@pytest.mark.parametrize("curvature", CURVATURES)
def test_unequal_clients_make_the_steps_of_the_algorithm_on_their_pooled_examples(curvature: str) -> None:
    off, gammas, sizes = gns_pooled.held_against(0, curvature)
    assert off < 1e-10
    assert gammas == 0
    assert max(sizes) >= 10 * min(sizes)


@pytest.mark.slow
def test_five_local_steps_drift_little_from_the_theory_and_twenty_do() -> None:
    found = generalization.course(0).values
    assert found["drift_5"] <= 0.04
    assert 0.11 <= found["drift_20"] <= 0.32


@pytest.mark.slow
def test_winsorized_gradients_do_not_memorise_the_wrong_labels_that_sgd_does() -> None:
    memorised = {method: coherence._train(0, method) for method in ("sgd", "winsor_4")}
    assert memorised["sgd"][0] == pytest.approx(0.5, abs=0.05)
    assert memorised["winsor_4"][0] <= 0.1
    assert memorised["winsor_4"][1] == pytest.approx(0.82, abs=0.05), "of the clean test set it gets more right"
