"""Reclip: known ε at sensitivity 2C, what is refused without it, and that nothing moves the model further than 2C."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
import torch
from scipy.stats import norm
from typer.testing import CliRunner

from fedsim import registry
from fedsim.cli import app
from fedsim.errors import ScenarioError
from fedsim.federation import build
from fedsim.privacy.mechanism import Setting
from fedsim.registry import make
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.tables import Privacy
from fedsim.updates import Updates
from strategies.defense import Round
from strategies.pipeline import aggregate
from strategies.sampler import Uniform

ROUNDS = 6
RECLIP: dict[str, Any] = {"name": "reclip", "radius": 0.5}


def private(*defenses: Any, **changes: Any) -> Scenario:
    tables: dict[str, Any] = {
        "rounds": ROUNDS,
        "data": {"clients": 6},
        "model": {"name": "logistic"},
        "client": {"per_round": 6},
        "server": {"defenses": list(defenses)},
        "privacy": {"epsilon": 8.0, "unit": "client"},
    }
    return Scenario(**{**tables, **changes})


def setting(**privacy: Any) -> Setting:
    return Setting(ROUNDS, 0, [9] * 6, Privacy(**{"unit": "client", **privacy}))


def ready(where: Setting, radius: float = 0.5) -> Any:
    part = make("defense", "reclip", radius=radius)
    part.set_up(where)
    return part


def gaussian_delta(epsilon: float, mu: float) -> float:
    """δ of a Gaussian mechanism whose sensitivity is ``mu`` times the noise's deviation (Balle & Wang 2018)."""
    return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


@pytest.mark.parametrize("neighbours", ["replace_one", "add_or_remove"])
@pytest.mark.parametrize("unit", ["client", "example"])
@pytest.mark.parametrize("z", [3.0, 12.0])
def test_epsilon_is_that_of_sensitivity_2c_under_either_relation(neighbours: str, unit: str, z: float) -> None:
    privacy = {"noise": [z], "unit": unit, "neighbours": neighbours}
    found = build(private("median", RECLIP, privacy=privacy)).guarantee
    assert found is not None
    public, _, server = found.readers
    mu = math.sqrt(ROUNDS) * 2 / z
    assert gaussian_delta(public.epsilons["gdp"], mu) == pytest.approx(1e-5, rel=1e-6)
    assert public.epsilons["gdp"] == pytest.approx(dp.get_epsilon_gaussian(1 / mu, 1e-5), rel=1e-6)
    assert public.epsilons["pld"] == pytest.approx(public.epsilons["gdp"], rel=5e-3)
    assert public.epsilons["rdp"] >= public.epsilons["gdp"]
    assert found.after(ROUNDS) == pytest.approx(public.epsilons["gdp"], rel=1e-9)
    assert not server.epsilons


@pytest.mark.parametrize("neighbours", ["replace_one", "add_or_remove"])
def test_calibrated_noise_meets_epsilon_from_below(neighbours: str) -> None:
    part = ready(setting(epsilon=4.0, neighbours=neighbours))
    spent = dp.get_epsilon_gaussian(part.deviation / (2 * 0.5) / math.sqrt(ROUNDS), 1e-5)
    assert 4.0 - 1e-3 <= spent <= 4.0


def test_a_cohort_amplifies_nothing() -> None:
    few = build(private("median", RECLIP, client={"per_round": 3})).guarantee
    everybody = build(private("median", RECLIP)).guarantee
    assert few is not None
    assert everybody is not None
    assert few.publications == everybody.publications


def rows(values: torch.Tensor) -> Updates:
    return Updates(values, torch.ones(len(values)), list(range(len(values))), values.new_zeros(values.shape[1]))


def through(rule: str, part: Any, updates: Updates, seed: int = 0, number: int = 1) -> torch.Tensor:
    parts = [make("defense", rule), part]
    contexts = [Round(round=number, seed=seed, part=f"{i}") for i in range(2)]
    return aggregate(parts, updates, contexts).update


@pytest.mark.parametrize("rule", ["median", "multi_metrics", "krum", "fedavg"])
def test_nothing_that_rows_do_moves_the_aggregate_by_more_than_2c(rule: str) -> None:
    part = ready(setting())
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in (1e-9, 0.1, 1.0, 1e3, 1e30):
        values = torch.randn(7, 40, generator=generator) * size
        found += [through(rule, part, rows(values)), through(rule, part, rows(-values))]
    found.append(through(rule, part, rows(torch.zeros(0, 40))))
    for one in found:
        for other in found:
            assert float((one.double() - other.double()).norm()) <= 2 * 0.5 * (1 + 1e-6)
    small = torch.full((7, 40), 1e-3)
    assert torch.equal(through("median", part, rows(small)), small[0])


@pytest.mark.parametrize("present", [0, 1, 2, 7])
def test_noise_leaves_whoever_is_there(present: int) -> None:
    """Too few rows for krum, or none: a release all the same, since who is left may depend on the data."""
    part, d = ready(setting(noise=[2.0])), 20_000
    drawn = [through("krum", part, rows(torch.zeros(present, d)), number=number).double() for number in (1, 2)]
    for each in drawn:
        assert float(each.std()) == pytest.approx(2.0 * 0.5, rel=0.03)
    assert abs(float(torch.corrcoef(torch.stack(drawn))[0, 1])) < 5 / math.sqrt(d)


def test_an_aggregate_that_is_not_finite_is_zero() -> None:
    part = ready(setting())
    for bad in (math.nan, math.inf):
        values = torch.full((5, 3), 1.0)
        values[:, 1] = bad
        assert torch.equal(through("fedavg", part, rows(values)), torch.zeros(3))


def test_without_privacy_it_clips_and_promises_nothing() -> None:
    scenario = private("median", RECLIP, privacy={})
    found = build(scenario).guarantee
    assert found is not None
    assert found.none
    moved = simulate(private("median", {**RECLIP, "radius": 1e-3}, privacy={}, rounds=1))
    start = build(scenario).initial
    after = torch.cat([value.flatten() for value in moved.parameters.values()])
    assert float((after - start).double().norm()) == pytest.approx(1e-3, rel=1e-3)


REFUSED: list[tuple[Scenario | dict[str, Any], list[Any], str]] = [
    ({}, ["median"], r"privacy\.epsilon: given 8\.0; accepted: no \[privacy\] table .*'reclip' behind any defense"),
    (
        {},
        ["median", "dp_fedavg"],
        r"server\.defenses\[0\]: given 'median'.*'reclip' behind it in place of 'dp_fedavg'.*twice its radius",
    ),
    (
        {"server": {"estimator": {"name": "dp_gd", "c1": 1.0, "lr": 0.5}, "defenses": ["median"]}},
        [],
        r"server\.defenses\[0\]: given 'median'.*privacy\.trust = 'local' makes it valid",
    ),
    ({}, ["flame", RECLIP], r"server\.defenses\[0\]: given 'flame'.*after the noise comes from rows that it saw"),
    ({}, [RECLIP, "median"], r"server\.defenses\[1\]: given 'median'; accepted: in front of 'reclip'"),
    ({"privacy": {"epsilon": 8.0, "trust": "local"}}, ["median", RECLIP], r"privacy\.trust: given 'local'"),
    ({"privacy": {"epsilon": 8.0, "calibration": "paper"}}, ["median", RECLIP], r"privacy\.calibration"),
    ({"privacy": {"noise": [1.0, 2.0]}}, ["median", RECLIP], r"privacy\.noise: given \[1\.0, 2\.0\]; accepted: \[z\]"),
    ({"privacy": {"epsilon": 1.0, "noise": [2.0]}}, ["median", RECLIP], r"epsilon of at most 1"),
    ({}, ["median", RECLIP, "dp_fedavg"], r"one part that adds noise"),
    ({"evaluate": {"clients": 2}}, ["median", RECLIP], r"evaluate\.clients"),
]


@pytest.mark.parametrize(("changes", "defenses", "said"), REFUSED)
def test_what_guarantees_nothing_is_refused(changes: dict[str, Any], defenses: list[Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        private(*defenses, **changes)


@pytest.mark.parametrize("declared", [None, True, False])
def test_only_a_sampler_that_says_so_is_taken_to_read_no_example_counts(
    declared: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_parts", {kind: dict(parts) for kind, parts in registry._parts.items()})
    own = {} if declared is None else {"reads_sizes": declared}
    registry.register("sampler", "of_my_own")(type("OfMyOwn", (), {"sample": Uniform.sample, **own}))
    drawn = {"server": {"defenses": ["median", RECLIP], "sampler": "of_my_own"}}
    private(**drawn, privacy={"epsilon": 8.0, "unit": "example"})
    if declared is False:
        private(**drawn)
        return
    with pytest.raises(ScenarioError, match=r"server\.sampler: given 'of_my_own'.*declares reads_sizes = False"):
        private(**drawn)


def test_reclip_is_not_named_where_it_would_be_refused() -> None:
    """FLAME's own noise, as large as the raw rows' median norm asks, comes after the server's."""
    with pytest.raises(ScenarioError, match=r"given 'flame'") as error:
        private("flame", "dp_fedavg")
    assert "reclip" not in str(error.value)
    private("weak_dp", RECLIP)
    private("crfl", RECLIP)


def test_the_proof_shows_the_rule_unbounded_and_the_aggregate_bounded(tmp_path: Path) -> None:
    file = tmp_path / "reclip.toml"
    file.write_text(private("multi_metrics", RECLIP).toml())
    call = CliRunner().invoke(app, ["privacy", str(file)])
    assert call.exit_code == 0
    stages = [line for line in call.stdout.splitlines() if line.startswith(("defense", "clip", "noise"))]
    assert [line.split(":")[0] for line in stages] == ["defense", "clip", "noise on clipped aggregate"]
    assert "unbounded" in stages[0]
    assert "the aggregate to C = 0.5" in stages[1]
    assert "2·C = 1, whatever the relation" in stages[1]


def test_workers_and_interruptions_change_no_bit(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(line: dict[str, Any]) -> None:
        if line["round"] == 2:
            raise Stop

    scenario = private("multi_metrics", RECLIP, client={"per_round": 6, "dropout": 0.5})
    digests = {
        simulate(
            private("multi_metrics", RECLIP, client={"per_round": 6, "dropout": 0.5}, engine={"workers": n})
        ).digest
        for n in (1, 2)
    }
    with pytest.raises(Stop):
        simulate(scenario, tmp_path / "run", progress=stop)
    digests.add(simulate(scenario, tmp_path / "run", resume=True).digest)
    assert len(digests) == 1
