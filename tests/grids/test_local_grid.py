"""LocalGrid under unmodified Flower: ServerApp, FedAvg, ClientApp, contexts, errors, timeouts."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedsim import registry
from fedsim.errors import FedsimError
from fedsim.flower import FIRST_NODE, Flat, SharedArray, error_reply, send
from fedsim.grids.local import LocalGrid
from fedsim.updates import Layout


def guest() -> ClientApp:
    """Moves each weight towards the partition's id, and counts its own rounds in its Context."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        if client == 3:
            raise ValueError("broken client")
        weights = message.content["arrays"].to_numpy_ndarrays(keep_input=False)
        rounds = int(context.state["memory"]["rounds"]) if "memory" in context.state else 0
        context.state["memory"] = MetricRecord({"rounds": rounds + 1})
        moved = [w + 0.5 * (client - w) for w in weights]
        metrics = MetricRecord({"num-examples": client + 1, "rounds": rounds + 1})
        return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "loss": float(context.run_config.get("loss", 0.0))})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def question(client: int, **config: float) -> Message:
    content = RecordDict({"arrays": ArrayRecord([np.zeros(2)]), "config": ConfigRecord(config)})
    return send(content, client + FIRST_NODE, "train")


class Chunked:
    """A ClientApp of our kind: squares numbers in chunks of two and remembers how often it was asked."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.threads: set[str] = set()
        self.bad_chunk = False

    def plan(self, messages: list[Message], contexts: list[Context]) -> list[list[int]]:
        return [list(range(start, min(start + 2, len(messages)))) for start in range(0, len(messages), 2)]

    def many(self, messages: list[Message], contexts: list[Context]) -> list[Message]:
        self.threads.add(threading.current_thread().name)
        replies = []
        for message, context in zip(messages, contexts, strict=True):
            client = int(context.node_config["partition-id"])
            count = int(context.state["seen"]["count"]) if "seen" in context.state else 0
            context.state["seen"] = MetricRecord({"count": count + 1})
            if client == 1:
                replies.append(error_reply(message, "no data"))
                continue
            vector = message.content["arrays"].vector + client
            generator = torch.Generator().manual_seed(client)
            vector = vector @ torch.randn(2, 2, generator=generator)
            content = RecordDict({"arrays": Flat(vector, self.layout), "metrics": MetricRecord({"num-examples": 1})})
            replies.append(Message(content, reply_to=message))
        if self.bad_chunk and len(messages) > 1:
            raise RuntimeError("the chunk as a whole")
        return replies


LAYOUT = Layout((("w", (2,)),))


def test_an_unmodified_server_app_with_fedavg_runs() -> None:
    results = {}
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(min_available_nodes=3, min_train_nodes=3, min_evaluate_nodes=3)
        results["result"] = strategy.start(grid, ArrayRecord([np.zeros(2)]), num_rounds=2)

    with LocalGrid(guest(), num_clients=3, run_config={"loss": 0.25}) as grid:
        app(grid, Context(1, 1, {}, RecordDict(), {}))
    # Clients 0, 1, 2 hold weights 1, 2, 3: mean target (0 + 2 + 6) / 6 = 4/3, half of the way each round.
    np.testing.assert_allclose(results["result"].arrays.to_numpy_ndarrays()[0], np.full(2, 4 / 3 * 0.75), atol=1e-12)
    assert results["result"].train_metrics_clientapp[2]["rounds"] == pytest.approx(2)
    assert results["result"].evaluate_metrics_clientapp[1]["loss"] == 0.25


def test_replies_come_in_the_order_of_the_messages_and_an_exception_is_an_error_reply() -> None:
    with LocalGrid(guest(), num_clients=6, guest_workers=3) as grid:
        replies = grid.send_and_receive([question(client) for client in (5, 3, 0, 4)])
    assert [reply.metadata.src_node_id - FIRST_NODE for reply in replies] == [5, 3, 0, 4]
    assert [reply.has_error() for reply in replies] == [False, True, False, False]
    assert replies[1].error.reason == "ValueError('broken client')"


def test_state_is_kept_over_rounds_by_partition_and_dropped_with_a_failure() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        rounds = int(context.state["memory"]["rounds"]) + 1 if "memory" in context.state else 1
        context.state["memory"] = MetricRecord({"rounds": rounds})
        if message.content["config"].get("fail"):
            raise SystemExit(3)
        return Message(RecordDict({"memory": MetricRecord({"rounds": rounds})}), reply_to=message)

    grid = LocalGrid(app, num_clients=1_000_000)
    assert grid.client_state == {}
    for fail in (0.0, 1.0, 0.0):
        replies = grid.send_and_receive([question(999_999, fail=fail)])
    assert replies[0].content["memory"]["rounds"] == 2
    assert list(grid.client_state) == [999_999]
    grid.client_state[7] = RecordDict({"memory": MetricRecord({"rounds": 40})})
    assert next(iter(grid.send_and_receive([question(7)]))).content["memory"]["rounds"] == 41
    grid.close()


def test_a_million_nodes_are_a_range() -> None:
    grid = LocalGrid(guest(), num_clients=1_000_000)
    nodes = grid.get_node_ids()
    assert len(nodes) == 1_000_000
    assert nodes[0] == FIRST_NODE
    assert isinstance(nodes, range)
    assert grid.partitions_in_order


def test_messages_to_nodes_that_do_not_exist_and_empty_exchanges() -> None:
    grid = LocalGrid(guest(), num_clients=2)
    replies = grid.send_and_receive([question(0), question(9)])
    assert [reply.has_error() for reply in replies] == [False, True]
    assert "no node 11" in replies[1].error.reason
    assert list(grid.send_and_receive([])) == []
    with pytest.raises(FedsimError, match="at least 1"):
        LocalGrid(guest(), num_clients=0)


def test_push_and_pull() -> None:
    grid = LocalGrid(guest(), num_clients=3)
    message = grid.create_message(question(2).content, "train", 2 + FIRST_NODE, "1")
    ids = list(grid.push_messages([message, question(3)]))
    pulled = list(grid.pull_messages(ids))
    assert [reply.metadata.reply_to_message_id for reply in pulled] == ids
    assert list(grid.pull_messages(ids)) == []


def test_a_shared_content_survives_guests_that_take_it_apart() -> None:
    vector = torch.tensor([1.0, 2.0])
    shared = RecordDict({"arrays": Flat(vector, LAYOUT), "config": ConfigRecord({"list": [1]})})
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        state = message.content["arrays"].to_torch_state_dict(keep_input=False)
        assert list(state) == ["w"]
        assert len(message.content["arrays"]) == 0
        state["w"] += 100
        message.content["config"]["list"].append(2)
        message.content["arrays"]["w"] = Array(state["w"].numpy())
        return Message(message.content, reply_to=message)

    grid = LocalGrid(app, num_clients=4)
    replies = grid.send_and_receive([send(shared, client + FIRST_NODE, "train") for client in range(4)])
    assert all(reply.content["arrays"]["w"].numpy().tolist() == [101.0, 102.0] for reply in replies)
    assert vector.tolist() == [1.0, 2.0]
    assert shared["config"]["list"] == [1]
    assert isinstance(shared["arrays"]["w"], SharedArray)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_chunks_give_the_same_bits_for_any_number_of_workers(workers: int) -> None:
    grids = [LocalGrid(Chunked(LAYOUT), num_clients=9, workers=count) for count in (1, workers)]
    content = RecordDict({"arrays": Flat(torch.tensor([0.5, -1.0]), LAYOUT)})
    rounds = []
    for grid in grids:
        for _ in range(2):
            replies = grid.send_and_receive([send(content, c + FIRST_NODE, "train") for c in (8, 1, 0, 5, 2)])
        rounds.append([None if r.has_error() else r.content["arrays"].vector.tolist() for r in replies])
        assert replies[1].error.reason == "no data"
        assert {p: int(s["seen"]["count"]) for p, s in grid.client_state.items()} == {8: 2, 0: 2, 5: 2, 2: 2}
    assert rounds[0] == rounds[1]


def test_a_chunk_that_fails_as_a_whole_is_run_client_by_client_from_the_old_states() -> None:
    app = Chunked(LAYOUT)
    app.bad_chunk = True
    grid = LocalGrid(app, num_clients=4)
    content = RecordDict({"arrays": Flat(torch.zeros(2), LAYOUT)})
    replies = grid.send_and_receive([send(content, c + FIRST_NODE, "train") for c in range(4)])
    assert [reply.has_error() for reply in replies] == [False, True, False, False]
    assert {int(state["seen"]["count"]) for state in grid.client_state.values()} == {1}


def test_a_reply_that_does_not_come_in_time_is_left_out_and_the_next_round_goes_on() -> None:
    app = ClientApp()
    release = threading.Event()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        context.state["memory"] = MetricRecord({"asked": 1})
        if message.content["config"].get("hang"):
            release.wait()
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(app, num_clients=3)
    replies = grid.send_and_receive([question(0), question(1, hang=1.0), question(2)], timeout=0.2)
    assert [reply.metadata.src_node_id - FIRST_NODE for reply in replies] == [0]
    assert list(grid.client_state) == [0]
    replies = grid.send_and_receive([question(1), question(2)], timeout=30)
    assert len(replies) == 2
    release.set()
    grid.close()


def test_bad_returns_of_guests_are_error_replies() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return None  # type: ignore[return-value]

    replies = LocalGrid(app, num_clients=1).send_and_receive([question(0)])
    assert "NoneType instead of a Message" in replies[0].error.reason


def test_guests_that_draw_from_global_states_repeat_with_a_seed_and_leave_no_trace() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        numbers = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return Message(RecordDict({"drawn": MetricRecord({"numbers": numbers})}), reply_to=message)

    def drawn(order: list[int], seed: int) -> dict[int, list[float]]:
        grid = LocalGrid(app, num_clients=4, seed=seed)
        replies = grid.send_and_receive([question(client) for client in order])
        return {r.metadata.src_node_id: r.content["drawn"]["numbers"] for r in replies}

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    first = drawn([0, 1, 2], seed=5)
    assert [random.random(), float(np.random.rand()), float(torch.rand(()))] == expected
    assert first == drawn([2, 0, 1], seed=5)
    assert first != drawn([0, 1, 2], seed=6)
    assert len({tuple(numbers) for numbers in first.values()}) == 3


def test_the_engine_part_makes_the_grid() -> None:
    with registry.make("engine", "local", workers=3).grid(Chunked(LAYOUT), 5, {"a": 1}) as grid:
        assert grid.workers == 3
        assert grid.num_clients == 5
        assert grid.run_config == {"a": 1}
