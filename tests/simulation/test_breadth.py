"""Small whole runs of everything that a scenario can ask for: each ends, is finite, repeats, and does what it says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import registry
from fedsim.errors import ScenarioError
from fedsim.federation import build
from fedsim.scenario import Scenario
from fedsim.simulation import Result, simulate
from tests.simulation.test_runs import small

ROUNDS = 2


def quick(**changes: Any) -> Scenario:
    """Two rounds of ten clients, all of them asked, without an adversary."""
    plain = {"adversary": {}, "server": {}, "evaluate": {}, "data.clients": 10, "client.per_round": 10}
    return small(**{"rounds": ROUNDS, **plain, **changes})


def played(scenario: Scenario, **options: Any) -> Result:
    result = simulate(scenario, **options)
    assert result.finished
    assert len(result.lines) == scenario.rounds + 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.parameters.values())
    return result


def moved(result: Result, other: Result) -> bool:
    return any(not torch.equal(tensor, other.parameters[name]) for name, tensor in result.parameters.items())


PARTITIONS: list[Any] = [
    "iid",
    {"name": "iid", "examples": 40},
    {"name": "dirichlet", "alpha": 0.1, "min_examples": 0},
    {"name": "shards", "shards": 2},
    {"name": "quantity", "law": "power", "exponent": 2.0},
    {"name": "quantity", "law": "dirichlet", "alpha": 0.1, "min_examples": 0},
    {"name": "similarity", "gamma": 0.3},
    {"name": "labels_per_client", "labels": 3},
    {"name": "label_bias", "bias": 0.7},
    {"name": "balanced_dirichlet", "alpha": 0.5},
    {"name": "feature_shift", "shift": "rotation"},
    {"name": "feature_shift", "shift": "noise"},
    {"name": "feature_shift", "shift": "colour"},
    {"name": "natural", "column": "target"},
    "flwr:IidPartitioner",
    {"name": "flwr:DirichletPartitioner", "partition_by": "label", "alpha": 0.5},
    {"name": "flwr:PathologicalPartitioner", "partition_by": "label", "num_classes_per_partition": 2},
    {"name": "flwr:ShardPartitioner", "partition_by": "label", "num_shards_per_partition": 2},
    "flwr:LinearPartitioner",
    "flwr:SquarePartitioner",
]


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
def test_every_partition_runs(partition: Any) -> None:
    scenario = quick(**{"data.partition": partition})
    result = played(scenario)
    sizes = build(scenario).shares.sizes
    for row in result.client_lines:
        assert row["num_examples"] == sizes[row["client"]]
    assert result.lines[-1]["loss"] < result.lines[0]["loss"]
    assert played(scenario).digest == result.digest


def test_every_partition_of_fedsim_is_tried_here(tmp_path: Path) -> None:
    tried = {part if isinstance(part, str) else part["name"] for part in PARTITIONS} | {"file"}
    own = {name for name in registry.names("partition") if not name.startswith("flwr:")}
    assert own <= tried
    file = tmp_path / "shares.json"
    pieces = [list(range(start, 1000, 10)) for start in range(9)]
    file.write_text(json.dumps([*pieces, []]))
    partition = {"name": "file", "path": str(file), "partial": True}
    result = played(quick(**{"data.partition": partition}))
    counts = {row["client"]: row["num_examples"] for row in result.client_lines}
    assert counts == {**dict.fromkeys(range(9), 100), 9: 0}


SAMPLERS: list[tuple[Any, set[int]]] = [
    ("uniform", {4}),
    ("by_size", {4}),
    ({"name": "fixed", "clients": [7, 1, 3, 5]}, {4}),
    ({"name": "poisson", "rate": 0.3}, set(range(11))),
]


@pytest.mark.parametrize(("sampler", "sizes"), SAMPLERS, ids=str)
def test_every_sampler_runs(sampler: Any, sizes: set[int]) -> None:
    asked = {} if "rate" in sampler else {"client.per_round": 4}
    result = played(quick(rounds=8, server={"sampler": sampler}, **asked))
    cohorts = [line["cohort"] for line in result.lines[1:]]
    assert {len(cohort) for cohort in cohorts} <= sizes
    assert all(cohort == sorted(set(cohort)) for cohort in cohorts)
    if sampler == {"name": "fixed", "clients": [7, 1, 3, 5]}:
        assert all(cohort == [1, 3, 5, 7] for cohort in cohorts)
    else:
        assert len({tuple(cohort) for cohort in cohorts}) > 1


def test_every_sampler_is_tried_here() -> None:
    assert set(registry.names("sampler")) == {part if isinstance(part, str) else part["name"] for part, _ in SAMPLERS}


def test_a_rule_is_held_against_the_clients_that_the_sampler_names() -> None:
    sampler = {"name": "fixed", "clients": [0, 1, 2, 3, 4, 5]}
    rule = {"name": "bulyan", "malicious": 1}
    with pytest.raises(ScenarioError, match="n = 6"):
        quick(server={"sampler": sampler, "defenses": [rule]})
    played(quick(server={"sampler": {**sampler, "clients": list(range(7))}, "defenses": [rule]}))


def test_rounds_without_anyone_change_nothing() -> None:
    """A Poisson cohort may be empty; the round is recorded, the model stays."""
    result = played(quick(rounds=12, server={"sampler": {"name": "poisson", "rate": 0.05}}))
    empty = [line for line in result.lines[1:] if not line["cohort"]]
    assert empty
    for line in empty:
        assert line["loss"] == result.lines[line["round"] - 1]["loss"]
        assert line["kept"] == []


def test_drop_outs_are_named_and_stragglers_count_in_full() -> None:
    result = played(quick(rounds=4, **{"client.dropout": 0.3, "client.straggler": 0.5}))
    dropped = [fault for line in result.lines for fault in line["faults"]]
    assert {fault["reason"] for fault in dropped} == {"dropped out"}
    assert 4 <= len(dropped) <= 22
    for line in result.lines[1:]:
        absent = {fault["client"] for fault in line["faults"]}
        assert set(line["kept"]) == set(line["cohort"]) - absent
    assert moved(result, played(quick(rounds=4, **{"client.dropout": 0.3})))


def test_held_out_shares_are_evaluated() -> None:
    scenario = quick(evaluate={"clients": 10}, **{"data.holdout": 0.3, "data.partition": "iid"})
    result = played(scenario)
    sizes = build(scenario).shares.sizes
    for row in result.client_lines:
        assert row["num_examples"] == sizes[row["client"]] - math.floor(0.3 * sizes[row["client"]] + 1e-9)
    assert all(0 <= line["worst10"] <= 1 for line in result.lines[1:])


def test_a_warm_start_is_where_the_run_begins(tmp_path: Path) -> None:
    first = played(quick(), out=tmp_path / "run")
    again = played(quick(**{"model.init": str(tmp_path / "run" / f"checkpoint-{ROUNDS}.safetensors")}))
    assert again.lines[0]["loss"] == first.lines[-1]["loss"]
    assert again.lines[0]["accuracy"] == first.lines[-1]["accuracy"]


@pytest.mark.parametrize("augmentation", [["flip"], [{"name": "crop", "pad": 1}], ["flip", {"name": "crop", "pad": 1}]])
def test_augmentation_acts_and_repeats(augmentation: list[Any]) -> None:
    plain = played(quick())
    scenario = quick(**{"client.augmentation": augmentation})
    result = played(scenario)
    assert moved(result, plain)
    assert played(scenario).digest == result.digest


def test_root_data_is_the_servers_alone() -> None:
    scenario = quick(**{"data.root": 100})
    federation = build(scenario)
    assert federation.root is not None
    assert len(federation.root) == 100
    assert federation.shares.sizes.sum() == len(federation.dataset.train)
    mine = {row.numpy().tobytes() for row in federation.root.inputs}
    theirs = {row.numpy().tobytes() for row in federation.dataset.train.inputs}
    whole = build(quick()).dataset.train
    assert len(federation.dataset.train) == len(whole) - 100
    assert len(mine & theirs) <= len(whole) - len({row.numpy().tobytes() for row in whole.inputs})
    played(scenario)


@pytest.mark.parametrize("steps", [{"steps": 3}, {"epochs": 2}, {"steps": 3, "batch_size": 1}, {"batch_size": 10_000}])
def test_epochs_steps_and_batches(steps: dict[str, Any]) -> None:
    client = {"per_round": 10, "optimizer": {"name": "sgd", "lr": 0.1}, "proximal": 0.1, "clip_norm": 1.0, **steps}
    played(quick(client=client))


@pytest.mark.parametrize("optimizer", sorted(registry.names("optimizer")))
def test_every_optimizer_runs(optimizer: str) -> None:
    part = {"name": optimizer, "lr": 0.01} if optimizer == "sgd" else {"name": optimizer}
    needed = {"privacy": {"noise": [1.0], "trust": "local"}} if optimizer == "dp_sgd" else {}
    task = {"client.loss": "with_reconstruction"} if optimizer == "sam_gs" else {}
    if optimizer.startswith("even_"):
        numbers = {"name": "planted", "exponent": 4, "dimensions": 6, "examples": 200, "test": 40}
        task = {"data.dataset": numbers, "data.partition": {"name": "iid"}, "client.loss": "correlation"}
        task |= {"model": {"name": "single_index", "exponent": 4}}
    start = played(quick(rounds=1, **task))
    assert moved(played(quick(**{"client.optimizer": part, **needed, **task})), start)


@pytest.mark.parametrize("schedule", sorted(registry.names("lr_schedule")))
def test_every_rate_schedule_runs(schedule: str) -> None:
    needed: dict[str, Any] = {"exponential": {"gamma": 0.5}, "step": {"every": 1}, "warmup": {"warmup": 3}}
    result = played(quick(**{"client.lr_schedule": {"name": schedule, **needed.get(schedule, {})}}))
    assert moved(result, played(quick())) == (schedule != "constant")


@pytest.mark.parametrize("optimizer", sorted(registry.names("server_optimizer")))
def test_every_server_optimizer_runs(optimizer: str) -> None:
    rate = {"sgd": 0.5}.get(optimizer, 0.01)
    result = played(quick(server={"optimizer": {"name": optimizer, "lr": rate}}))
    assert moved(result, played(quick()))


@pytest.mark.parametrize("sizes", [[0, 0, 1, 1, 2, 31, 32, 33, 65, 100], [1] * 10, [1] + [0] * 9], ids=str)
@pytest.mark.parametrize("path", ["auto", "stacked", "vmap", "reference"])
def test_clients_of_any_size(sizes: list[int], path: str, tmp_path: Path) -> None:
    """Nothing, one example, a full batch, one more than that: all count by what they hold."""
    bounds = np.cumsum([0, *sizes])
    file = tmp_path / "shares.json"
    file.write_text(json.dumps([list(range(bounds[i], bounds[i + 1])) for i in range(10)]))
    partition = {"name": "file", "path": str(file), "partial": True}
    result = played(quick(**{"data.partition": partition, "engine.path": path}))
    for row in result.client_lines:
        assert row["num_examples"] == sizes[row["client"]]
        assert row["weight"] == pytest.approx(sizes[row["client"]] / sum(sizes))
        assert (row["norm"] > 0) == (sizes[row["client"]] > 0)
    assert result.lines[1]["faults"] == []


@pytest.mark.parametrize(
    "rule", ["median", "multi_metrics", {"name": "krum", "malicious": 1}, "flwr:FedMedian"], ids=str
)
def test_idle_clients_behind_a_defense_have_no_voice(rule: Any, tmp_path: Path) -> None:
    file = tmp_path / "shares.json"
    file.write_text(json.dumps([list(range(i * 50, i * 50 + 50)) if i < 6 else [] for i in range(10)]))
    partition = {"name": "file", "path": str(file), "partial": True}
    result = played(quick(server={"defenses": [rule]}, **{"data.partition": partition}))
    idle = [row for row in result.client_lines if row["num_examples"] == 0]
    assert len(idle) == 4 * ROUNDS
    if rule != "flwr:FedMedian":
        assert all(row["weight"] == 0 for row in idle)
        six = {"data.partition": partition, "client.per_round": 6}
        sampler = {"name": "fixed", "clients": list(range(6))}
        alone = played(quick(server={"defenses": [rule], "sampler": sampler}, **six))
        for name, tensor in result.parameters.items():
            torch.testing.assert_close(tensor, alone.parameters[name])


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("path", ["stacked", "vmap", "reference"])
def test_every_precision_on_every_path(precision: str, path: str) -> None:
    scenario = quick(**{"engine.precision": precision, "engine.path": path})
    result = played(scenario)
    kinds = {tensor.dtype for tensor in result.parameters.values()}
    assert kinds == {torch.float64 if precision == "float64" else torch.float32}
    assert played(scenario.changed(**{"engine.workers": 3})).digest == result.digest
    assert result.lines[-1]["loss"] == pytest.approx(played(quick()).lines[-1]["loss"], rel=0.05)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hundred noisy pictures of 16 × 16 pixels in four classes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 400)
    centers = generator.normal(0.5, 0.3, (4, 3, 16, 16))
    images = np.clip(centers[labels] + generator.normal(0, 0.1, (400, 3, 16, 16)), 0, 1).astype(np.float32)
    file = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    parts = {"x_train": images[:300], "y_train": labels[:300], "x_test": images[300:], "y_test": labels[300:]}
    np.savez(file, **parts)
    return file


BATCH_NORM: Any = {"name": "resnet18", "norm": "batch"}


@pytest.mark.parametrize(
    ("model", "defense"),
    [
        *[(model, defense) for model in ("lenet", "cnn") for defense in ("fedavg", "multi_metrics", "flwr:FedAvg")],
        *[pytest.param(BATCH_NORM, each, marks=pytest.mark.slow) for each in ("fedavg", "median", "flwr:FedAvg")],
        pytest.param("resnet18", "multi_metrics", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_convolutions_and_buffers_run_defended(model: Any, defense: str, pictures: Path) -> None:
    adversary = {"count": 1, "attacks": ["sign_flip"]}
    data = {"dataset": {"name": "npz", "path": str(pictures)}, "clients": 5}
    client = {"per_round": 5, "steps": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.01}}
    server = {"defenses": [defense]}
    scenario = small(
        rounds=1, data=data, model=model, client=client, server=server, adversary=adversary, evaluate={"batch_size": 50}
    )
    result = played(scenario)
    buffers = [name for name in result.parameters if "running" in name]
    assert bool(buffers) == (model == BATCH_NORM)
    if buffers:
        assert moved(result, played(scenario.changed(seed=1)))
        assert played(scenario.changed(**{"engine.workers": 3})).digest == result.digest


def small_net() -> torch.nn.Module:
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12 * 12, 4))


def test_a_dropped_client_moves_no_buffer(pictures: Path) -> None:
    """Behind the filter the buffers are the mean of the kept clients' alone, whatever the others send."""
    data = {"dataset": {"name": "npz", "path": str(pictures)}, "clients": 6}
    client = {"per_round": 6, "steps": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.01}}
    scenario = small(
        rounds=1,
        data=data,
        model={"name": f"{__file__}:small_net"},
        client=client,
        adversary={},
        server={"defenses": [{"name": "multi_metrics", "keep": 0.5}]},
        evaluate={},
    )
    from flwr.app import Array, ArrayRecord, Message, MetricRecord

    from fedsim.grids.local import LocalGrid
    from tests.simulation.test_hostile import Mischief, sealed

    with LocalGrid(build(scenario).app, 6) as inner:
        first = simulate(scenario, grid=inner)
        out = sorted(set(range(6)) - set(first.lines[1]["kept"]))
        assert len(out) == 3

        def inflate(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
            for name in arrays:
                if "running" in name:
                    arrays[name] = Array(arrays[name].numpy() + 1e6)
            return [sealed(reply, arrays, metrics)]

        second = simulate(scenario, grid=Mischief(inner, dict.fromkeys(out, inflate)))
        third = simulate(scenario, grid=Mischief(inner, {first.lines[1]["kept"][0]: inflate}))
    assert second.lines[1]["kept"] == first.lines[1]["kept"]
    assert not moved(first, second)
    assert moved(first, third)


@pytest.mark.parametrize(
    "attack",
    [
        ["sign_flip"],
        [{"name": "min_max"}],
        [{"name": "alie"}],
        ["ipm"],
        [{"name": "badnets", "target": 0}, "model_replacement"],
        [{"name": "dba", "target": 0}],
    ],
    ids=str,
)
def test_adversaries_with_every_knowledge_run(attack: list[Any]) -> None:
    for knowledge in ("colluding", "omniscient"):
        if attack == ["ipm"] and knowledge == "colluding":
            continue
        table = {"count": 3, "knowledge": knowledge, "attacks": attack}
        server = {"defenses": [{"name": "multi_metrics", "keep": 0.5}]}
        result = played(quick(adversary=table, server=server))
        assert all(line["malicious"] and line["attack_acted"] for line in result.lines[1:])
