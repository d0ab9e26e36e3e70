"""Stock Flower strategies behind fedsim: options, cohorts, checked replies, resume bit for bit, global states."""

from __future__ import annotations

import math
import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as stock

from fedsim import registry
from fedsim.errors import FedsimError, ScenarioError
from fedsim.flower import Flat
from fedsim.grids.local import LocalGrid
from fedsim.updates import Layout

LAYOUT = Layout((("w", (3,)), ("b", (2, 2))), (("count", (), "int64"),))
SIZE = LAYOUT.d + LAYOUT.b
ROUNDS = 4


def app(hostile: dict[int, Any] | None = None) -> ClientApp:
    """Pulls the weights towards numbers that depend on client and round; hostile clients send what they are told to."""
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        round = int(message.content["config"]["server-round"])
        arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
        generator = np.random.Generator(np.random.PCG64([client, round]))
        moved = {
            name: torch.from_numpy(np.asarray(0.8 * a + 0.2 * generator.standard_normal(a.shape), dtype=np.float32))
            for name, a in arrays.items()
        }
        metrics: dict[str, Any] = {"num-examples": 10 + client, "loss": 1.0 + client / 7}
        if hostile and client in hostile:
            hostile[client](moved, metrics)
        return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": MetricRecord(metrics)}), reply_to=message)

    return made


def guest(name: str, **options: Any) -> Any:
    made = registry.make("defense", f"flwr:{name}", **options)
    made.set_up(LAYOUT, num_clients=12, per_round=7, seed=3, limit=1e6)
    return made


def run(made: Any, grid: LocalGrid, vector: torch.Tensor, rounds: range) -> torch.Tensor:
    for round in rounds:
        messages = made.configure_train(round, Flat(vector, LAYOUT), ConfigRecord(), grid)
        arrays, _ = made.aggregate_train(round, grid.send_and_receive(messages))
        assert made.failure is None, made.failure
        vector = arrays.vector
    return vector


USABLE: list[tuple[str, dict[str, Any]]] = [
    ("FedAvg", {}),
    ("FedAvgM", {"server_momentum": 0.9, "server_learning_rate": 0.5}),
    ("FedAdam", {"eta": 0.05}),
    ("FedAdagrad", {}),
    ("FedYogi", {}),
    ("FedProx", {"proximal_mu": 0.1}),
    ("FedMedian", {}),
    ("FedTrimmedAvg", {"beta": 0.3}),
    ("Krum", {"num_malicious_nodes": 1}),
    ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 3}),
    ("Bulyan", {"num_malicious_nodes": 1}),
    ("QFedAvg", {"client_learning_rate": 0.1}),
    (
        "DifferentialPrivacyServerSideFixedClipping",
        {"noise_multiplier": 0.1, "clipping_norm": 1.0, "strategy": "FedAdam"},
    ),
    ("DifferentialPrivacyServerSideAdaptiveClipping", {"noise_multiplier": 0.1}),
]


def test_every_usable_strategy_of_flower_is_tried_here() -> None:
    refused = set()
    for name in set(stock.__all__) - {"Result", "Strategy"} - {name for name, _ in USABLE}:
        with pytest.raises(FedsimError, match=r"mods|trees"):
            registry.get("defense", f"flwr:{name}")
        refused.add(name)
    assert len(refused) == 4


@pytest.mark.parametrize(("name", "options"), USABLE, ids=[name for name, _ in USABLE])
def test_a_resumed_strategy_gives_the_bits_of_an_uninterrupted_one(name: str, options: dict[str, Any]) -> None:
    start = torch.linspace(-1, 1, SIZE)
    with LocalGrid(app(), 12) as grid:
        whole = run(guest(name, **options), grid, start, range(1, ROUNDS + 1))
        first = guest(name, **options)
        half = run(first, grid, start, range(1, 3))
        state = first.state_dict()
        random.seed(99)
        second = guest(name, **options)
        second.load_state_dict(state)
        resumed = run(second, grid, half, range(3, ROUNDS + 1))
    assert torch.equal(whole, resumed)
    assert not torch.equal(whole, start)
    assert whole.dtype == torch.float32


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(each) for key, each in value.items())
    return isinstance(value, torch.Tensor | int | float | str)


def test_the_state_is_tensors_numbers_strings_and_dicts() -> None:
    with LocalGrid(app(), 12) as grid:
        for name, options in USABLE:
            made = guest(name, **options)
            run(made, grid, torch.zeros(SIZE), range(1, 2))
            assert plain(made.state_dict()), name


def test_fedavg_gives_the_weighted_mean_and_the_deltas() -> None:
    made = guest("FedAvg", fraction_train=1.0)
    start = torch.zeros(SIZE)
    with LocalGrid(app(), 12) as grid:
        result = run(made, grid, start, range(1, 2))
    weights = made.updates.num_examples / made.updates.num_examples.sum()
    assert made.cohort == made.updates.client_ids == list(range(12))
    torch.testing.assert_close(made.updates.num_examples, torch.arange(10, 22, dtype=torch.float64))
    torch.testing.assert_close(result[: LAYOUT.d].double(), weights @ made.updates.values.double())


def test_the_cohort_is_the_scenarios_and_seeded() -> None:
    cohorts = []
    with LocalGrid(app(), 12) as grid:
        for seed in (3, 3, 4):
            made = registry.make("defense", "flwr:FedAvg")
            made.set_up(LAYOUT, num_clients=12, per_round=7, seed=seed)
            random.seed(len(cohorts))
            drawn = []
            for round in (1, 2, 3):
                messages = made.configure_train(round, Flat(torch.zeros(SIZE), LAYOUT), ConfigRecord(), grid)
                drawn.append(made.cohort)
                assert len(messages) == 7
                assert {message.metadata.group_id for message in messages} == {str(round)}
                assert len({message.metadata.message_id for message in messages}) == 7
            cohorts.append(drawn)
    assert cohorts[0] == cohorts[1] != cohorts[2]
    assert cohorts[0][0] != cohorts[0][1]


def test_messages_share_the_arrays_but_not_their_content() -> None:
    made = guest("FedAvg")
    with LocalGrid(app(), 12) as grid:
        messages = made.configure_train(1, Flat(torch.zeros(SIZE), LAYOUT), ConfigRecord(), grid)
    messages[0].content["adversary"] = ConfigRecord({"rank": 0})
    assert "adversary" not in messages[1].content
    assert messages[0].content["arrays"] is messages[1].content["arrays"]


def set_value(name: str, value: Any) -> Any:
    return lambda arrays, metrics: arrays.__setitem__(name, value)


def set_metric(name: str, value: Any) -> Any:
    return lambda arrays, metrics: metrics.__setitem__(name, value)


HOSTILE: dict[int, tuple[Any, str]] = {
    0: (set_value("w", torch.tensor([1.0, math.nan, 0.0])), "not finite"),
    1: (set_value("w", torch.tensor([1.0, math.inf, 0.0])), "not finite"),
    2: (set_value("w", torch.full((3,), 1e30)), "beyond the limit 1e\\+06"),
    3: (set_value("w", torch.zeros(4)), r"shape \(4,\) instead of \(3,\)"),
    4: (lambda arrays, metrics: arrays.pop("b"), "'b' is missing"),
    5: (set_value("extra", torch.zeros(1)), "unknown array 'extra'"),
    6: (set_metric("num-examples", -5), "negative"),
    7: (set_metric("num-examples", math.nan), "instead of a whole number"),
    8: (set_metric("loss", math.inf), "'loss' is not finite"),
    9: (lambda arrays, metrics: 1 / 0, "ZeroDivisionError"),
    10: (set_metric("surprise", 1), "differ from those of most clients"),
}


@pytest.mark.parametrize("name", ["FedAvg", "FedMedian", "MultiKrum", "FedAdam"])
def test_a_hostile_reply_is_named_and_never_reaches_the_strategy(name: str) -> None:
    made = registry.make("defense", f"flwr:{name}")
    made.set_up(LAYOUT, num_clients=16, per_round=16, limit=1e6)
    with LocalGrid(app({client: change for client, (change, _) in HOSTILE.items()}), 16) as grid:
        replies = grid.send_and_receive(made.configure_train(1, Flat(torch.zeros(SIZE), LAYOUT), ConfigRecord(), grid))
        silent = [reply for reply in replies if reply.metadata.src_node_id != 15 + 2]
        arrays, _ = made.aggregate_train(1, silent)
        honest = registry.make("defense", f"flwr:{name}")
        honest.set_up(LAYOUT, num_clients=16, per_round=16, limit=1e6)
        honest.configure_train(1, Flat(torch.zeros(SIZE), LAYOUT), ConfigRecord(), grid)
        alone = [reply for reply in replies if reply.metadata.src_node_id - 2 in (11, 12, 13, 14)]
        expected, _ = honest.aggregate_train(1, alone)
    assert made.faults.pop(15) == "no reply"
    assert sorted(made.faults) == sorted(HOSTILE)
    for client, reason in made.faults.items():
        assert re.search(HOSTILE[client][1], reason), (client, reason)
    assert made.updates.client_ids == [11, 12, 13, 14]
    assert torch.equal(arrays.vector, expected.vector)


def test_nothing_valid_gives_no_arrays_and_says_so() -> None:
    made = guest("FedAvg")
    with LocalGrid(app({client: set_metric("num-examples", -1) for client in range(12)}), 12) as grid:
        replies = grid.send_and_receive(made.configure_train(1, Flat(torch.zeros(SIZE), LAYOUT), ConfigRecord(), grid))
        assert made.aggregate_train(1, replies) == (None, None)
    assert made.failure == "no valid reply"
    assert made.updates is None


def test_clients_without_examples_do_not_vote() -> None:
    made = guest("FedMedian", fraction_train=1.0)
    idle = {client: set_metric("num-examples", 0) for client in range(6)}
    with LocalGrid(app(idle), 12) as grid:
        result = run(made, grid, torch.zeros(SIZE), range(1, 2))
    expected = np.median(made.updates.values[6:].numpy(), axis=0)
    np.testing.assert_array_equal(result[: LAYOUT.d].numpy(), expected)


def test_global_random_states_are_restored() -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = (random.random(), float(np.random.rand()), float(torch.rand(())))
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    with LocalGrid(app(), 12) as grid:
        options = {"noise_multiplier": 0.1, "clipping_norm": 1.0}
        run(guest("DifferentialPrivacyServerSideFixedClipping", **options), grid, torch.zeros(SIZE), range(1, 2))
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected


def test_options_are_the_strategys_own_and_checked() -> None:
    options = {option.name: option for option in registry.options(registry.get("defense", "flwr:FedTrimmedAvg"))}
    assert options["beta"].default == 0.2
    assert "Fraction to cut off" in options["beta"].meaning
    assert "train_metrics_aggr_fn" not in options
    with pytest.raises(ScenarioError, match="did you mean 'beta'"):
        registry.make("defense", "flwr:FedTrimmedAvg", betta=0.1)
    with pytest.raises(FedsimError, match=r"must be in the range \[0, 0.5\)"):
        registry.make("defense", "flwr:FedTrimmedAvg", beta=0.9)
    with pytest.raises(FedsimError, match="did you mean 'FedMedian'"):
        registry.get("defense", "flwr:FedMedain")
    with pytest.raises(ScenarioError, match="client_learning_rate"):
        registry.make("defense", "flwr:QFedAvg")


def test_it_is_a_flower_strategy_that_runs_by_flowers_own_loop() -> None:
    strategy = registry.make("defense", "flwr:FedAvg")
    with LocalGrid(app(), 5) as grid:
        initial = ArrayRecord({name: view.clone() for name, view in LAYOUT.views(torch.zeros(SIZE)).items()})
        result = strategy.start(grid, initial, num_rounds=2)
    assert sorted(result.arrays) == ["b", "count", "w"]
    assert strategy.cohort == [0, 1, 2, 3, 4]
