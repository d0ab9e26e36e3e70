"""Nodes of a grid that is not ours are asked for their partition; what is missing is said, and how to wait longer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedsim import app, flower
from fedsim.errors import FedsimError
from fedsim.flower import Directory, set_identity, waiting, with_id

NODES = (71, 72, 73)
SETS = "data.clients=3; client.per_round=3; adversary.fraction=0.34; server.defenses=['median']"


class Remote:
    """A grid as Flower's: nodes have ids of their own, some say which partition they hold, some that they cannot."""

    def __init__(self, connected: int, said: Sequence[int | str]) -> None:
        set_identity()
        self.nodes, self.said = NODES[:connected], dict(zip(NODES, said, strict=False))
        self.timeouts: list[float | None] = []
        self.deaf = 0

    def get_node_ids(self) -> Iterable[int]:
        return self.nodes

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self.timeouts.append(timeout)
        if len(self.timeouts) <= self.deaf:
            return []
        return [self._reply(with_id(each)) for each in messages if each.metadata.dst_node_id in self.said]

    def _reply(self, message: Message) -> Message:
        said = self.said[message.metadata.dst_node_id]
        if isinstance(said, str):
            return Message(Error(code=0, reason=said), reply_to=message)
        return Message(RecordDict({"partition": ConfigRecord({"partition-id": said})}), reply_to=message)


def directory(connected: int, *said: int | str) -> Directory:
    with waiting(0):
        return Directory(cast(Grid, Remote(connected, said)), 3)


def test_each_partition_has_its_node() -> None:
    found = directory(3, 2, 0, 1)
    assert [found.node(partition) for partition in range(3)] == [72, 73, 71]
    assert [found.partition(node) for node in NODES] == [2, 0, 1]
    assert found.find(99) is None


@pytest.mark.parametrize(
    ("connected", "said", "says"),
    [
        (
            2,
            (0, 1),
            r"given 2 connected nodes within 0 s \(.*larger `wait` in the run config\).*accepted: 3 \(data\.cl",
        ),
        (
            3,
            (),
            r"no node holds partition 0 \(and 2 others\) of 3: 3 are connected; 3 did not answer within 0 s \(.*`wait`",
        ),
        (
            3,
            (0, 1),
            r"no node holds partition 2 of 3: 3 are connected; 1 did not answer within 0 s \(.*`wait` in the run",
        ),
        (3, (0, 1, "no such file"), r"no node holds partition 2 of 3: .*; one answered: no such file; accepted: each"),
        (
            3,
            (0, 1, 1),
            r"no node holds partition 2 of 3: 3 are connected; accepted: each partition-id from 0 to 2 on a",
        ),
    ],
)
def test_what_is_missing_is_said(connected: int, said: tuple[int | str, ...], says: str) -> None:
    with pytest.raises(FedsimError, match=says):
        directory(connected, *said)


def test_waiting_holds_until_its_block_ends() -> None:
    grid = Remote(3, (0, 1, 2))
    with waiting(7.5):
        Directory(cast(Grid, grid), 3)
    Directory(cast(Grid, grid), 3)
    assert grid.timeouts == [7.5, flower.WAIT / 2]


def test_who_is_silent_is_asked_again_until_the_time_is_over() -> None:
    grid = Remote(3, (0, 1, 2))
    grid.deaf = 2
    with waiting(400):
        assert Directory(cast(Grid, grid), 3).node(1) == 72
    assert grid.timeouts == [200, 100, 50]
    grid = Remote(3, (0, 1, 2))
    grid.deaf = 9
    with waiting(400), pytest.raises(FedsimError, match="3 did not answer within 400 s"):
        Directory(cast(Grid, grid), 3)
    assert sum(cast(list[float], grid.timeouts)) == 400


def context(**config: Any) -> Context:
    return cast(Context, SimpleNamespace(run_config={"scenario": "quickstart", "set": SETS, **config}))


@pytest.mark.parametrize("given", ["long", -1, float("inf")])
def test_a_wait_that_is_no_number_of_seconds_is_refused(given: object) -> None:
    with pytest.raises(FedsimError, match=r"run config: wait: given .*; accepted: a number of seconds"):
        app.main(cast(Grid, Remote(3, ())), context(wait=given))


def test_the_run_config_says_how_long_to_wait() -> None:
    with pytest.raises(FedsimError, match="2 connected nodes within 0 s"):
        app.main(cast(Grid, Remote(2, ())), context(wait=0))
