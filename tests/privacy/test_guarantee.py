"""What a configured run guarantees: refusals, readers, epsilon over rounds, and what leaves the clients."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from typer.testing import CliRunner

from fedsim.cli import app
from fedsim.errors import ScenarioError
from fedsim.federation import build, protected
from fedsim.flower import Flat, flatten
from fedsim.privacy import diff2_releases, epsilon
from fedsim.privacy.guarantee import Guarantee, derive
from fedsim.privacy.mechanism import Publication, Setting
from fedsim.privacy.noise import from_entropy, noised
from fedsim.privacy.proof import Stage, lines, stages
from fedsim.registry import names
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.updates import Layout, Updates

DIFF2: dict[str, Any] = {"name": "diff2", "restart": 3, "c1": 1.0, "c2": 5.0, "lr": 0.5}
ONE: dict[str, Any] = {"name": "dp_gd", "c1": 1.0, "lr": 0.5}
NOISE = [0.02, 0.08]
FIRST, SECOND = NOISE


def tables(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "rounds": 5,
        "data": {"clients": 4},
        "model": {"name": "logistic"},
        "client": {"per_round": 4},
        "server": {"estimator": DIFF2},
        "privacy": {"noise": NOISE},
    }
    return {**base, **changes}


def private(**changes: Any) -> Scenario:
    return Scenario(**tables(**changes))


def guarantee(**changes: Any) -> Guarantee:
    found = build(private(**changes)).guarantee
    assert found is not None
    return found


def refusal(**changes: Any) -> str:
    with pytest.raises(ScenarioError) as error:
        build(private(**changes))
    return str(error.value)


def behind(defense: Any, **privacy: Any) -> dict[str, Any]:
    return {"server": {"estimator": DIFF2, "defenses": [defense]}, "privacy": {"noise": NOISE, **privacy}}


ATTACK = {"count": 1, "attacks": ["sign_flip"]}
REFUSED: list[tuple[dict[str, Any], str, list[str]]] = [
    (behind("multi_metrics"), "server.defenses[0]", ["depends on the data", "'local' makes it valid", "claim"]),
    (behind("median"), "server.defenses[0]", ["norm_bound", "'local'"]),
    (behind("median", trust="distributed"), "server.defenses[0]", ["a sum ('fedavg')", "'local' makes it valid"]),
    (behind("norm_bound", trust="distributed"), "server.defenses[0]", ["single row", "'local'"]),
    *[
        (
            {"evaluate": {"clients": 2}, "data": {"clients": 4, "holdout": held}, "privacy": {"noise": NOISE, **trust}},
            "evaluate.clients",
            ["held-out shares included", "claim = 'none'"],
        )
        for held in (0.0, 0.3)
        for trust in ({}, {"trust": "local"}, {"trust": "distributed", "colluding": 1})
    ],
    (
        {"server": {"estimator": DIFF2, "sampler": {"name": "poisson", "rate": 0.5}}},
        "server.sampler",
        ["all clients in every round"],
    ),
    ({"adversary": {**ATTACK, "knowledge": "omniscient"}}, "adversary.knowledge", ["'colluding'", "'local'"]),
    (
        {"adversary": ATTACK, "privacy": {"noise": NOISE, "trust": "distributed"}},
        "privacy.colluding",
        ["1 or more", "'local'"],
    ),
    ({"adversary": {"count": 1, "attacks": ["semantic"]}}, "adversary.attacks[0]", ["attackers' own examples"]),
    (
        {"adversary": {"count": 1, "attacks": [{"name": "edge_case", "mode": "lowest_density"}]}},
        "adversary.attacks[0]",
        ["attackers' own examples"],
    ),
    ({"privacy": {"noise": NOISE, "colluding": 1}}, "privacy.colluding", ["trust = 'distributed'"]),
    ({"privacy": {"noise": NOISE, "trust": "distributed", "colluding": 4}}, "privacy.colluding", ["0 to 3"]),
    ({"privacy": {"noise": NOISE, "epsilon": "inf"}}, "privacy.noise", ["free of noise"]),
    (
        {
            "server": {"estimator": {**DIFF2, "subroutine": "bvr_l_sgd"}},
            "privacy": {"noise": NOISE, "epsilon": "inf"},
        },
        "privacy.noise",
        ["free of noise"],
    ),
    ({"server": {}}, "privacy.noise", ["no part reads", "diff2"]),
    ({"server": {}, "privacy": {"claim": "none"}}, "privacy.claim", ["no part reads"]),
    ({"client": {"per_round": 4, "epochs": 3}}, "client.epochs", ["do not train"]),
    ({"client": {"per_round": 4, "optimizer": {"name": "sgd", "lr": 0.1}}}, "client.optimizer", ["do not train"]),
    ({"client": {"per_round": 4, "optimizer": {"name": "adam"}}}, "client.optimizer", ["do not train"]),
    ({"client": {"per_round": 4, "straggler": 0.5}}, "client.straggler", ["0.0"]),
    ({"client": {"per_round": 4, "batch_size": 8}}, "client.batch_size", ["32"]),
    ({"server": {"estimator": DIFF2, "optimizer": {"name": "adam"}}}, "server.optimizer", ["step itself"]),
    *[
        ({"server": {"estimator": part}, "privacy": {"noise": noise}, "engine": {key: given}}, f"engine.{key}", said)
        for part, noise in ((DIFF2, NOISE), (ONE, [FIRST]))
        for key, given, said in (
            ("precision", "bfloat16", ["'float32' or 'float64'", "compute what the estimator asks for"]),
            ("path", "stacked", ["'auto' or 'reference'", "one at a time"]),
            ("path", "vmap", ["'auto' or 'reference'", "one at a time"]),
        )
    ],
    ({"server": {"estimator": DIFF2, "defenses": ["flwr:FedMedian"]}}, "server.defenses[0]", ["stock Flower"]),
    ({"adversary": {"count": 1, "attacks": ["pgd"]}}, "adversary.attacks[0]", ["after_step"]),
    ({"server": {"estimator": {**DIFF2, "c1": 1e9}}}, "server.estimator.c1", ["server.limit"]),
]


@pytest.mark.parametrize(("changes", "key", "said"), REFUSED)
def test_what_guarantees_nothing_is_refused(changes: dict[str, Any], key: str, said: list[str]) -> None:
    text = refusal(**changes)
    assert f"scenario: {key}" in text
    assert len(text.splitlines()) == 1
    for words in said:
        assert words in text


@pytest.mark.parametrize(
    "changes",
    [
        behind("multi_metrics", trust="local"),
        behind("fedavg", trust="distributed"),
        behind("norm_bound"),
        behind("weak_dp"),
        behind("crfl"),
        {"adversary": {**ATTACK, "knowledge": "omniscient"}, "privacy": {"noise": NOISE, "trust": "local"}},
        {"adversary": ATTACK, "privacy": {"noise": NOISE, "trust": "distributed", "colluding": 1}},
        behind("multi_metrics", claim="none"),
        {**behind("median"), "privacy": {"epsilon": "inf"}},
        {"client": {"per_round": 4, "dropout": 0.3}},
        {"engine": {"precision": "float64", "path": "reference"}},
    ],
)
def test_what_is_valid_loads(changes: dict[str, Any]) -> None:
    private(**changes)


BOUNDED = {"fedavg": "sum", "norm_bound": "row clip", "weak_dp": "row clip", "crfl": "released"}
ROOT = {"data": {"clients": 12, "root": 100}}
NEEDS: dict[str, dict[str, Any]] = {"fltrust": ROOT, "softmax_radius": ROOT}


@pytest.mark.parametrize("name", [name for name in names("defense") if "NAME" not in name])
def test_in_front_of_central_noise_stands_only_what_declares_a_bound(name: str) -> None:
    """Every registered defense, so that a new one is refused until it declares what a row can do."""
    base = {"data": {"clients": 12}, "client": {"per_round": 12}, **NEEDS.get(name, {}), **behind(name)}
    if name in BOUNDED:
        private(**base)
        return
    with pytest.raises(ScenarioError) as error:
        private(**base)
    said = [line for line in str(error.value).splitlines() if f"server.defenses[0]: given '{name}'" in line]
    adds = name in ("dp_fedavg", "reclip")
    reason = "one part that adds noise" if adds else "(depends on the data|messages of its own to the clients)"
    assert any(re.search(reason, line) for line in said), str(error.value)
    if not adds and not any("messages of its own" in line for line in said):
        private(**{**base, **behind(name, trust="local")})


def test_example_counts_weigh_nothing_in_front_of_a_part_that_averages_with_equal_weights() -> None:
    trained = {"client": {"per_round": 4, "optimizer": "sgd"}, "privacy": {"epsilon": 8.0, "unit": "client"}}
    text = refusal(**trained, server={"defenses": ["fedavg", "dp_fedavg"]})
    assert "server.defenses[0]: given 'fedavg'; accepted: no averaging by example counts" in text
    private(**trained, server={"defenses": ["dp_fedavg"]})


OVERLAPPING = {"clients": 4, "partition": {"name": "iid", "examples": 600}}


def test_an_example_that_two_clients_hold_is_protected_with_its_client_alone() -> None:
    said = refusal(data=OVERLAPPING)
    assert "data.partition: given 'iid'" in said
    assert "each example to one client, or privacy.unit = 'client': what two hold counts twice" in said
    assert not guarantee(data=OVERLAPPING, privacy={"noise": NOISE, "unit": "client"}).none
    assert guarantee(data=OVERLAPPING, privacy={"noise": NOISE, "claim": "none"}).none
    apart = {"clients": 4, "partition": "iid"}
    assert not guarantee(data=apart).none


EARLY = [({"early_stopping": {"patience": 3}}, "early_stopping"), ({"evaluate": {"patience": 3}}, "evaluate.patience")]


@pytest.mark.parametrize(("changes", "key"), EARLY)
def test_nobody_stops_early(changes: dict[str, Any], key: str) -> None:
    text = refusal(**changes)
    assert f"scenario: {key}: given" in text
    assert "accepted: no such key" in text
    assert stages_of()["early stopping: none, 5 rounds are fixed"][1:3] == ("nothing of any client", "0")


def test_what_is_named_as_valid_is_valid() -> None:
    """Local noise for an estimator alone, which can draw it; a second clip of the aggregate for the others alone."""
    assert "reclip" not in refusal(**behind("median"))
    trained = {"client": {"per_round": 4, "optimizer": "sgd"}, "privacy": {"epsilon": 8.0, "unit": "client"}}
    text = refusal(**trained, server={"defenses": ["median", "dp_fedavg"]})
    assert "'local'" not in text
    assert "'reclip' behind it in place of 'dp_fedavg'" in text
    private(**trained, server={"defenses": ["median", "reclip"]})
    private(**trained, server={"defenses": ["norm_bound", "dp_fedavg"]})
    omniscient = {"adversary": {**ATTACK, "knowledge": "omniscient"}}
    assert "'local'" not in refusal(**trained, **omniscient, server={"defenses": ["dp_fedavg"]})


def test_a_subclass_inherits_no_declaration() -> None:
    from strategies.norm_bound import NormBound

    class Sly(NormBound):
        def select(self, updates: Any, ctx: Any) -> Any:
            return super().select(updates, ctx)

    assert NormBound.privacy_stage() == "row clip"
    assert Sly.privacy_stage() == "unbounded"


FORCED: dict[str, Any] = {"adversary": {"count": 1, "attacks": ["sign_flip"], "selection": "forced"}}
DP_FEDAVG = {"defenses": ["dp_fedavg"]}
CLIENT = {"noise": [1.0], "unit": "client"}
LOCAL_STEPS: dict[str, Any] = {"server": {}, "privacy": {"noise": [1.0], "trust": "local"}}
HALF = {"name": "poisson", "rate": 0.5}


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"server": {**DP_FEDAVG, "sampler": HALF}, "privacy": CLIENT}, True),
        ({"server": {**DP_FEDAVG, "sampler": {**HALF, "rate": 1.0}}, "privacy": CLIENT}, False),
        ({"server": {**DP_FEDAVG, "sampler": HALF}, "privacy": {**CLIENT, "claim": "none"}}, False),
        ({"server": {"defenses": ["reclip"]}, "client": {"per_round": 2}, "privacy": CLIENT}, False),
        ({**LOCAL_STEPS, "client": {"per_round": 2, "optimizer": "dp_sgd"}}, True),
        ({**LOCAL_STEPS, "client": {"per_round": 4, "optimizer": "dp_sgd"}}, False),
    ],
)
def test_draws_are_replaced_only_where_no_epsilon_counts_them(changes: dict[str, Any], refused: bool) -> None:
    if not refused:
        private(**FORCED, **changes)
        return
    with pytest.raises(ScenarioError, match="clients take part in other rounds than are accounted") as error:
        private(**FORCED, **changes)
    assert [fault.key for fault in error.value.faults] == ["adversary.selection"]


@pytest.mark.parametrize("accountant", ["pld", "gdp"])
def test_noise_that_costs_more_than_promised_is_refused_before_anything_is_written(
    accountant: str, tmp_path: Any
) -> None:
    rounds, restart, clients, n, delta, target = 100, 99, 10, 143, 1e-5, 3.0
    alpha = 1 + math.ceil(2 * math.log(1 / delta) / target)

    def sigmas(restarts: float) -> list[float]:
        first = 4 * 1.25 * alpha * restarts / target
        second = 4 * 1.25 / 0.25 * alpha * rounds / target
        return [math.sqrt(first) / (n * clients), math.sqrt(second) / (n * clients)]

    def scenario(noise: list[float]) -> Scenario:
        return private(
            rounds=rounds,
            data={"clients": clients},
            client={"per_round": clients},
            server={"estimator": {**DIFF2, "restart": restart}},
            privacy={"epsilon": target, "delta": delta, "noise": noise, "accountant": accountant},
        )

    with pytest.raises(ScenarioError, match=r"privacy\.noise.*costs 3\.24") as error:
        simulate(scenario(sigmas(rounds / restart)), tmp_path / "run")
    assert "at most 3 at delta = 1e-05 (replace_one)" in str(error.value)
    assert not (tmp_path / "run").exists()
    found = build(scenario(sigmas(2))).guarantee
    assert found is not None
    assert found.readers[0].epsilons[accountant] == pytest.approx(2.336, abs=5e-3)


def test_central_protects_from_everybody_but_the_server() -> None:
    found = guarantee()
    n = min(build(private()).shares.sizes)
    direct = diff2_releases(FIRST, SECOND, 5, 3, 4, int(n))
    public, others, server = found.readers
    for accountant in ("pld", "rdp", "gdp"):
        assert public.epsilons[accountant] == pytest.approx(epsilon(direct, 1e-5, accountant), rel=1e-9)
    assert others.epsilons == public.epsilons
    assert not server.epsilons
    assert (public.promised, others.promised, server.promised) == (True, False, False)


def test_distributed_tells_what_another_client_sees() -> None:
    privacy = {"noise": NOISE, "trust": "distributed", "colluding": 1}
    public, others = guarantee(privacy=privacy).readers
    n = int(min(build(private()).shares.sizes))
    for reader, absent in ((public, 1), (others, 2)):
        direct = diff2_releases(FIRST, SECOND, 5, 3, 4, n, trust="distributed", colluding=absent)
        assert reader.epsilons["gdp"] == pytest.approx(epsilon(direct, 1e-5, "gdp"), rel=1e-9)
    alone = guarantee(privacy={**privacy, "colluding": 3}).readers[1]
    assert not alone.epsilons


def test_local_protects_from_the_server_and_central_noise_of_that_size_far_better() -> None:
    local = guarantee(privacy={"noise": NOISE, "trust": "local"})
    assert [reader.name for reader in local.readers] == ["the server"]
    assert local.readers[0].epsilons["gdp"] > guarantee().readers[0].epsilons["gdp"]


def test_zero_out_costs_less_than_replacement_and_the_relation_is_told() -> None:
    out = guarantee(privacy={"noise": NOISE, "neighbours": "add_or_remove"})
    assert out.readers[0].epsilons["pld"] < guarantee().readers[0].epsilons["pld"]
    text = lines(private(privacy={"noise": NOISE, "neighbours": "add_or_remove"}), out)
    assert [line.split("add_or_remove")[0].strip() for line in text if line.startswith("the public")] == ["the public"]
    assert all("add_or_remove" in line or "NONE" in line for line in text if line.startswith(("the ", "other cl")))


def test_held_out_examples_are_not_counted() -> None:
    whole, held = guarantee(), guarantee(data={"clients": 4, "holdout": 0.5})
    assert held.publications[0].noise_multiplier == pytest.approx(whole.publications[0].noise_multiplier / 2, rel=0.02)


def test_the_curve_is_the_closed_form_after_each_round_and_stands_in_the_records() -> None:
    found = guarantee()
    z = [each.noise_multiplier for each in found.publications]
    for number in range(1, 6):
        first = -(-number // 3)
        spent = epsilon([(z[0], first), (z[1], number - first)], 1e-5, "gdp")
        assert found.after(number) == pytest.approx(spent, rel=1e-9)
    assert found.after(0) == 0.0
    played = simulate(private()).lines
    assert [line["epsilon"] for line in played] == [found.after(number) for number in range(6)]


class Sampled:
    """A mechanism of sampled cohorts."""

    def set_up(self, setting: Setting) -> None:
        pass

    def publications(self, setting: Setting, absent: int = 0) -> list[Publication]:
        return [
            Publication("clipped updates", "each update", "C", 1.0, range(1, 41), sampling_rate=0.1, sampled="cohort")
        ]


def test_who_sees_the_cohorts_gets_no_amplification_and_the_curve_is_conservative() -> None:
    scenario = private(privacy={"noise": NOISE, "neighbours": "add_or_remove"})
    setting = Setting(40, 0, [100] * 4, scenario.privacy)
    found = derive(scenario, "sampled", Sampled(), setting)
    public, others, _server = found.readers
    assert public.epsilons["pld"] == pytest.approx(epsilon([(1.0, 40, 0.1)], 1e-5, "pld", "add_or_remove"))
    assert others.epsilons["pld"] == pytest.approx(epsilon([(1.0, 40)], 1e-5, "pld", "add_or_remove"))
    assert "gdp" not in public.epsilons
    assert len(found.spent) == 40
    assert list(found.spent) == sorted(found.spent)
    assert found.after(40) == pytest.approx(public.epsilons["pld"])
    exact = epsilon([(1.0, 5, 0.1)], 1e-5, "pld", "add_or_remove")
    assert found.after(5) is not None
    assert found.spent[4] >= exact - 1e-9


def test_without_a_claim_there_is_no_number() -> None:
    scenario = private(**behind("multi_metrics", claim="none"))
    result = simulate(scenario)
    assert all(line["epsilon"] is None for line in result.lines)
    assert result.notes[0].startswith("Privacy: NONE")
    found = guarantee(**behind("multi_metrics", claim="none"))
    assert found.none
    assert "server.defenses[0] = multi_metrics" in found.reasons[0]
    text = "\n".join(lines(scenario, found))
    assert text.startswith("diff2: NONE")
    assert "ε by" not in text
    free = guarantee(privacy={"epsilon": "inf"})
    assert free.none
    assert "no noise" in free.reasons[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {
                "server": {},
                "client": {"per_round": 4, "optimizer": {"name": "dp_sgd", "sampling": "shuffled"}},
                "privacy": {"noise": [1.0], "trust": "local", "claim": "none"},
            },
            "client.optimizer.sampling = shuffled",
        ),
        (
            {
                "server": {"defenses": [{"name": "dp_fedavg", "denominator": "received"}]},
                "privacy": {"noise": [1.0], "unit": "client", "claim": "none"},
            },
            "server.defenses[0].denominator = received",
        ),
    ],
)
def test_without_a_claim_the_reason_names_the_option_that_forbids_it(changes: dict[str, Any], said: str) -> None:
    scenario, found = private(**changes), guarantee(**changes)
    assert any(reason.startswith(said) for reason in found.reasons)
    text = "\n".join(lines(scenario, found))
    assert "batch sampled at" not in text
    assert "shuffled batch" in text or "a random denominator: unbounded" in text


def test_batch_normalisation_without_buffers_is_refused_at_load() -> None:
    federation = build(private())
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(64, track_running_stats=False), torch.nn.Linear(64, 10))
    with pytest.raises(ScenarioError, match="without batch normalisation"):
        protected(federation.scenario, federation.estimator, federation.shares, Layout.of(module), module)


def test_buffers_that_would_leave_are_refused_at_load() -> None:
    client = {"per_round": 4, "optimizer": "dp_sgd"}
    federation = build(private(server={}, client=client, privacy={"noise": [1.0], "trust": "local"}))
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    protected(federation.scenario, None, federation.shares, Layout.of(module), module)
    module.register_buffer("seen", torch.zeros(3))
    with pytest.raises(ScenarioError, match=r"model\.name: .*without buffers, which would leave.*behind 'dp_sgd'"):
        protected(federation.scenario, None, federation.shares, Layout.of(module), module)


@pytest.mark.parametrize(
    ("server", "reads"),
    [
        ({"defenses": ["dp_fedavg"]}, "raw messages"),
        ({"defenses": ["median", "reclip"]}, "raw messages"),
        ({"estimator": DIFF2}, "nothing of any client"),
    ],
)
def test_buffers_that_are_dropped_stand_in_the_proof(server: dict[str, Any], reads: str) -> None:
    name = "buffers (batch normalisation's statistics)"
    client = {"per_round": 4} if "estimator" in server else {"per_round": 4, "optimizer": "sgd"}
    scenario = private(server=server, client=client, privacy={"epsilon": 8.0, "unit": "client"})
    federation = build(scenario)
    assert federation.guarantee is not None
    assert name not in {each.stage for each in stages(scenario, federation.guarantee)}
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.BatchNorm1d(10))
    found = protected(scenario, federation.estimator, federation.shares, Layout.of(module), module)
    assert found is not None
    assert not found.none
    told = {each.stage: each for each in stages(scenario, found)}[name]
    assert told[1:3] == (reads, "0: dropped, they stay as at first")


def test_the_proof_tells_of_standardised_data_and_of_told_friction() -> None:
    scaled = stages_of(data={"dataset": "diabetes", "clients": 4}, model={"name": "linear"})
    assert scaled["inputs and targets: standardised by all training examples"].sensitivity == "not protected"
    friction = stages_of(
        server={"defenses": ["dp_fedavg"]},
        client={"per_round": 4, "optimizer": {"name": "diffgrad", "log_friction": True}},
        privacy={"noise": [1.0], "unit": "client"},
    )
    assert friction["metrics: training loss, mean friction of the last step"].sensitivity == "outside the guarantee"


def stages_of(**changes: Any) -> dict[str, Stage]:
    scenario = private(**changes)
    found = build(scenario).guarantee
    assert found is not None
    return {each.stage: each for each in stages(scenario, found)}


@pytest.mark.parametrize(
    ("defense", "aggregator"),
    [
        ("fedavg", "aggregator: sum over P, weights 1/P"),
        ("norm_bound", "aggregator: sum over P, weights 1/P"),
        ("median", "aggregator: median"),
        ("multi_metrics", "aggregator: mean of what is kept, equal weights"),
        ("bucketing", "aggregator: sum over P, weights 1/P"),
    ],
)
@pytest.mark.parametrize("privacy", [{"claim": "none"}, {"trust": "local"}])
def test_the_proof_names_what_makes_one_row_of_all(defense: str, aggregator: str, privacy: dict[str, Any]) -> None:
    found = stages_of(**behind(defense, **privacy))
    assert [name for name in found if name.startswith("aggregator")] == [aggregator]
    bounded = defense in ("fedavg", "norm_bound")
    local = "trust" in privacy
    summed = aggregator.startswith("aggregator: sum")
    assert found[aggregator].sensitivity == ("post-processing" if local else "not enlarged" if summed else "unbounded")
    noises = [each for name, each in found.items() if name.startswith("noise")]
    assert len(noises) == 2
    for each in noises:
        assert (each.noise == "unknown") == (not local and not bounded)
        assert (each.sensitivity == "unbounded") == (not local and not bounded)
    remembered = "checkpoint: what defenses remember of the rows" in found
    assert remembered == (not local and not bounded)


def test_what_shortens_rows_stands_before_the_rule_that_clips_them() -> None:
    trained = {"client": {"per_round": 4, "optimizer": "sgd"}, "privacy": {"epsilon": 8.0, "unit": "client"}}
    order = [name.partition(":")[0] for name in stages_of(**trained, server={"defenses": ["norm_bound", "dp_fedavg"]})]
    assert order[1:4] == ["defense", "clip", "noise on sum of clipped updates"]


def test_what_works_on_the_new_model_stands_behind_the_noise() -> None:
    order = list(stages_of(**behind("crfl"), client={"per_round": 4, "dropout": 0.3}))
    assert order.index("defense: crfl") > order.index("noise on clipped gradient differences: the server's")
    assert "drop-outs: by chance, whatever the data" in order


@pytest.mark.parametrize(
    ("defenses", "aggregator"),
    [
        (["median", "reclip"], "aggregator: median"),
        (["foolsgold", "reclip"], "aggregator: mean of what is kept, weighted by example counts"),
        (["fedavg", "reclip"], "aggregator: fedavg"),
        (["reclip"], "aggregator: mean weighted by example counts"),
    ],
)
def test_a_rule_whose_aggregate_is_clipped_again_bounds_nothing_itself(defenses: list[str], aggregator: str) -> None:
    found = stages_of(
        client={"per_round": 4, "optimizer": {"name": "sgd", "lr": 0.1}},
        server={"defenses": defenses},
        privacy={"epsilon": 8.0, "unit": "client"},
    )
    assert found[aggregator].sensitivity == "unbounded"
    noise = found["noise on clipped aggregate: the server's"]
    assert (noise.sensitivity, float(noise.noise) > 0) == ("not enlarged", True)


def replies(scenario: Scenario, deployed: bool = False, broken: bool = False) -> list[Any]:
    """What the clients answer in the first round."""
    federation = build(scenario, deployed)
    if broken:
        federation.app.handlers["train.diff2"] = _breaks
    evaluator = federation.evaluator()
    strategy: Any = federation.strategy(evaluator)
    grid: Any = federation.adversarial(federation.engine(), strategy)
    try:
        arrays = Flat(federation.initial, federation.layout)
        return list(grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid), timeout=None))
    finally:
        grid.inner.close()
        evaluator.close()


def _breaks(node: Any, content: Any) -> Any:
    raise ValueError("secret 42")


def messages(scenario: Scenario, deployed: bool = False) -> list[torch.Tensor]:
    """The rows that the clients send in the first round."""
    layout = build(scenario).layout
    return [flatten(reply.content["arrays"], layout) for reply in replies(scenario, deployed)]


def moved(scenario: Scenario, rows: torch.Tensor, honest: torch.Tensor, present: list[int]) -> float:
    """How far the model moves if the first present row is another one, with the same noise."""
    federation = build(scenario)
    evaluator = federation.evaluator()
    strategy: Any = federation.strategy(evaluator)
    evaluator.close()
    found = []
    for first in (rows[0], honest):
        values = torch.cat([first[None], rows[1:]])
        counts = torch.ones(len(values), dtype=torch.float64)
        updates = Updates(values * -0.5, counts, present, torch.zeros(rows.shape[1]), layout=federation.layout)
        found.append(strategy.preview(updates, 1))
    return float((found[0].double() - found[1].double()).norm())


@pytest.mark.parametrize(("defense", "left"), [("fedavg", 1.0), ({"name": "norm_bound", "radius": 0.3}, 0.6)])
@pytest.mark.parametrize("present", [[0, 1, 2, 3], [0, 2]])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e6])
def test_a_malicious_client_cannot_raise_anothers_sensitivity(
    defense: Any, left: float, present: list[int], size: float
) -> None:
    """Central: whatever the other rows are, whoever is missing, an honest row moves the model by its own bound.

    Of a step of length lr · C1 = .5 ``norm_bound`` leaves .3.
    """
    scenario = private(**behind(defense))
    d, bound = 650, 2 * 1.0
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(len(present), d, generator=generator) * size
    one, other = torch.zeros(d), torch.zeros(d)
    one[0], other[0] = bound / 2, -bound / 2
    rows[0] = one
    lr, clients, grid = 0.5, 4, 0.02 / 1024
    expected = left * lr * bound / clients
    rounding = lr * grid * math.sqrt(d)
    shift = moved(scenario, rows, other, present)
    assert expected * (1 - 1e-5) - rounding <= shift <= expected * (1 + 1e-5) + rounding


class Told(NamedTuple):
    """What a client of one example made in a round under ``local``."""

    at: torch.Tensor
    row: torch.Tensor
    sd: float
    sent: torch.Tensor


def told_by_round(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], Told]:
    """(round, honest client) → the model that it was sent, its row before the noise, the noise's sd, its message."""
    from strategies import diff2

    drawn: list[tuple[torch.Tensor, float]] = []
    found: dict[tuple[int, int], Told] = {}
    measure = diff2.Diff2.measure

    def seen(values: torch.Tensor, sd: float, source: Any) -> torch.Tensor:
        drawn.append((values.double(), sd))
        return noised(values, sd, source)

    def told(self: Any, node: Any, content: Any) -> Any:
        answer = measure(self, node, content)
        layout = node.workload.layout
        sent = flatten(answer["arrays"], layout)[: layout.d].double()
        found[node.round, node.client] = Told(node.parameters[: layout.d].double().clone(), *drawn.pop(), sent)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(diff2, "noised", seen)
        patch.setattr(diff2.Diff2, "measure", told)
        assert not any(line["faults"] for line in simulate(scenario).lines)
    held = build(scenario).adversary.holds(range(scenario.data.clients))
    return {(number, client): each for (number, client), each in found.items() if not held[client]}


def test_under_local_a_message_is_the_clients_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client releases is a function of its data, the released models and its noise: nobody else enters.

    Each holds one example, so that its row is as long as the bound; the attacker's rows lead to other models, and
    what they do to another's row and noise is the released step's length alone.
    """
    c1, c2 = 0.3, 0.05
    world: dict[str, Any] = {
        "rounds": 3,
        "data": {"clients": 4, "partition": {"name": "iid", "examples": 1}},
        "server": {"estimator": {**DIFF2, "c1": c1, "c2": c2}},
        "privacy": {"noise": [0.2, 0.8], "trust": "local"},
        "engine": {"workers": 1},
    }
    attack = {"count": 1, "attacks": [{"name": "sign_flip", "scale": 20.0}], "knowledge": "omniscient"}
    calm = told_by_round(private(**world), monkeypatch)
    attacked = told_by_round(private(**world, adversary=attack), monkeypatch)
    honest = sorted({client for _, client in attacked})
    assert len(honest) == 3
    assert all(torch.equal(calm[1, client].sent, attacked[1, client].sent) for client in honest)
    steps = [float((each[2, honest[0]].at - each[1, honest[0]].at).norm()) for each in (calm, attacked)]
    assert steps[1] > 1.5 * steps[0]
    for found in (calm, attacked):
        for number in (1, 2, 3):
            rows = [found[number, client] for client in honest]
            at, before = rows[0].at, found[max(1, number - 1), honest[0]].at
            bound, sigma = (c1, 0.2) if number == 1 else (c2 * float((at - before).norm()), 0.8)
            for each in rows:
                assert torch.equal(each.at, at)
                assert float(each.row.norm()) == pytest.approx(bound, rel=1e-5)
                assert each.sd == pytest.approx(bound * sigma, rel=1e-5)
            noise = torch.cat([each.sent - each.row for each in rows])
            assert float(noise.std()) == pytest.approx(bound * sigma, rel=5 / math.sqrt(2 * len(noise)))


def test_a_client_keeps_the_words_of_its_error_and_its_diagnostics() -> None:
    for trust, kept in (("central", {"num-examples", "clipped", "nonfinite"}), ("local", {"num-examples"})):
        privacy = {"noise": NOISE, "trust": trust}
        for reply in replies(private(privacy=privacy)):
            assert set(reply.content["metrics"]) == kept
        told = replies(private(privacy=privacy), broken=True)
        assert {reply.error.reason for reply in told} == {"failed; its words stay on the client"}
    told = replies(private(privacy={"epsilon": "inf"}), broken=True)
    assert all("secret 42" in reply.error.reason for reply in told)


def test_noise_lies_on_a_grid_that_depends_on_no_value() -> None:
    values = torch.randn(1000, dtype=torch.float64) * 3
    for sd in (1e-6, 0.3, 7.0):
        grid = 2.0 ** (math.floor(math.log2(sd)) - 10)
        found = noised(values, sd, np.random.default_rng(0))
        assert torch.equal(found / grid, torch.round(found / grid))
        plain = values + torch.from_numpy(np.random.default_rng(0).standard_normal(1000)) * sd
        assert float((found - plain).abs().max()) <= grid / 2 * (1 + 1e-9)


def test_entropy_of_the_operating_system_is_normal_and_never_repeats() -> None:
    from scipy.stats import kstest

    first, second = from_entropy(20_000), from_entropy(20_000)
    assert not np.array_equal(first, second)
    assert kstest(first, "norm").pvalue > 1e-6
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 6 / math.sqrt(20_000)


def test_entropy_at_its_ends_is_finite_and_symmetric(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for byte in (b"\x00", b"\xff"):
        monkeypatch.setattr("os.urandom", lambda count, byte=byte: byte * count)
        ends.append(float(from_entropy(1)[0]))
    assert ends == [pytest.approx(-8.21, abs=0.01), -ends[0]]


def test_a_deployment_draws_no_noise_from_the_seed() -> None:
    privacy = {"noise": NOISE, "trust": "local"}
    seeded = [messages(private(privacy=privacy))[0] for _ in range(2)]
    assert torch.equal(*seeded)
    drawn = [messages(private(privacy=privacy), deployed=True)[0] for _ in range(2)]
    assert not torch.equal(*drawn)
    assert not torch.equal(drawn[0], seeded[0])


def test_the_command_prints_the_proof_and_refuses_with_status_2(tmp_path: Any) -> None:
    file = tmp_path / "private.toml"
    file.write_text(private().toml())
    call = CliRunner().invoke(app, ["privacy", str(file)])
    assert call.exit_code == 0
    for words in ("stage", "sensitivity", "noise multiplier", "releases", "ε by pld", "replace_one", "the server"):
        assert words in call.stdout
    assert "scenario's seed" in call.stdout
    refused = CliRunner().invoke(app, ["privacy", str(file), "--set", "privacy.epsilon=0.01"])
    assert refused.exit_code == 2
    assert str(file) in refused.output
    assert "privacy.noise" in refused.output
    nothing = CliRunner().invoke(app, ["privacy", "quickstart"])
    assert nothing.exit_code == 0
    assert nothing.stdout.startswith("NONE")


def test_only_flowers_simulation_is_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    from flwr.superlink.grid import InMemoryGrid

    from fedsim import flower
    from fedsim.grids.local import LocalGrid

    assert flower.simulates(object.__new__(InMemoryGrid))
    assert not flower.simulates(object.__new__(LocalGrid))
    monkeypatch.setitem(sys.modules, "ray", None)
    assert not flower.simulates()
    for running, actor, simulated in ((False, None, False), (True, None, False), (True, "1f", True)):
        where = SimpleNamespace(get_actor_id=lambda actor=actor: actor)  # None: Ray's driver, not its actor
        module = SimpleNamespace(
            is_initialized=lambda running=running: running, get_runtime_context=lambda where=where: where
        )
        monkeypatch.setitem(sys.modules, "ray", module)
        assert flower.simulates() is simulated


@pytest.mark.parametrize("part", [ONE, {**DIFF2, "restart": 1}])
def test_noise_that_nothing_reads_takes_no_guarantee_away(part: dict[str, Any]) -> None:
    found = guarantee(server={"estimator": part}, privacy={"noise": [FIRST, 0.0]})
    whole = guarantee(server={"estimator": part}, privacy={"noise": [FIRST, SECOND]})
    assert not found.none
    assert found.readers == whole.readers
    none = guarantee(server={"estimator": part}, privacy={"noise": [0.0, SECOND]})
    assert none.none
    assert "without noise tells all" in none.reasons[0]
    assert guarantee(privacy={"noise": [FIRST, 0.0]}).none


def test_local_steps_that_nobody_makes_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r"local_steps_count: given 3.*'gd' makes no local steps"):
        private(server={"estimator": {**DIFF2, "local_steps_count": 3}})
    free = {"epsilon": "inf"}
    private(server={"estimator": {**DIFF2, "local_steps_count": 3, "subroutine": "bvr_l_sgd"}}, privacy=free)


@pytest.mark.parametrize(("unit", "records"), [("example", 1438), ("client", 4)])
def test_a_delta_that_publishing_one_record_keeps_is_remarked(unit: str, records: int) -> None:
    def told(delta: float) -> tuple[list[str], list[str]]:
        scenario = private(privacy={"noise": NOISE, "unit": unit, "delta": delta}, rounds=1, server={"estimator": ONE})
        found = build(scenario).guarantee
        assert found is not None
        assert not found.none
        proven = [line for line in lines(scenario, found) if line.startswith("Remark")]
        return proven, [note for note in simulate(scenario).notes if note.startswith("Privacy")]

    proven, notes = told(1 / records)
    assert f"1/{records}" in proven[0]
    assert f"1/{records}" in notes[0]
    assert told(0.9 / records) == ([], [])


def test_what_clients_optimizers_keep_in_the_checkpoint_stands_in_the_proof() -> None:
    name = "checkpoint: what the clients' optimizers remember"
    central = {"server": {"defenses": ["dp_fedavg"]}, "privacy": {"noise": [1.0], "unit": "client"}}
    client = {"per_round": 4, "optimizer": {"name": "adam"}, "optimizer_state": "persist"}
    assert stages_of(**central, client=client)[name].sensitivity == "outside the guarantee"
    assert name not in stages_of(**central, client={**client, "optimizer_state": "reset"})
    own = {"per_round": 4, "optimizer": {"name": "dp_sgd", "momentum": 0.9}, "optimizer_state": "persist"}
    assert name not in stages_of(server={}, client=own, privacy={"noise": [1.0], "trust": "local"})


def test_what_observers_write_stands_in_the_proof() -> None:
    """One line for each, and for the files and the checkpoint that hold training images beside their findings."""
    observers = ["gradient_inversion", "membership_inference"]
    names = [
        "observer: gradient_inversion",
        "observer: membership_inference",
        "observations.json, observations.npz",
        "checkpoint: observations, observers' memory",
    ]
    scenario = Scenario.load("observe_diff2")
    assert [part.name for part in scenario.observe.observers] == observers
    found = build(scenario).guarantee
    assert found is not None
    told = [each for each in stages(scenario, found) if "observ" in each.stage]
    assert [each.stage for each in told] == names
    assert {each.sensitivity for each in told} == {"outside the guarantee: not to be published"}
    assert all(each.reads.startswith("the truth") for each in told)
    text = "\n".join(lines(scenario, found))
    assert all(name in text for name in names)
    assert not any("observ" in name for name in stages_of())


def test_a_matrix_is_proven_cell_by_cell_and_audited_by_none(tmp_path: Any) -> None:
    file = tmp_path / "matrix.toml"
    file.write_text(private(privacy={"epsilon": 3.0}).toml() + '\n[matrix]\n"privacy.epsilon" = [1.0, 8.0]\n')
    proof = CliRunner().invoke(app, ["privacy", str(file)])
    assert proof.exit_code == 0, proof.output
    spent = [float(line.split()[3]) for line in proof.stdout.splitlines() if line.startswith("the public")]
    assert spent == pytest.approx([1.0, 8.0], abs=2e-3)
    audited = CliRunner().invoke(app, ["audit", str(file), "--trials", "20"])
    assert audited.exit_code
    assert "matrix: given ['privacy.epsilon']" in audited.output


@pytest.mark.parametrize("trust", ["central", "distributed", "local"])
def test_where_clients_are_protected_their_example_counts_stay_with_them(trust: str) -> None:
    data = {"clients": 4, "partition": {"name": "quantity", "min_examples": 10}}

    def told(unit: str) -> list[Any]:
        found = replies(private(data=data, privacy={"noise": NOISE, "trust": trust, "unit": unit}))
        return [each.content["metrics"]["num-examples"] for each in found]

    assert told("client") == [1] * 4
    assert len(set(told("example"))) == 4
    stage = "example counts"
    assert stages_of(data=data, privacy={"noise": NOISE, "trust": trust, "unit": "client"})[stage].sensitivity == (
        "kept on the client"
    )
    assert stage not in stages_of(data=data, privacy={"noise": NOISE, "trust": trust})


@pytest.mark.parametrize(
    ("defenses", "claim", "hidden"),
    [
        (["dp_fedavg"], "derived", True),
        (["norm_bound", {"name": "dp_fedavg", "adaptive": True}], "derived", True),
        (["dp_fedavg"], "none", False),
        (["reclip"], "derived", False),
        (["median", "reclip"], "derived", False),
    ],
)
def test_example_counts_of_trained_updates_leave_where_they_may_weigh_alone(
    defenses: list[Any], claim: str, hidden: bool, tmp_path: Path
) -> None:
    """A client without examples is no exception: it says 1, and its loss of nothing is in no mean."""
    sizes = (0, 1, 20, 300)
    file = tmp_path / "shares.json"
    file.write_text(json.dumps([list(range(n, 2 * n)) for n in sizes]))
    tables: dict[str, Any] = {
        "data": {"clients": 4, "partition": {"name": "file", "path": str(file), "partial": True}},
        "client": {"per_round": 4, "optimizer": "sgd"},
        "server": {"defenses": defenses},
        "privacy": {"noise": [1.0], "unit": "client", "claim": claim},
    }
    told = [dict(each.content["metrics"]) for each in replies(private(**tables))]
    assert [each["num-examples"] for each in told] == ([1] * 4 if hidden else list(sizes))
    assert ["loss" in each for each in told] == [not hidden, True, True, True]
    kept = [each for name, each in stages_of(**tables).items() if name == "example counts"]
    expected = "kept on the client" if hidden else "to the trusted server and its folder alone"
    assert [each.sensitivity for each in kept] == ([] if claim == "none" else [expected])


def test_an_estimate_is_not_clipped_again() -> None:
    server = {"estimator": DIFF2, "defenses": ["median", "reclip"]}
    assert "not an estimate" in refusal(server=server, privacy={"noise": NOISE})


@pytest.mark.parametrize("part", [DIFF2, ONE])
def test_what_clients_tell_for_hessian_alignment_is_not_private(part: dict[str, Any]) -> None:
    client = {"per_round": 4, "regularizers": ["hessian_alignment"]}
    noise = NOISE if part is DIFF2 else NOISE[:1]
    said = refusal(server={"estimator": part}, client=client, privacy={"noise": noise})
    assert re.search(r"client\.regularizers\[0\]: given 'hessian_alignment'", said)
