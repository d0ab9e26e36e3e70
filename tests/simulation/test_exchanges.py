"""A defense with messages of its own: three exchanges a round and memory on the clients."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedsim import registry
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from strategies.defense import TRAIN, Defense, Request, Round, defense
from tests.simulation.test_runs import small


@defense("three_exchanges")
class ThreeExchanges(Defense):
    """Asks how often each client was asked before, trains, then asks for a vote on the step's size.

    Args:
        shrink: factor on the step where most clients vote against it.
    """

    shrink: float = 0.5
    handlers = {"query.visits": "visits", "train.vote": "vote"}

    def exchanges(self, ctx: Round) -> Generator[Request, Any, None]:
        visits = yield Request("visits", "query.visits")
        counts = {reply.client: int(reply.content["visits"]["count"]) for reply in visits}
        ctx.state["visits"] = {str(client): count for client, count in counts.items()}
        ctx.records["hint"] = ConfigRecord({"most": max(counts.values())})
        updates = yield TRAIN
        assert ctx.aggregate is not None
        assert ctx.parameters is not None
        assert len(updates) > 0
        votes = yield Request("vote", "train.vote", parameters=ctx.parameters + ctx.aggregate.update)
        against = sum(float(reply.content["vote"]["loss"]) > 2.0 for reply in votes)
        ctx.state["against"] = against
        if against > len(votes) / 2:
            ctx.aggregate.update = ctx.aggregate.update * self.shrink

    def visits(self, node: Any, content: RecordDict) -> RecordDict:
        record = node.state.get("visits", MetricRecord({"count": 0}))
        node.state["visits"] = MetricRecord({"count": int(record["count"]) + 1})
        return RecordDict({"visits": node.state["visits"].copy()})

    def vote(self, node: Any, content: RecordDict) -> RecordDict:
        import torch

        examples = node.examples()
        loss = torch.nn.functional.cross_entropy(node.predict(examples.inputs), examples.targets)
        node.state["last"] = ArrayRecord({"head": loss.reshape(1)})
        return RecordDict({"vote": MetricRecord({"loss": float(loss)})})


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    assert "three_exchanges" in registry.names("defense")
    return small(server={"defenses": ["three_exchanges", "median"]}, rounds=5)


def test_the_exchanges_are_played_and_remembered(scenario: Scenario, tmp_path: Path) -> None:
    from fedsim.record import Recorder

    result = simulate(scenario, tmp_path)
    _, done, _, state = Recorder.resume(tmp_path)
    asked: dict[int, int] = {}
    for line in result.lines:
        for client in line["cohort"]:
            asked[client] = asked.get(client, 0) + 1
    assert done == 5
    assert {client: int(records["visits"]["count"]) for client, records in state["clients"].items()} == asked
    assert all("last" in records for records in state["clients"].values())
    assert state["strategy"]["defenses"][0]["visits"] == {str(c): asked[c] for c in result.lines[-1]["cohort"]}


def test_client_state_is_resumed(scenario: Scenario, tmp_path: Path) -> None:
    whole = simulate(scenario)

    class Stop(Exception):
        pass

    def stop(line: dict[str, Any]) -> None:
        if line["round"] == 2:
            raise Stop

    with pytest.raises(Stop):
        simulate(scenario, tmp_path, progress=stop)
    assert simulate(scenario, tmp_path, resume=True).digest == whole.digest


def test_it_runs_in_flowers_own_loop(scenario: Scenario) -> None:
    """Strategy.start() plays the exchanges too, and ends with the parameters of fedsim.run."""
    import numpy as np

    from fedsim.federation import build, named_arrays
    from fedsim.flower import Flat

    expected = simulate(scenario)
    federation = build(scenario)
    evaluator = federation.evaluator()
    strategy = federation.strategy(evaluator)
    with federation.engine() as grid:  # type: ignore[attr-defined]
        adversarial = federation.adversarial(grid, strategy)
        found = strategy.start(adversarial, Flat(federation.initial, federation.layout), num_rounds=scenario.rounds)
    evaluator.close()
    final = named_arrays(found.arrays.vector, federation.layout)  # type: ignore[attr-defined]
    for name, tensor in expected.parameters.items():
        np.testing.assert_array_equal(final[name], tensor.numpy())
