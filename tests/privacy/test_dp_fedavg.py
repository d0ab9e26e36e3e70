"""DP-FedAvg: its accounting against dp-accounting, what one client can move, its noise, its clip, what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from flwr.app import ConfigRecord

from fedsim.errors import ScenarioError
from fedsim.federation import build
from fedsim.flower import Flat
from fedsim.privacy import epsilon
from fedsim.privacy.mechanism import Setting
from fedsim.registry import make
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.tables import Part, Privacy
from fedsim.updates import Updates
from strategies.defense import Round

POISSON: dict[str, Any] = {"name": "poisson", "rate": 0.25}
REPLACED = dp.NeighboringRelation.REPLACE_ONE


def setting(noise: float = 1.0, sampler: dict[str, Any] = POISSON, **changes: Any) -> Setting:
    privacy = Privacy(**{"noise": [noise], "unit": "client", **changes.pop("privacy", {})})
    part = Part(name=sampler["name"], options={k: v for k, v in sampler.items() if k != "name"})
    return Setting(
        **{"rounds": 50, "seed": 0, "sizes": [7] * 40, "privacy": privacy, "cohort": 10, **changes, "sampler": part}
    )


def ready(options: dict[str, Any], where: Setting) -> Any:
    part = make("defense", "dp_fedavg", **options)
    part.set_up(where)
    return part


def rows(values: torch.Tensor, counts: Any = None) -> Updates:
    n = len(values)
    counts = torch.ones(n) if counts is None else counts
    return Updates(values, counts, list(range(n)), torch.zeros(values.shape[1], dtype=values.dtype))


def context(number: int = 1, seed: int = 0, state: dict[str, Any] | None = None) -> Round:
    return Round(round=number, seed=seed, part="0.dp_fedavg", state={} if state is None else state)


def private(**changes: Any) -> Scenario:
    tables: dict[str, Any] = {
        "rounds": 4,
        "data": {"clients": 12},
        "model": {"name": "logistic"},
        "client": {"per_round": 3},
        "server": {"defenses": [{"name": "dp_fedavg", "clip": 0.5, "adaptive": True}], "sampler": POISSON},
        "privacy": {"noise": [1.0], "unit": "client"},
    }
    return Scenario(**{**tables, **changes})


def test_poisson_cohorts_cost_what_dp_accounting_says() -> None:
    where = setting(1.5)
    (published,) = ready({}, where).publications(where)
    accountant = PLDAccountant(REPLACED)
    accountant.compose(dp.PoissonSampledDpEvent(0.25, dp.GaussianDpEvent(1.5)), 50)
    assert epsilon([published.release()], 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=2e-3)


def test_cohorts_of_a_fixed_size_cost_what_dp_accounting_says() -> None:
    where = setting(3.0, {"name": "uniform"}, privacy={"accountant": "rdp"})
    (published,) = ready({}, where).publications(where)
    accountant = RdpAccountant(neighboring_relation=REPLACED)
    accountant.compose(dp.SampledWithoutReplacementDpEvent(40, 10, dp.GaussianDpEvent(1.5)), 50)
    assert epsilon([published.release()], 1e-5, "rdp") == pytest.approx(accountant.get_epsilon(1e-5), rel=5e-3)


def test_who_sees_the_cohort_gets_no_amplification() -> None:
    where = setting(20.0)
    (published,) = ready({}, where).publications(where)
    mu = 2 * math.sqrt(50) / 20.0
    seen = epsilon([published.release(seen=True)], 1e-5, "gdp")
    assert seen == pytest.approx(dp.get_epsilon_gaussian(1 / mu, 1e-5), rel=1e-6)
    assert epsilon([published.release()], 1e-5) < seen / 2


def test_calibrated_noise_meets_epsilon_from_below() -> None:
    where = setting(privacy={"noise": None, "epsilon": 4.0})
    part = ready({}, where)
    accountant = PLDAccountant(REPLACED)
    accountant.compose(dp.PoissonSampledDpEvent(0.25, dp.GaussianDpEvent(part.noise_multiplier)), 50)
    assert 4.0 - 5e-3 < accountant.get_epsilon(1e-5) <= 4.0 + 1e-4


def test_one_client_moves_the_sum_by_at_most_its_clip() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(9, 200, generator=generator, dtype=torch.float64) * torch.logspace(-3, 3, 9).double()[:, None]
    part = ready({"clip": 2.0}, setting(0.0))
    base = part.aggregate(rows(values), context()).update * 10
    for client in range(9):
        others = [i for i in range(9) if i != client]
        without = part.aggregate(rows(values[others]), context()).update * 10
        assert float((base - without).norm()) <= 2.0 * (1 + 1e-6)
        changed = values.clone()
        changed[client] = -1e8 * changed[client]
        moved = part.aggregate(rows(changed), context()).update * 10
        assert float((base - moved).norm()) <= 4.0 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("sampler", "divisor"), [(POISSON, 10), ({"name": "uniform"}, 15), ({"name": "fixed", "clients": [4, 9]}, 2)]
)
def test_the_divisor_and_the_weights_are_fixed(sampler: dict[str, Any], divisor: int) -> None:
    part = ready({"clip": 100.0}, setting(0.0, sampler, cohort=15))
    values = torch.arange(12.0).reshape(3, 4)
    for counts in ([1, 1, 1], [500, 3, 1]):
        got = part.aggregate(rows(values, torch.tensor(counts)), context())
        torch.testing.assert_close(got.update, values.sum(0) / divisor)
        assert got.weights.tolist() == pytest.approx([1 / divisor] * 3)


def test_without_a_claim_the_divisor_may_be_what_came() -> None:
    part = ready({"clip": 100.0, "denominator": "received"}, setting(0.0))
    values = torch.arange(12.0).reshape(3, 4)
    torch.testing.assert_close(part.aggregate(rows(values), context()).update, values.mean(0))
    server = {"defenses": [{"name": "dp_fedavg", "denominator": "received"}], "sampler": POISSON}
    assert private(server=server, privacy={"noise": [1.0], "claim": "none", **CLIENT})


def test_the_noise_has_its_deviation_and_no_memory() -> None:
    part, d = ready({"clip": 3.0}, setting(0.8)), 40_000
    silent = rows(torch.zeros(5, d, dtype=torch.float64))
    drawn = [part.aggregate(silent, context(number)).update for number in (1, 2)]
    for each in drawn:
        assert float(each.std()) == pytest.approx(0.8 * 3.0 / 10, rel=0.02)
        assert abs(float(each.mean())) < 5 * 0.24 / math.sqrt(d)
    assert abs(float(torch.corrcoef(torch.stack(drawn))[0, 1])) < 5 / math.sqrt(d)
    assert torch.equal(part.aggregate(silent, context(1)).update, drawn[0])


@pytest.mark.parametrize("quantile", [0.3, 0.8])
@pytest.mark.parametrize("start", [0.01, 50.0])
def test_the_clip_finds_the_quantile(quantile: float, start: float) -> None:
    generator = torch.Generator().manual_seed(1)
    options = {"clip": start, "adaptive": True, "quantile": quantile, "clip_lr": 0.2}
    part = ready(options, setting(1.0, {"name": "uniform"}, sizes=[1] * 2000, cohort=200))
    state: dict[str, Any] = {}
    clips = []
    for number in range(1, 221):
        norms = torch.exp(torch.randn(200, generator=generator))
        part.aggregate(rows(norms[:, None]), context(number, state=state))
        clips.append(state["clip"])
    expected = math.exp(float(torch.distributions.Normal(0, 1).icdf(torch.tensor(quantile))))
    assert sum(clips[-60:]) / 60 == pytest.approx(expected, rel=0.08)


def test_the_count_is_paid_for_out_of_the_same_release() -> None:
    where = setting(1.2)
    part = ready({"adaptive": True, "count_noise": 2.0}, where)
    on_sum, on_count = part.noises(10.0)
    assert on_count == 2.0
    both = 1 / on_sum**2 + 1 / (2 * on_count) ** 2
    assert both == pytest.approx(1 / 1.2**2)
    alone = PLDAccountant().compose(dp.GaussianDpEvent(1.2)).get_epsilon(1e-5)
    joint = PLDAccountant().compose(dp.GaussianDpEvent(on_sum)).compose(dp.GaussianDpEvent(on_count / 0.5))
    assert joint.get_epsilon(1e-5) == pytest.approx(alone, rel=5e-3)
    fixed, adaptive = (ready({"adaptive": each}, where).publications(where)[0] for each in (False, True))
    assert fixed.release() == adaptive.release()


def test_the_counts_noise_has_its_deviation() -> None:
    part = ready({"adaptive": True, "count_noise": 2.0, "clip_lr": 1.0, "quantile": 0.5}, setting(1.2))
    shares = []
    for seed in range(2000):
        state: dict[str, Any] = {}
        part.aggregate(rows(torch.zeros(10, 1)), context(seed=seed, state=state))
        shares.append(0.5 - math.log(state["clip"]))
    assert float(torch.tensor(shares).mean()) == pytest.approx(1.0, abs=0.02)
    assert float(torch.tensor(shares).std()) == pytest.approx(0.2, rel=0.06)


def test_a_round_that_nobody_answers_releases_noise_and_no_fault() -> None:
    rare = {"defenses": [{"name": "dp_fedavg"}], "sampler": {"name": "poisson", "rate": 1e-9}}
    scenario = private(server=rare, rounds=2, client={})
    start = build(scenario).initial
    found = simulate(scenario)
    assert found.rounds["cohort"].map(len).sum() == 0
    assert found.rounds["faults"].map(len).sum() == 0
    moved = torch.cat([value.flatten() for value in found.parameters.values()]) - start
    assert float(moved.std()) == pytest.approx(math.sqrt(2) / (12 * 1e-9), rel=0.1)


def test_buffers_do_not_leave_without_noise() -> None:
    given = rows(torch.ones(3, 4))
    given = given.replace(extras={"buffers": torch.ones(3, 2)})
    got = make("defense", "dp_fedavg").aggregate(given, context())
    assert got.buffers is not None
    assert got.buffers.tolist() == [0.0, 0.0]


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


CLIENT = {"unit": "client"}
UNIFORM = {"defenses": ["dp_fedavg"]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"privacy": {"noise": [1.0]}}, r"privacy\.unit: given 'example'; accepted: 'client'"),
        ({"privacy": {"noise": [1.0], "trust": "local", **CLIENT}}, r"privacy\.trust: given 'local'"),
        ({"privacy": CLIENT}, r"privacy\.epsilon: given nothing"),
        ({"privacy": {"noise": [1.0, 2.0], **CLIENT}}, r"privacy\.noise: given \[1.0, 2.0\]; accepted: \[z\]"),
        ({"privacy": {"noise": [1.0], "accountant": "rdp", **CLIENT}}, r"accountant: given 'rdp'; accepted: 'pld'"),
        ({"privacy": {"noise": [1.0], **CLIENT}, "server": UNIFORM}, r"accountant: given 'pld, replace_one'"),
        ({"server": {**UNIFORM, "sampler": {"name": "by_size"}}}, r"server\.sampler: given 'by_size'"),
        ({"privacy": {"epsilon": 1.0, "noise": [0.5], **CLIENT}}, r"epsilon of at most 1"),
        (
            {"server": {"defenses": [{"name": "dp_fedavg", "adaptive": True, "count_noise": 0.5}], "sampler": POISSON}},
            r"count_noise: given 0\.5; accepted: above z/2",
        ),
        (
            {"server": {"defenses": [{"name": "dp_fedavg", "denominator": "received"}], "sampler": POISSON}},
            r"server\.defenses\[0\]\.denominator: given 'received'; accepted: 'expected'",
        ),
        ({"server": {"defenses": ["krum", "dp_fedavg"], "sampler": POISSON}}, r"server\.defenses\[0\]: given 'krum'"),
    ],
)
def test_what_guarantees_nothing_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        private(**changes)


def test_a_deployment_draws_its_cohorts_from_no_seed() -> None:
    def cohorts(deployed: bool, sampler: dict[str, Any]) -> list[list[int]]:
        server = {"defenses": ["dp_fedavg"], "sampler": sampler}
        federation = build(private(data={"clients": 40}, client={"per_round": 10}, server=server), deployed)
        evaluator, engine = federation.evaluator(), federation.engine()
        try:
            strategy: Any = federation.strategy(evaluator)
            arrays, drawn = Flat(federation.initial, federation.layout), []
            for server_round in range(1, 6):
                strategy.configure_train(server_round, arrays, ConfigRecord(), engine)
                drawn.append(strategy.outcome.cohort)
            return drawn
        finally:
            evaluator.close()
            engine.close()

    assert cohorts(False, POISSON) == cohorts(False, POISSON)
    assert cohorts(True, POISSON) != cohorts(False, POISSON)
    assert cohorts(True, POISSON) != cohorts(True, POISSON)
    fixed = {"name": "fixed", "clients": list(range(40))}
    assert cohorts(True, fixed) == cohorts(False, fixed)


@pytest.mark.parametrize(("option", "given"), [("quantile", 0.9), ("clip_lr", 0.5), ("count_noise", 3.0)])
def test_options_of_the_adaptive_clip_are_refused_with_a_fixed_one(option: str, given: float) -> None:
    part = {"name": "dp_fedavg", option: given}
    with pytest.raises(ScenarioError, match=rf"server\.defenses\[0\]\.{option}: given {given}.*adaptive = false"):
        private(server={"defenses": [part], "sampler": POISSON})
    private(server={"defenses": [{**part, "adaptive": True}], "sampler": POISSON})


def test_cohorts_by_size_are_refused_once() -> None:
    with pytest.raises(ScenarioError, match="'poisson', 'uniform' or 'fixed', whose law is accounted") as error:
        private(server={"defenses": ["dp_fedavg"], "sampler": "by_size"})
    assert len(error.value.faults) == 1


def test_a_sampler_that_draws_by_its_rate_minds_no_cohorts_size() -> None:
    """Its default is for ten clients; a matrix over samplers has one value for all."""
    assert private(client={}, data={"clients": 4}).cohort == 4
    assert private(client={"per_round": 5}).cohort == 5
