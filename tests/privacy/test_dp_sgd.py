"""DP-SGD: its steps against a loop of autograd, its batches, its noise, its accounting, what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant

from fedsim import rng
from fedsim.client.app import FederatedClient
from fedsim.errors import FedsimError, ScenarioError
from fedsim.federation import build, setting_of
from fedsim.privacy import epsilon
from fedsim.privacy.clipping import GradientSum, clipped_gradient_sum
from fedsim.privacy.local_steps import Local, kinds, participation, worst
from fedsim.privacy.mechanism import Setting
from fedsim.registry import make
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.tables import Client, Part, Privacy
from fedsim.testing.federation import deltas, initial, replies, workload

SIZES = (10, 7, 0, 1)
SKEWED = {"name": "dirichlet", "alpha": 0.5}


def part(noise: float = 0.0, **options: Any) -> Any:
    made = make("optimizer", "dp_sgd", **options)
    made.noise_multiplier = noise
    return made


def private(**changes: Any) -> Scenario:
    tables: dict[str, Any] = {
        "rounds": 3,
        "data": {"clients": 8, "partition": SKEWED},
        "model": {"name": "mlp", "hidden": [8]},
        "client": {"per_round": 3, "optimizer": {"name": "dp_sgd", "lr": 0.2}},
        "privacy": {"noise": [1.0], "trust": "local"},
    }
    return Scenario(**{**tables, **changes})


def each_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize("clip", [0.3, 1e9])
def test_without_noise_it_is_a_loop_of_autograd_over_poisson_batches(clip: float) -> None:
    load = workload(SIZES, optimizer=part(lr=0.3, clip=clip, momentum=0.5), precision="float64")
    start = initial(load)
    found = deltas(FederatedClient(load), start, range(4))
    for client, n in enumerate(SIZES):
        module = load.model().double()
        load.layout.load(module, start)
        draws = rng.stream(load.seed, "client.shuffle", round=3, client=client)
        own, velocity = load.shares[client], torch.zeros_like(start)
        for _ in range(2 * math.ceil(n / 4)):
            chosen = own[draws.random(n) < min(1.0, 4 / n)]
            total = torch.zeros_like(start)
            for row in chosen.tolist():
                inputs, target = load.train.inputs[row : row + 1].double(), load.train.targets[row : row + 1]
                module.zero_grad()
                torch.nn.functional.cross_entropy(module(inputs), target).backward()
                gradient = torch.cat([each.grad.flatten() for each in module.parameters()])  # type: ignore[union-attr]
                total += gradient * min(1.0, clip / float(gradient.norm()))
            velocity = 0.5 * velocity + total / min(4, n)
            with torch.no_grad():
                flat = torch.cat([each.flatten() for each in module.parameters()]) - 0.3 * velocity
            load.layout.load(module, flat)
        end = torch.cat([each.detach().flatten() for each in module.parameters()])
        torch.testing.assert_close(found[client], end - start, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("convolutions", [False, True])
def test_many_batches_sum_to_what_single_calls_do(convolutions: bool) -> None:
    first: list[torch.nn.Module] = [torch.nn.Conv2d(1, 3, 2)] if convolutions else []
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        *first, torch.nn.Flatten(), torch.nn.LazyLinear(6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
    )
    x, y = torch.randn(40, 1, 4, 5), torch.randint(0, 3, (40,))
    model(x)
    summed = GradientSum(model.eval(), each_loss, 0.5)
    assert not summed(x[:0], y[:0]).any()
    for batch in (slice(0, 40), slice(3, 4), slice(10, 30)):
        expected = clipped_gradient_sum(model, each_loss, x[batch], y[batch], 0.5).total
        torch.testing.assert_close(summed(x[batch], y[batch]), expected, rtol=0, atol=0)
        with torch.no_grad():
            for value in model.parameters():
                value += 0.1


def test_batches_are_poisson_samples() -> None:
    order, sizes = part().batches(500, 2000, 50, np.random.default_rng(0))
    assert len(sizes) == 2000
    assert sum(sizes) == len(order)
    assert np.mean(sizes) == pytest.approx(50, abs=5 * math.sqrt(45 / 2000))
    assert np.var(sizes) == pytest.approx(45, rel=0.15)
    taken = np.bincount(order, minlength=500) / 2000
    assert np.abs(taken - 0.1).max() < 5 * math.sqrt(0.09 / 2000)
    assert part().batches(3, 2, 50, np.random.default_rng(0))[0].tolist() == [0, 1, 2, 0, 1, 2]


def test_behind_a_stock_strategy_every_client_counts_as_taking_part_in_each_round() -> None:
    """It draws cohorts of its own: what fedsim's sampler would draw is nobody's participation."""
    private_guest = private(server={"defenses": ["flwr:FedAvg"]}, privacy={"epsilon": 3.0, "trust": "local"})
    counts, _ = participation(setting_of(private_guest, build(private_guest).shares.sizes))
    assert counts.tolist() == [3] * 8


def test_a_sampler_of_ones_own_counts_every_client_in_each_round() -> None:
    part = Part(name="tests/own.py:Own")
    where = Setting(5, 0, [10, 20, 30], Privacy(noise=[1.0], trust="local"), cohort=2, client=Client(), sampler=part)
    assert participation(where)[0].tolist() == [5, 5, 5]


def test_shuffled_batches_take_each_example_once_an_epoch_and_run_without_a_claim() -> None:
    order, sizes = part(sampling="shuffled").batches(7, 5, 3, np.random.default_rng(0))
    assert sizes == [3, 3, 1, 3, 3]
    assert sorted(order[:7].tolist()) == list(range(7))
    assert len(set(order[7:].tolist())) == 6
    optimizer = {"name": "dp_sgd", "lr": 0.2, "sampling": "shuffled"}
    privacy = {"noise": [1.0], "trust": "local", "claim": "none"}
    assert len(simulate(private(client={"per_round": 3, "optimizer": optimizer}, privacy=privacy)).lines) == 4


def test_the_noise_is_that_of_the_sum_over_the_expected_batch() -> None:
    model = torch.nn.Linear(4000, 10)
    inputs, targets = torch.zeros(0, 4000), torch.zeros(0, dtype=torch.int64)
    noise = np.random.default_rng(0)
    gradient = part(1.5, clip=2.0).noisy_gradients(model, each_loss)
    first, second = (gradient(inputs, targets, 30, noise) for _ in range(2))
    for each in (first, second):
        assert float(each.std()) == pytest.approx(1.5 * 2.0 / 30, rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 5 / math.sqrt(len(first))


def test_clients_and_rounds_draw_noise_of_their_own() -> None:
    load = workload((40, 40), optimizer=part(100.0, lr=1.0, clip=1.0), steps=1, epochs=None)
    app, start = FederatedClient(load), initial(load)
    drawn = torch.cat([deltas(app, start, range(2), round=number) for number in (1, 2)])
    assert bool((torch.corrcoef(drawn).triu(1).abs() < 0.4).all())
    assert torch.equal(deltas(app, start, [1], round=2)[0], drawn[3])


def test_a_client_tells_no_loss_behind_a_claim() -> None:
    load = workload(SIZES, optimizer=part(1.0), secrecy="server")
    answers = replies(FederatedClient(load), initial(load), range(4))
    assert [set(each.content["metrics"]) for each in answers] == [{"num-examples"}] * 4
    assert [each.content["metrics"]["num-examples"] for each in answers] == list(SIZES)


def test_participation_is_what_the_run_draws() -> None:
    scenario = private(rounds=5)
    where = setting_of(scenario, build(scenario).shares.sizes)
    counts, when = participation(where)
    cohorts = simulate(scenario).rounds["cohort"].tolist()[1:]
    assert counts.tolist() == [sum(client in cohort for cohort in cohorts) for client in range(8)]
    for k, number in enumerate(when, start=1):
        most = [
            max(sum(client in cohort for cohort in cohorts[:n]) for client in range(8)) for n in (number - 1, number)
        ]
        assert most == [k - 1, k]


def test_the_claim_is_the_worst_clients_by_dp_accounting() -> None:
    privacy = Privacy(epsilon=6.0, trust="local")
    where = Setting(4, 0, [40, 64, 100, 333, 0], privacy, client=Client(batch_size=20, epochs=2))
    made = part()
    made.set_up(where)
    spent = []
    for n in (40, 64, 100, 333):
        accountant = PLDAccountant(dp.NeighboringRelation.REPLACE_ONE)
        event = dp.PoissonSampledDpEvent(20 / n, dp.GaussianDpEvent(made.noise_multiplier))
        spent.append(accountant.compose(event, 4 * 2 * math.ceil(n / 20)).get_epsilon(1e-5))
    assert 6.0 - 1e-2 < max(spent) <= 6.0 + 1e-3
    (published,) = made.publications(where)
    assert epsilon([published.release(seen=True)], 1e-5) == pytest.approx(max(spent), rel=2e-3)


@pytest.mark.parametrize("seed", range(20))
def test_the_worst_is_found_among_many(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rates = np.sort(generator.random(30))[::-1]
    found = [Local(float(q), int(k), 1) for q, k in zip(rates, np.cumsum(generator.integers(1, 50, 30)), strict=True)]
    power = generator.uniform(0.2, 4)

    def cost(each: Local) -> float:
        return each.rate**power * each.count

    assert cost(worst(found, cost)) == max(cost(each) for each in found)


def test_kinds_leave_out_what_costs_no_more() -> None:
    privacy = Privacy(noise=[1.0], trust="local")
    where = Setting(3, 0, [10, 10, 50, 0, 55], privacy, client=Client(batch_size=10, steps=4))
    assert kinds(where) == [Local(1.0, 3, 4)]
    where = Setting(3, 0, [10, 10, 50, 0, 55], privacy, client=Client(batch_size=10))
    assert kinds(where) == [Local(1.0, 3, 1), Local(0.2, 3, 5), Local(10 / 55, 3, 6)]


def test_workers_and_interruptions_change_no_bit(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(line: dict[str, Any]) -> None:
        if line["round"] == 2:
            raise Stop

    digests = {simulate(private(engine={"workers": workers})).digest for workers in (1, 2, 3)}
    with pytest.raises(Stop):
        simulate(private(), tmp_path / "run", progress=stop)
    digests.add(simulate(private(), tmp_path / "run", resume=True).digest)
    assert len(digests) == 1
    assert simulate(private(seed=1)).digest not in digests


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"privacy": {"noise": [1.0], "trust": "local", "unit": "client"}}, r"privacy\.unit: given 'client'"),
        ({"privacy": {"noise": [1.0]}}, r"privacy\.trust: given 'central'; accepted: 'local'"),
        ({"privacy": {"trust": "local"}}, r"privacy\.epsilon: given nothing"),
        ({"privacy": {"noise": [1.0, 1.0], "trust": "local"}}, r"privacy\.noise: given \[1\.0, 1\.0\]"),
        ({"engine": {"path": "stacked"}}, r"engine\.path: given 'stacked'; accepted: 'auto' or 'reference'"),
        (
            {"adversary": {"fraction": 0.4, "attacks": ["sign_flip"], "selection": "forced"}},
            r"adversary\.selection: given 'forced'; accepted: 'pool'.*other rounds than are accounted",
        ),
        ({"engine": {"precision": "bfloat16"}}, r"engine\.precision: given 'bfloat16'"),
        ({"client": {"optimizer": "dp_sgd", "per_round": 3, "clip_norm": 1.0}}, r"client\.clip_norm: given 1\.0"),
        (
            {"client": {"optimizer": {"name": "dp_sgd", "sampling": "shuffled"}, "per_round": 3}},
            r"client\.optimizer\.sampling: given 'shuffled'; accepted: 'poisson'",
        ),
        (
            {"server": {"defenses": [{"name": "flwr:FedAvg", "fraction_evaluate": 0.5}]}},
            r"server\.defenses\[0\]\.fraction_evaluate: given 0\.5; accepted: 0\.0",
        ),
    ],
)
def test_what_guarantees_nothing_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        private(**changes)


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ({"accountant": "rdp"}, "rdp"),
        ({"accountant": "gdp"}, "gdp"),
        ({"epsilon": 1.0, "noise": [0.3]}, "at most 1"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_the_run(privacy: dict[str, Any], said: str) -> None:
    with pytest.raises(FedsimError, match=said):
        build(private(privacy={"noise": [1.0], "epsilon": 3.0, "trust": "local", **privacy}))


@pytest.mark.parametrize("noise", [{"noise": [1.0]}, {"epsilon": 3.0}])
@pytest.mark.parametrize(
    ("accountant", "neighbours", "said"),
    [
        ("gdp", "replace_one", "accepted: 'pld'; or 'rdp' with neighbours 'add_or_remove'"),
        ("rdp", "replace_one", "accepted: 'pld'; or 'rdp' with neighbours 'add_or_remove'"),
        ("gdp", "add_or_remove", "accepted: 'pld' or 'rdp'$"),
        ("rdp", "add_or_remove", ""),
    ],
)
def test_only_accountants_of_poisson_batches_are_recommended(
    noise: dict[str, Any], accountant: str, neighbours: str, said: str
) -> None:
    scenario = private(privacy={**noise, "trust": "local", "accountant": accountant, "neighbours": neighbours})
    if not said:
        build(scenario)
        return
    with pytest.raises(ScenarioError, match=said):
        build(scenario)


def test_whole_batches_are_accounted_in_closed_form() -> None:
    client = {"per_round": 8, "optimizer": "dp_sgd", "batch_size": 2000}
    build(private(client=client, privacy={"epsilon": 3.0, "trust": "local", "accountant": "gdp"}))


def test_a_poisson_sampler_of_clients_is_redrawn_even_where_everybody_may_come() -> None:
    part = Part(name="poisson", options={"rate": 0.5})
    where = Setting(40, 0, [10] * 4, Privacy(noise=[1.0], trust="local"), cohort=4, client=Client(), sampler=part)
    assert max(participation(where)[0]) < 40


def test_an_example_that_is_not_finite_decides_nothing(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    inputs, labels = draw.random((40, 1, 4, 4), dtype=np.float32), draw.integers(0, 2, 40)
    inputs[7] = np.nan
    np.savez(tmp_path / "d.npz", x_train=inputs, y_train=labels, x_test=inputs[:4], y_test=labels[:4])
    data = {"clients": 4, "dataset": {"name": "npz", "path": str(tmp_path / "d.npz")}}
    client = {"per_round": 4, "batch_size": 20, "optimizer": {"name": "dp_sgd", "lr": 0.2}}
    found = simulate(private(data=data, client=client, model={"name": "logistic"}))
    assert all(line["kept"] == [0, 1, 2, 3] and not line["faults"] for line in found.lines[1:])
    assert all(bool(value.isfinite().all()) for value in found.parameters.values())
    assert all("nonfinite" not in line for line in found.lines)  # the noise is the clients': nothing else leaves them
