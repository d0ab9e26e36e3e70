"""Whole runs among hostile and broken clients: the run goes on, the model never sees them, the record names them."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedsim import flower
from fedsim.federation import build, named_arrays
from fedsim.flower import FIRST_NODE
from fedsim.grids.local import LocalGrid
from fedsim.scenario import Scenario
from fedsim.simulation import Result, simulate
from tests.simulation.test_runs import small

CLIENTS = 22
ROUNDS = 3
Trick = Callable[[Message, ArrayRecord, MetricRecord], list[Message]]


def values(change: Callable[[torch.Tensor], torch.Tensor]) -> Trick:
    """Changes the last array, whose values stand last in the model's vector."""

    def trick(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
        name = list(arrays)[-1]
        arrays[name] = Array(change(torch.from_numpy(arrays[name].numpy().copy())).numpy())
        return [sealed(reply, arrays, metrics)]

    return trick


def one(value: float) -> Trick:
    def change(array: torch.Tensor) -> torch.Tensor:
        array.view(-1)[-1] = value
        return array

    return values(change)


def count(value: Any) -> Trick:
    def trick(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
        metrics["num-examples"] = value
        return [sealed(reply, arrays, metrics)]

    return trick


def no_count(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
    return [sealed(reply, arrays, MetricRecord({"loss": 1.0}))]


def missing(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
    del arrays[next(iter(arrays))]
    return [sealed(reply, arrays, metrics)]


def surplus(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
    arrays["surprise"] = Array(torch.zeros(2).numpy())
    return [sealed(reply, arrays, metrics)]


def bytes_that_are_no_array(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
    name = next(iter(arrays))
    arrays[name] = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=b"not numbers")
    return [sealed(reply, arrays, metrics)]


def empty(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
    return [flower.with_content(reply, RecordDict())]


def error(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
    return [Message(metadata=reply.metadata, error=flower.error_reply(reply, "the disk\nis full").error)]


def silent(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
    return []


HOSTILE: dict[int, tuple[Trick, str]] = {
    0: (one(math.nan), "not finite"),
    2: (one(math.inf), "not finite"),
    3: (one(-math.inf), "not finite"),
    4: (one(1e30), r"beyond the limit 1e\+08"),
    5: (values(lambda array: torch.zeros(array.numel() + 1)), "has shape .* instead of"),
    7: (missing, "is missing"),
    8: (surplus, "unknown array 'surprise'"),
    9: (count(-3), "negative"),
    11: (count(math.nan), "instead of a whole number"),
    12: (count([1, 2]), "instead of a whole number"),
    13: (count(2**60), "more than anyone can hold"),
    14: (no_count, "'num-examples' is missing"),
    16: (bytes_that_are_no_array, "."),
    17: (empty, "no? ?record|0 records"),
    19: (error, "the disk is full"),
    20: (silent, "no reply"),
}
HONEST = sorted(set(range(CLIENTS)) - set(HOSTILE))


def sealed(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> Message:
    return flower.with_content(reply, RecordDict({"arrays": arrays, "metrics": metrics}))


def stranger(reply: Message, node: int) -> Message:
    """The same content under another sender's name."""
    copied = flower.with_content(reply, reply.content)
    meta = type(reply.metadata)(
        run_id=reply.metadata.run_id,
        message_id=f"from-{node}",
        src_node_id=node,
        dst_node_id=reply.metadata.dst_node_id,
        reply_to_message_id=reply.metadata.reply_to_message_id,
        group_id=reply.metadata.group_id,
        created_at=reply.metadata.created_at,
        ttl=reply.metadata.ttl,
        message_type=reply.metadata.message_type,
    )
    return Message(metadata=meta, content=copied.content)


class Mischief(Grid):
    """A grid on which the replies of some clients are tampered with.

    Args:
        inner: the grid that works.
        tricks: client → what happens to its reply.
        kind: the type of message whose replies are tampered with.
        extra: what is added to all replies.
        rounds: rounds in which it happens; None: all.
        ours: whether partitions are in order, so that nodes are not asked for theirs.
    """

    def __init__(
        self,
        inner: LocalGrid,
        tricks: dict[int, Trick],
        kind: str = "train",
        extra: Callable[[list[Message]], list[Message]] = lambda replies: [],
        rounds: Iterable[int] | None = None,
        ours: bool = True,
    ) -> None:
        self.inner, self.tricks, self.kind, self.extra = inner, tricks, kind, extra
        self.rounds = None if rounds is None else {str(round) for round in rounds}
        self.partitions_in_order = ours
        self.client_state, self.incidents = inner.client_state, inner.incidents

    def set_run(self, run: Any) -> None:
        self.inner.set_run(run)

    @property
    def run(self) -> Any:
        return self.inner.run

    def create_message(self, *args: Any, **options: Any) -> Message:
        return self.inner.create_message(*args, **options)

    def get_node_ids(self) -> Iterable[int]:
        return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        sent = list(messages)
        replies = self.inner.send_and_receive(sent, timeout=timeout)
        meta = sent[0].metadata
        if meta.message_type != self.kind or (self.rounds is not None and meta.group_id not in self.rounds):
            return replies
        tampered = []
        for reply in replies:
            trick = self.tricks.get(reply.metadata.src_node_id - FIRST_NODE)
            if trick is None or not reply.has_content():
                tampered.append(reply)
            else:
                arrays = next(iter(reply.content.array_records.values()), ArrayRecord())
                plain = ArrayRecord({name: Array(array.numpy()) for name, array in arrays.items()})
                metrics = next(iter(reply.content.metric_records.values())).copy()
                tampered += trick(reply, plain, metrics)
        return [*tampered, *self.extra(replies)]


def scenario(defense: Any = "fedavg", **changes: Any) -> Scenario:
    tables = {
        "rounds": ROUNDS,
        "data.partition": "iid",
        "data.clients": CLIENTS,
        "client.per_round": CLIENTS,
        "adversary": {},
        "server": {"defenses": [defense]},
        "evaluate": {},
    }
    return small(**{**tables, **changes})


def tampered(case: Scenario, tricks: dict[int, Trick], out: Path | None = None, **options: Any) -> Result:
    with LocalGrid(build(case).app, case.data.clients) as inner:
        return simulate(case, out, grid=Mischief(inner, tricks, **options))


def same_model(a: Result, b: Result) -> bool:
    return all(torch.equal(tensor, b.parameters[name]) for name, tensor in a.parameters.items())


def reasons(line: dict[str, Any]) -> dict[int, str]:
    return {fault["client"]: fault["reason"] for fault in line["faults"]}


RULES: list[Any] = [
    "fedavg",
    "median",
    {"name": "krum", "malicious": 1},
    {"name": "multi_metrics", "keep": 0.5},
    "flwr:FedAvg",
    "flwr:FedMedian",
]


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "asked"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_hostile_replies_are_named_and_change_nothing(rule: Any, ours: bool, tmp_path: Path) -> None:
    """The model is the bits of a run in which these clients are just absent."""
    case = scenario(rule)
    absent = tampered(case, dict.fromkeys(HOSTILE, silent))
    result = tampered(case, {client: trick for client, (trick, _) in HOSTILE.items()}, tmp_path, ours=ours)
    assert result.finished
    assert same_model(result, absent)
    for line in result.lines[1:]:
        said = reasons(line)
        assert sorted(said) == sorted(HOSTILE)
        for client, reason in said.items():
            assert re.search(HOSTILE[client][1], reason), (client, reason)
            assert "\n" not in reason
            assert len(reason) <= 200
        assert set(line["kept"]) <= set(HONEST)
    assert {row["client"] for row in result.client_lines} == set(HONEST)
    written = [json.loads(row) for row in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [row["faults"] for row in written] == [line["faults"] for line in result.lines]
    assert not result.notes or not any("rounds changed nothing" in note for note in result.notes)


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "asked"])
@pytest.mark.parametrize("rule", ["fedavg", "median", "flwr:FedAvg", "flwr:FedMedian"])
@pytest.mark.parametrize("attacked", [False, True], ids=["calm", "attacked"])
def test_duplicates_and_strangers_change_nothing(rule: str, ours: bool, attacked: bool) -> None:
    adversary = {"count": 2, "attacks": ["sign_flip"]} if attacked else {}
    case = scenario(rule, adversary=adversary, **{"client.per_round": 8})
    calm = tampered(case, {})

    def more(replies: list[Message]) -> list[Message]:
        asked = {reply.metadata.src_node_id for reply in replies}
        other = min(set(range(FIRST_NODE, FIRST_NODE + CLIENTS)) - asked)
        first = replies[0]
        arrays = ArrayRecord({name: Array(array.numpy() + 5) for name, array in first.content["arrays"].items()})
        moved = sealed(first, arrays, first.content["metrics"].copy())
        return [moved, stranger(moved, other), stranger(moved, 10**9)]

    result = tampered(case, {}, extra=more, ours=ours)
    assert same_model(result, calm)
    for line in result.lines[1:]:
        told = [fault["reason"] for fault in line["faults"]]
        assert len(told) == 3, told
        assert sum("second reply" in reason for reason in told) == 1
        assert sum("no one asked for" in reason for reason in told) == 2
        assert sum(str(10**9) in reason for reason in told) == 1
    assert not any("rounds changed nothing" in note for note in result.notes)


@pytest.mark.parametrize("rule", ["fedavg", "median", "multi_metrics", "flwr:FedMedian", "flwr:FedAdam"])
@pytest.mark.parametrize("trick", [one(math.nan), error, silent, count(0)], ids=["nan", "error", "silent", "idle"])
def test_when_all_fail_the_model_stays_and_the_next_round_goes_on(rule: str, trick: Trick) -> None:
    optimizer = {} if ":" in rule else {"server.optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.9}}
    case = scenario(rule, rounds=1)
    start = named_arrays(build(case).initial, build(case).layout)
    everyone = dict.fromkeys(range(CLIENTS), trick)
    still = tampered(case, everyone)
    for name, tensor in still.parameters.items():
        assert torch.equal(tensor, torch.from_numpy(start[name])), name
    longer = tampered(scenario(rule, rounds=3, **optimizer), everyone, rounds=[2])
    assert longer.finished
    assert longer.lines[2]["accuracy"] == longer.lines[1]["accuracy"]
    assert longer.lines[3]["loss"] != longer.lines[2]["loss"]


@pytest.mark.parametrize("knowledge", ["colluding", "omniscient"])
def test_attackers_see_only_what_can_be_read(knowledge: str) -> None:
    """Broken replies, of honest clients and of the adversary's own, do not stop the crafting either."""
    adversary = {"count": 11, "knowledge": knowledge, "attacks": [{"name": "alie"}]}
    case = scenario("median", adversary=adversary)
    unreadable = {client: trick for client, (trick, _) in HOSTILE.items() if client not in (4, 13)}
    absent = tampered(case, dict.fromkeys(unreadable, silent))
    result = tampered(case, unreadable)
    assert result.finished
    assert same_model(result, absent)
    for line in result.lines[1:]:
        assert sorted(reasons(line)) == sorted(unreadable)


class Failing:
    """Our app, in which some clients raise or never come back."""

    def __init__(self, app: Any, client: int, act: Callable[[], None]) -> None:
        self.app, self.client, self.act = app, client, act

    def plan(self, messages: Any, contexts: Any) -> list[list[int]]:
        return self.app.plan(messages, contexts)  # type: ignore[no-any-return]

    def many(self, messages: Any, contexts: Any) -> list[Message]:
        kind = messages[0].metadata.message_type
        if kind == "train" and any(context.node_config["partition-id"] == self.client for context in contexts):
            self.act()
        return self.app.many(messages, contexts)  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", ["fedavg", "flwr:FedMedian"])
def test_an_exception_in_a_client_fails_it_alone(rule: str) -> None:
    def act() -> None:
        raise RuntimeError("the camera\nis broken")

    case = scenario(rule)
    with LocalGrid(Failing(build(case).app, 6, act), CLIENTS) as grid:
        result = simulate(case, grid=grid)
    absent = tampered(case, {6: silent})
    for name, tensor in result.parameters.items():
        torch.testing.assert_close(tensor, absent.parameters[name])
    for line in result.lines[1:]:
        assert list(reasons(line)) == [6]
        assert "the camera" in reasons(line)[6]


@pytest.mark.parametrize("rule", ["fedavg", "flwr:FedMedian"])
def test_a_reply_that_never_comes_does_not_hold_up_the_run(rule: str) -> None:
    """One client hangs for ever; the server waits for its timeout, says so, and goes on."""
    release = threading.Event()
    case = scenario(rule, rounds=2, **{"server.timeout": 1.0, "engine.path": "reference"})
    with LocalGrid(Failing(build(case).app, 6, lambda: release.wait() and None), CLIENTS) as grid:
        try:
            result = simulate(case, grid=grid)
        finally:
            release.set()
    assert result.finished
    for line in result.lines[1:]:
        assert reasons(line)[6] == "no reply"
        assert 6 not in line["kept"]


def test_hostile_evaluations_are_left_out_of_the_worst_tenth() -> None:
    """Accuracies that cannot be true, doubled, of strangers, or none at all do not reach the measure."""

    def claims(accuracy: Any, examples: Any = 10) -> Trick:
        def trick(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
            said = MetricRecord({"accuracy": accuracy, "num-examples": examples})
            return [flower.with_content(reply, RecordDict({"metrics": said}))]

        return trick

    case = scenario(evaluate={"clients": CLIENTS})
    tricks = {0: claims(math.nan), 1: claims(-7.0), 2: claims(1e30), 3: claims([0.0]), 4: claims(0.0, [1]), 5: error}
    absent = tampered(case, dict.fromkeys([*tricks, 6], silent), kind="evaluate")

    def more(replies: list[Message]) -> list[Message]:
        low = flower.with_content(
            replies[7], RecordDict({"metrics": MetricRecord({"accuracy": 0.0, "num-examples": 5})})
        )
        return [low, stranger(low, 10**9)]

    result = tampered(case, tricks | {6: empty}, kind="evaluate", extra=more)
    assert [line["worst10"] for line in result.lines[1:]] == [line["worst10"] for line in absent.lines[1:]]
    assert all(0 <= line["worst10"] <= 1 for line in result.lines[1:])


def test_a_hostile_loss_does_not_reach_the_record(tmp_path: Path) -> None:
    """The training loss that a client tells is a number of its own choice; the record stays valid JSON."""

    def tells(value: float) -> Trick:
        def trick(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
            metrics["loss"] = value
            return [sealed(reply, arrays, metrics)]

        return trick

    result = tampered(scenario(), {0: tells(math.nan), 1: tells(1e308), 2: tells(-math.inf)}, tmp_path)
    assert result.finished
    for row in (tmp_path / "rounds.jsonl").read_text().splitlines():
        loss = json.loads(row, parse_constant=pytest.fail)["train_loss"]
        assert loss is None or math.isfinite(loss)
