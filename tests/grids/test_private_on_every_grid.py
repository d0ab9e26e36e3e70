"""One digest for every private method on threads, on Ray and on Flower's own grid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.simulation import simulate
from tests.grids.test_flower_engines import SETS, app, configure, environment, flwr_run, free_port, program
from tests.simulation.test_same_bits import cluster, interrupted

__all__ = ["app", "cluster", "environment"]
pytestmark = pytest.mark.slow

ALL = ("data.clients=3", "client.per_round=3", *SETS[2:], "client.epochs=1", "client.optimizer={name='sgd', lr=0.05}")
DIFF2 = "server.estimator={name='diff2', restart=2, c1=1.0, c2=1.0, lr=0.5}"
CLIENTS = ("privacy.unit='client'", "privacy.noise=[0.5]")
ATTACKED = ("adversary.fraction=0.25", "adversary.attacks=[{name='badnets', target=0}, {name='model_replacement'}]")
CASES: dict[str, tuple[str, ...]] = {
    "diff2 central": (*ALL, DIFF2, "privacy.epsilon=8.0"),
    "norm_bound, diff2 central": (*ALL, DIFF2, "privacy.noise=[0.02, 0.02]",
                                  "server.defenses=[{name='norm_bound', radius=0.1}]"),
    "diff2 central, for clients": (*ALL, DIFF2, "privacy.epsilon=8.0", "privacy.unit='client'"),
    "diff2 distributed": (*ALL, DIFF2, "privacy.epsilon=8.0", "privacy.trust='distributed'", "privacy.colluding=1"),
    "diff2 local": (*ALL, DIFF2, "privacy.noise=[0.02, 0.02]", "privacy.trust='local'"),
    "diff2 local, an adversary behind the filter": (
        *ALL, "data.clients=4", "client.per_round=4", DIFF2, "privacy.noise=[0.02, 0.02]", "privacy.trust='local'",
        *ATTACKED, "server.defenses=[{name='multi_metrics', keep=0.5}]"),
    "bvr_l_sgd": (*ALL, "privacy.epsilon='inf'", "server.estimator={name='diff2', restart=2, c1=1.0, c2=1.0, lr=0.5, "
                  "subroutine='bvr_l_sgd', local_steps_count=3}"),
    "reclip": (*SETS, *CLIENTS, "server.defenses=['median', {name='reclip', radius=1.0}]"),
    "dp_gd": (*ALL, "server.estimator={name='dp_gd', c1=1.0, lr=0.5}", "privacy.epsilon=8.0"),
    "dp_fedavg": (*SETS, *CLIENTS, "server.defenses=[{name='dp_fedavg', adaptive=true}]",
                  "server.sampler={name='poisson', rate=0.7}"),
    "dp_fedavg, cohorts of a fixed size": (*SETS, *CLIENTS, "server.defenses=['dp_fedavg']", "server.sampler='uniform'",
                                           "privacy.accountant='rdp'"),
    "dp_sgd": (*SETS, "client.optimizer={name='dp_sgd', lr=0.1}", "privacy.epsilon=20.0", "privacy.trust='local'"),
}  # fmt: skip


def scenario(name: str, *more: str) -> fedsim.Scenario:
    return fedsim.Scenario.load("quickstart", sets=(*CASES[name], *more))


@pytest.mark.parametrize("name", CASES)
def test_ray_gives_the_digest_of_threads(name: str, cluster: None) -> None:
    found = simulate(scenario(name))
    assert not any(line["faults"] for line in found.lines)
    for workers in (1, 2):
        assert simulate(scenario(name, "engine.name='ray'", f"engine.workers={workers}")).digest == found.digest


@pytest.mark.parametrize("name", ["diff2 central", "diff2 local", "dp_fedavg"])
def test_interrupted_and_resumed_on_ray_gives_the_digest_of_threads(name: str, cluster: None, tmp_path: Path) -> None:
    ray = scenario(name, "engine.name='ray'", "engine.workers=2")
    assert interrupted(ray, tmp_path) == simulate(scenario(name)).digest


@pytest.fixture
def superlink(environment: dict[str, str], tmp_path: Path) -> Iterator[int]:
    """Flower's own simulation, and the port at which it listens."""
    port = free_port()
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    with program(command, environment, tmp_path / "superlink.log"):
        yield port


@pytest.mark.parametrize("name", CASES)
def test_flwr_run_gives_the_digest_of_threads(
    name: str, app: Path, environment: dict[str, str], superlink: int, tmp_path: Path
) -> None:
    configure(app, CASES[name])
    nodes = f"num-supernodes={scenario(name).data.clients}"
    streamed = flwr_run(app, superlink, environment, "--federation-config", nodes)
    file = tmp_path / "run" / "summary.json"
    assert file.exists(), streamed
    summary: dict[str, Any] = json.loads(file.read_text("utf-8"))
    found = simulate(scenario(name))
    assert summary["rounds"] == 2
    assert summary["digest"] == found.digest


def test_the_scenario_of_privacy_has_one_digest_by_flwr_run(
    app: Path, environment: dict[str, str], superlink: int, tmp_path: Path
) -> None:
    sets = ("rounds=2", "server.estimator.restart=2", "data.clients=3", "client.per_round=3")
    configure(app, sets)
    run = app / "run.toml"
    run.write_text(run.read_text("utf-8").replace('scenario = "quickstart"', 'scenario = "private"'), "utf-8")
    streamed = flwr_run(app, superlink, environment, "--federation-config", "num-supernodes=3")
    file = tmp_path / "run" / "summary.json"
    assert file.exists(), streamed
    expected = simulate(fedsim.Scenario.load("private", sets=sets)).digest
    assert json.loads(file.read_text("utf-8"))["digest"] == expected
    proof = json.loads((tmp_path / "run" / "privacy.json").read_text("utf-8"))
    assert proof["mechanism"] == "diff2"
    assert not proof["none"]
