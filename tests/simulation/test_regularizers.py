"""Regularizers between clients: what one round does to the model, by autograd at the centre."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from fedsim.errors import ScenarioError
from fedsim.federation import build
from fedsim.losses import (
    cmnist_penalty,
    coral_penalty,
    diagonal_statistics,
    domainbed_penalty,
    fishr_penalty,
    gradient_variance,
    hessian_vector_product,
    hgp_statistics,
    irm_penalty,
    vrex_penalty,
)
from fedsim.losses.hessian_alignment import Statistics, signs
from fedsim.scenario import Scenario
from fedsim.scenario_rules import HEADS
from fedsim.simulation import simulate
from strategies.client_statistics import ClientStatistics
from strategies.defense import Reply, Round
from tests.simulation.test_same_bits import interrupted

LR = 0.5
TABLES: dict[str, Any] = {
    "rounds": 1,
    "data": {"dataset": {"name": "synthetic_classification", "features": 6, "classes": 3, "examples": 90, "test": 30}},
    "model": {"name": "mlp", "hidden": [5], "activation": "tanh"},
    "client": {"per_round": 3, "steps": 1, "batch_size": 90, "optimizer": {"name": "sgd", "lr": LR}},
    "engine": {"precision": "float64"},
}


def scenario(regularizers: Any, **more: Any) -> Scenario:
    tables = {**TABLES, "data": {**TABLES["data"], "clients": 3, "partition": "iid"}}
    return Scenario(**tables).changed(**{"client.regularizers": regularizers, **more})


def central_step(at: Scenario, penalty: Any, start: torch.Tensor | None = None) -> torch.Tensor:
    """The change of the parameters by gradient descent on the mean loss and a penalty on all domains at once."""
    federation = build(at)
    module, train = federation.module, federation.dataset.train
    if start is not None:
        federation.layout.load(module, start)
    domains, losses = [], []
    for client in range(3):
        own = train.take(federation.shares[client])
        features = module[:-1](own.inputs.double())
        logits = module[-1](features)
        domains.append((features, logits, own.targets))
        losses.append(functional.cross_entropy(logits, own.targets))
    total = torch.stack(losses).mean() + penalty(domains, losses)
    gradients = torch.autograd.grad(total, list(module.parameters()))
    return -LR * torch.cat([each.flatten() for each in gradients])


def one_round(at: Scenario) -> torch.Tensor:
    """The change of the parameters by the scenario's rounds, one if it does not say otherwise."""
    before, after = build(at).initial, simulate(at).parameters
    return torch.cat([each.flatten() for each in after.values()]) - before


def hutchinson_statistics(domains: list[Any], samples: int) -> Statistics:
    """Each domain's estimate from the draws that all clients share in the first round."""
    ctx = Round(round=1, seed=Scenario().seed, part="1.regularizer.0")
    draws = signs(torch.tensor(int(ctx.stream("draws").integers(2**32))), (samples, 3, 6)).double()
    estimates = []
    for features, logits, _ in domains:
        products = torch.stack([hessian_vector_product(features, logits, z) for z in draws])
        estimates.append((draws * products).mean(0))
    exact, hessians = diagonal_statistics(domains), torch.stack(estimates)
    assert (hessians - exact.hessians).abs().max() > 1e-3
    return Statistics(exact.gradients, hessians, exact.mean_gradient, hessians.mean(0))


PENALTIES: dict[str, tuple[dict[str, Any], Any]] = {
    "hgp": (
        {"name": "hessian_alignment", "alpha": 2.0, "beta": 3.0, "weight": 5.0, "reference": "exact"},
        lambda domains, losses: 5 * domainbed_penalty(hgp_statistics(domains), alpha=2.0, beta=3.0),
    ),
    "hgp, sum": (  # the references are messages, fixed while a client trains
        {"name": "hessian_alignment", "alpha": 2.0, "beta": 3.0, "reference": "exact", "form": "sum"},
        lambda domains, losses: len(domains) * domainbed_penalty(hgp_statistics(domains), alpha=2.0, beta=3.0),
    ),
    "diagonal": (
        {"name": "hessian_alignment", "method": "diagonal", "alpha": 2.0, "beta": 3.0, "form": "sum"},
        lambda domains, losses: cmnist_penalty(diagonal_statistics(domains), alpha=2.0, beta=3.0),
    ),
    "hutchinson": (
        {"name": "hessian_alignment", "method": "diagonal", "alpha": 2.0, "beta": 3.0, "hutchinson_samples": 7},
        lambda domains, losses: domainbed_penalty(hutchinson_statistics(domains, 7), alpha=2.0, beta=3.0),
    ),
    "coral": ({"name": "coral"}, lambda domains, losses: coral_penalty([each[0] for each in domains])),
    "vrex": ({"name": "vrex", "weight": 10.0}, lambda domains, losses: 10 * vrex_penalty(losses)),
    "fishr": (
        {"name": "fishr", "weight": 40.0},
        lambda domains, losses: 40 * fishr_penalty([gradient_variance(*each) for each in domains]),
    ),
    "irm": (
        {"name": "irm", "weight": 7.0},
        lambda domains, losses: 7 * torch.stack([irm_penalty(*each[1:]) for each in domains]).mean(),
    ),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_round_of_one_step_is_the_step_at_the_centre(name: str) -> None:
    part, penalty = PENALTIES[name]
    for path in ("stacked", "vmap", "reference"):
        at = scenario([part], **{"engine.path": path})
        expected = central_step(at, penalty)
        assert (expected - central_step(at, lambda domains, losses: 0.0)).abs().max() > 1e-4
        torch.testing.assert_close(one_round(at), expected, rtol=1e-9, atol=1e-11)


def test_what_fixed_references_leave_out_is_the_smaller_part_of_the_penalty() -> None:
    """With h̄ = H̄ ḡ, which is no mean of the h_k, the centre's sum has a gradient through h̄ that no client can make."""
    part, fixed = PENALTIES["hgp, sum"]
    at = scenario([part])
    none, ours, whole = (
        central_step(at, penalty)
        for penalty in (
            lambda domains, losses: 0.0,
            fixed,
            lambda domains, losses: cmnist_penalty(hgp_statistics(domains), alpha=2.0, beta=3.0),
        )
    )
    share = float((ours - whole).norm() / (whole - none).norm())
    assert 0.05 < share < 0.15


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("harmonic", [False, True])
def test_many_local_steps_are_the_same_on_every_path(name: str, harmonic: bool) -> None:
    masks = PENALTIES[name][0]["name"] not in HEADS
    loss = {"name": "harmonic", "mask_absent": masks} if harmonic else None
    more = {"rounds": 2, "client.steps": 4, "client.batch_size": 8, "client.loss": loss}
    model = {"name": "mlp", "hidden": [7, 5], "activation": "relu"}
    at = scenario([PENALTIES[name][0], "coral"], **more, model=model, **{"data.partition": "dirichlet"})
    found = [simulate(at.changed(**{"engine.path": path})).parameters for path in ("stacked", "vmap", "reference")]
    for other in found[1:]:
        for key, value in found[0].items():
            torch.testing.assert_close(value, other[key], rtol=1e-7, atol=1e-9)


def test_two_regularizers_add_up() -> None:
    parts = [PENALTIES[name] for name in ("vrex", "diagonal")]
    at = scenario([part for part, _ in parts])
    expected = central_step(at, lambda domains, losses: sum(penalty(domains, losses) for _, penalty in parts))
    torch.testing.assert_close(one_round(at), expected, rtol=1e-9, atol=1e-11)


def test_lagged_references_are_those_of_the_round_before() -> None:
    """In the second round the penalty is held against the mean loss at the parameters from which the first began."""
    at = scenario([{"name": "vrex", "weight": 10.0, "references": "lagged"}])
    means: list[torch.Tensor] = []
    first = central_step(at, lambda domains, losses: means.append(torch.stack(losses).mean().detach()) or 0.0)
    torch.testing.assert_close(one_round(at), first, rtol=1e-9, atol=1e-11)
    start = build(at).initial + first
    second = central_step(at, lambda domains, losses: 10 * (torch.stack(losses) - means[0]).square().mean(), start)
    assert (second - central_step(at, lambda domains, losses: 0.0, start)).abs().max() > 1e-4
    torch.testing.assert_close(one_round(at.changed(rounds=2)), first + second, rtol=1e-9, atol=1e-11)


def test_the_weight_warms_up_and_the_loss_is_rescaled() -> None:
    part = {"name": "irm", "weight": 7.0, "warmup": 1}
    at = scenario([part], **{"client.optimizer": {"name": "adam", "lr": 0.01}})
    assert simulate(at).digest == simulate(at.changed(**{"client.regularizers": [{**part, "weight": 1.0}]})).digest
    heavy = {"name": "irm", "weight": 7.0, "rescale": True}
    plain, rescaled = (
        one_round(scenario([each], **{"client.optimizer": "adam"})) for each in ({**heavy, "rescale": False}, heavy)
    )
    torch.testing.assert_close(plain, rescaled, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("path", ["reference", "stacked"])
@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_the_servers_adam_makes_up_for_a_rescaled_loss(decay: float, path: str) -> None:
    heavy = {"name": "vrex", "weight": 1000.0}
    server = {"server.optimizer": {"name": "adam", "lr": 0.01, "tau": 1e-12}}
    server |= {"client.optimizer.weight_decay": decay, "engine.path": path}
    plain, rescaled = (one_round(scenario([{**heavy, "rescale": each}], **server)) for each in (False, True))
    torch.testing.assert_close(plain, rescaled, rtol=1e-4, atol=1e-7)
    alone = one_round(scenario([{**heavy, "rescale": True}], **server, **{"client.optimizer.lr": LR / 2}))
    torch.testing.assert_close(alone, rescaled, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("path", ["reference", "stacked"])
@pytest.mark.parametrize("rescaled", [(True, False), (False, True), (True, True)])
def test_a_rescaled_loss_is_that_of_all_regularizers(rescaled: tuple[bool, bool], path: str) -> None:
    """Wherever the one that divides stands; with both of them the loss is divided twice."""
    parts = [{"name": "vrex", "weight": 50.0}, {"name": "coral", "weight": 20.0}]
    server = {"server.optimizer": {"name": "adam", "lr": 0.01, "tau": 1e-12}, "engine.path": path}
    told = [{**part, "rescale": each} for part, each in zip(parts, rescaled, strict=True)]
    plain, divided = (one_round(scenario(each, **server)) for each in (parts, told))
    torch.testing.assert_close(divided, plain, rtol=1e-4, atol=1e-7)
    assert (one_round(scenario(parts[:1], **server)) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("path", ["reference", "stacked"])
def test_the_proximal_term_is_divided_with_a_rescaled_loss(path: str) -> None:
    heavy = {"name": "vrex", "weight": 1000.0}
    more: dict[str, Any] = {"client.steps": 3, "engine.path": path}
    more["client.optimizer"] = {"name": "adam", "lr": 0.01, "eps": 1e-16}
    plain, rescaled, free = (
        one_round(scenario([{**heavy, "rescale": each}], **more, **{"client.proximal": proximal}))
        for each, proximal in ((False, 40.0), (True, 40.0), (True, 0.0))
    )
    torch.testing.assert_close(plain, rescaled, rtol=1e-6, atol=1e-9)
    assert (free - rescaled).abs().max() > 1e-4


def test_hutchinson_draws_anew_in_each_round() -> None:
    part = {"name": "hessian_alignment", "method": "diagonal", "alpha": 50.0}
    few, many, exact = (
        simulate(scenario([{**part, **more}], rounds=3)).parameters
        for more in ({"hutchinson_samples": 2}, {"hutchinson_samples": 5000}, {})
    )
    far, near = (max(float((each[name] - exact[name]).abs().max()) for name in exact) for each in (few, many))
    assert near < far / 5


@pytest.mark.parametrize("references", ["fresh", "lagged"])
def test_hutchinson_in_several_workers_and_resumed(references: str, tmp_path: Path) -> None:
    part = {"name": "hessian_alignment", "method": "diagonal", "hutchinson_samples": 3, "references": references}
    at = scenario([part], **{"rounds": 3, "client.steps": 2, "client.batch_size": 8})
    digests = [simulate(at.changed(**{"engine.workers": workers})).digest for workers in (1, 2)]
    assert len({*digests, interrupted(at, tmp_path)}) == 1


@pytest.mark.parametrize("references", ["fresh", "lagged"])
def test_workers_and_interruptions_change_no_bit(references: str, tmp_path: Path) -> None:
    part = {"name": "hessian_alignment", "references": references, "reference": "exact", "weight": 10.0}
    more = {"rounds": 3, "client.steps": 4, "client.batch_size": 8, "client.loss": "harmonic", "client.dropout": 0.2}
    at = scenario([part, "coral"], **more, **{"client.optimizer": {"name": "diffgrad", "lr": 0.01}})
    digests = [simulate(at.changed(**{"engine.workers": workers})).digest for workers in (1, 2, 3)]
    assert len({*digests, interrupted(at, tmp_path)}) == 1


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "draws of what is no diagonal": (
        {"client.regularizers": [{"name": "hessian_alignment", "hutchinson_samples": 9}]},
        r"client.regularizers\[0\].hutchinson_samples.*diagonal",
    ),
    "a stock strategy": ({"server.defenses": ["flwr:FedAvg"]}, "client.regularizers.*stock Flower strategy"),
    "squared error": ({"client.loss": "squared_error"}, "client.regularizers.*softmax"),
    "rescaled gradients": (
        {"client.regularizers": [{"name": "vrex", "rescale": True}]},
        r"client.regularizers\[0\].rescale.*sgd",
    ),
    "exact diagonals": (
        {"client.regularizers": [{"name": "hessian_alignment", "method": "diagonal", "reference": "exact"}]},
        r"client.regularizers\[0\].reference.*'mean'",
    ),
    "an estimator": ({"server.estimator": {"name": "dp_gd", "c1": 1.0, "lr": 0.1}}, "client.regularizers"),
    "winsorized": ({"client.optimizer": "winsorized"}, "client.regularizers.*winsorized"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused(fault: str) -> None:
    changes, said = FAULTS[fault]
    with pytest.raises(ScenarioError, match=said):
        scenario(["vrex"], **changes)


def test_numbers_are_no_classes() -> None:
    with pytest.raises(ScenarioError, match=r"client\.regularizers\[0\].*targets that are numbers"):
        scenario(["vrex"], **{"data.dataset": "diabetes"})


@pytest.mark.parametrize("option", [{"references": "lagged"}, {"average": "examples"}])
def test_irm_has_no_statistics_to_be_told_about(option: dict[str, str]) -> None:
    with pytest.raises(ScenarioError, match="irm asks the clients for no statistics"):
        scenario([{"name": "irm", **option}])


def test_the_mean_may_count_clients_by_their_examples() -> None:
    ends = {}
    for average in ("equal", "examples"):
        part = {"name": "vrex", "weight": 3.0, "average": average}
        at = scenario([part], **{"data.partition": "quantity"})
        federation = build(at)
        module, train = federation.module, federation.dataset.train
        domains = [train.take(federation.shares[client]) for client in range(3)]
        losses = torch.stack([functional.cross_entropy(module(own.inputs.double()), own.targets) for own in domains])
        counts = torch.tensor([float(len(own)) for own in domains]).double()
        assert len(set(counts.tolist())) == 3
        shares = counts / counts.sum()
        mean = (losses * shares).sum() if average == "examples" else losses.mean()
        total = (shares * (losses + 3 * (losses - mean.detach()).square())).sum()
        gradients = torch.autograd.grad(total, list(module.parameters()))
        ends[average] = one_round(at)
        torch.testing.assert_close(ends[average], -LR * torch.cat([each.flatten() for each in gradients]))
    assert not torch.allclose(ends["equal"], ends["examples"])


@pytest.mark.parametrize("average", ["equal", "examples"])
@pytest.mark.parametrize("name", ["hessian_alignment", "coral", "fishr", "vrex"])
def test_a_client_without_examples_has_no_say(name: str, average: str) -> None:
    part = {"name": name, "average": average, **({"reference": "exact"} if name == "hessian_alignment" else {})}
    partition = {"name": "dirichlet", "alpha": 0.05, "min_examples": 0}
    at = scenario([part], **{"data.clients": 8, "client.per_round": 8, "data.partition": partition})
    sizes = build(at).shares.sizes
    assert 0 < (sizes == 0).sum() < 7
    result = simulate(at)
    assert not result.lines[-1]["faults"]
    weightless = simulate(at.changed(**{"client.regularizers": [{**part, "weight": 0.0}]}))
    assert result.digest != weightless.digest
    assert all(torch.isfinite(each).all() for each in result.parameters.values())


@pytest.mark.parametrize("references", ["fresh", "lagged"])
def test_a_client_that_drops_out_answers_nothing_in_the_round(references: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its domain is in no mean; what others told is of those that trained."""
    heard: list[set[int]] = []
    mean = ClientStatistics._mean

    def spied(self: ClientStatistics, replies: list[Reply]) -> dict[str, torch.Tensor]:
        heard.append({reply.client for reply in replies})
        return mean(self, replies)

    monkeypatch.setattr(ClientStatistics, "_mean", spied)
    at = scenario([{"name": "coral", "references": references}], **{"rounds": 4, "client.dropout": 0.4})
    at = at.changed(
        **{"server.defenses": ["fedavg", "softmax_cap"], "server.analysis": [{"name": "coherence", "examples": True}]}
    )
    lines = simulate(at).lines[1:]
    gone = [{fault["client"] for fault in line["faults"] if fault["reason"] == "dropped out"} for line in lines]
    assert any(gone)
    assert heard == [{0, 1, 2} - each for each in gone if len(each) < 3]
    for line, each in zip(lines, gone, strict=True):
        names = {fault["reason"] for fault in line["faults"] if fault["client"] in each}
        assert len(names) in (0, 4), names
        assert line.get("coherence.examples", 0.0) == 30 * (3 - len(each))
