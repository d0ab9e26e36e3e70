"""A defense with messages of its own: three exchanges a round and memory on the clients."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp import Grid

from fedsim.errors import ResumeError
from fedsim.record import Recorder
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from tests.simulation.test_runs import small

PART = f"{Path(__file__).with_name('three_exchanges.py')}:ThreeExchanges"


class Stop(Exception):
    """Ends a run after its second round."""


def stop(line: dict[str, Any]) -> None:
    if line["round"] == 2:
        raise Stop


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return small(server={"defenses": [PART, "median"]}, rounds=5)


def test_the_exchanges_are_played_and_remembered(scenario: Scenario, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_ray_plays_them_and_goes_on_with_a_run_of_threads(scenario: Scenario, tmp_path: Path) -> None:
    """Half of the rounds on LocalGrid, the rest on RayGrid: the clients' memory goes along."""
    whole = simulate(scenario, tmp_path / "whole")
    with pytest.raises(Stop):
        simulate(scenario, tmp_path / "both", progress=stop)
    on_ray = scenario.changed(engine={"name": "ray", "workers": 2})
    assert simulate(on_ray, tmp_path / "both", resume=True).digest == whole.digest
    (_, _, _, here), (_, _, _, there) = (Recorder.resume(tmp_path / name) for name in ("whole", "both"))
    assert {client: int(records["visits"]["count"]) for client, records in there["clients"].items()} == {
        client: int(records["visits"]["count"]) for client, records in here["clients"].items()
    }


class Foreign(Grid):
    """Flower's grids as fedsim sees them: nodes of any number, and no hold of what they remember."""

    def __init__(self, grid: Any) -> None:
        self.grid = grid

    def set_run(self, run: Any) -> None:
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        return self.grid.run

    def create_message(self, *args: Any, **names: Any) -> Any:
        return self.grid.create_message(*args, **names)

    def get_node_ids(self) -> Any:
        return self.grid.get_node_ids()

    def push_messages(self, messages: Any) -> Any:
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Any) -> Any:
        return self.grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        return self.grid.send_and_receive(messages, timeout=timeout)


@pytest.fixture
def foreign(scenario: Scenario) -> Iterator[Foreign]:
    from fedsim.federation import build

    with build(scenario).engine() as grid:  # type: ignore[attr-defined]
        yield Foreign(grid)


def test_what_flowers_nodes_remember_is_not_resumed(scenario: Scenario, foreign: Foreign, tmp_path: Path) -> None:
    whole = simulate(scenario)
    with pytest.raises(Stop):
        simulate(scenario, tmp_path / "there", progress=stop, grid=foreign)
    with pytest.raises(ResumeError, match=r"three_exchanges\.py:ThreeExchanges.*Flower's own nodes"):
        simulate(scenario, tmp_path / "there", resume=True, grid=foreign)
    with pytest.raises(ResumeError, match="Flower's own nodes"):
        simulate(scenario, tmp_path / "there", resume=True)
    assert simulate(scenario, tmp_path / "done", grid=foreign).finished
    assert simulate(scenario, tmp_path / "done", resume=True).finished
    with pytest.raises(Stop):
        simulate(scenario, tmp_path / "here", progress=stop)
    with pytest.raises(ResumeError, match="Flower's own nodes"):
        simulate(scenario, tmp_path / "here", resume=True, grid=foreign)
    assert simulate(scenario, tmp_path / "here", resume=True).digest == whole.digest


def test_without_memory_on_the_clients_a_run_is_resumed_on_flowers_nodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsim.federation import build

    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    scenario = small()
    with build(scenario).engine() as grid:  # type: ignore[attr-defined]
        with pytest.raises(Stop):
            simulate(scenario, tmp_path, progress=stop, grid=Foreign(grid))
        assert simulate(scenario, tmp_path, resume=True, grid=Foreign(grid)).digest == simulate(scenario).digest
    assert caplog.messages == []
