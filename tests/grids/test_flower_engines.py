"""Our app under Flower's own simulation and in a deployment on loopback: the parameters of LocalGrid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fedsim
from fedsim.record import Recorder

pytestmark = pytest.mark.slow
PROJECT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
SETS = (
    "data.clients=3",
    "client.per_round=2",
    "rounds=2",
    "adversary.fraction=0.0",
    "adversary.attacks=[]",
    'server.defenses=["fedavg"]',
    "evaluate.clients=0",
)

PRIVATE = (
    "data.clients=3",
    "client.per_round=3",
    *SETS[2:],
    "client.epochs=1",
    "client.optimizer={name='sgd', lr=0.05}",
    "server.estimator={name='diff2', restart=2, c1=1.0, c2=1.0, lr=0.5}",
    "privacy.noise=[0.02, 0.02]",
    "privacy.trust='local'",
)
"""Noise of the clients' own: the scenario's under simulation, nobody's in a deployment."""

PAPERS = {
    "hessian_alignment": "client.regularizers=[{name='hessian_alignment', alpha=1.0, beta=1.0, reference='exact'}]",
    "harmonic": "client.loss={name='harmonic', mask_absent=true}",
}
"""Parts of papers: one with exchanges of its own before a round trains, and one that changes the model's head."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "home").mkdir()
    return {
        **os.environ,
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_ADDRESS": "local",  # nodes of its own, whatever cluster this machine has, or has had
    }


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A copy of what a fresh checkout holds, so that nothing else of the folder gets into the bundle."""
    folder = tmp_path / "app"
    folder.mkdir()
    shutil.copy(PROJECT / "pyproject.toml", folder)
    for package in ("fedsim", "strategies", "attacks", "scenarios"):
        shutil.copytree(PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    configure(folder, SETS)
    return folder


def configure(app: Path, sets: Sequence[str], resume: bool = False) -> None:
    """Writes the run config: the quickstart with these settings, its folder beside the app's."""
    joined = "; ".join(sets).replace('"', '\\"')
    config = (
        f'scenario = "quickstart"\nset = "{joined}"\nout = "{app.with_name("run")}"\nresume = {str(resume).lower()}\n'
    )
    (app / "run.toml").write_text(config)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def program(arguments: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(PROGRAMS / arguments[0]), *arguments[1:]], env=environment, stdout=output, stderr=output
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def flwr_run(app: Path, port: int, environment: dict[str, str], *options: str) -> str:
    """Waits for the SuperLink, runs the app on it, and gives what was streamed."""
    (Path(environment["FLWR_HOME"]) / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    for _ in range(600):
        with socket.socket() as probe:
            probe.settimeout(0.1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
            give_way()
    done = subprocess.run(
        [str(PROGRAMS / "flwr"), "run", ".", "--stream", "--run-config", "run.toml", *options],
        cwd=app, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.stdout + done.stderr


def give_way() -> None:
    """Gives the processor to the program that is waited for."""
    subprocess.run([sys.executable, "-c", ""], check=True)


def same_parameters(run: Path, streamed: str, sets: Sequence[str] = SETS) -> None:
    checkpoint = run / "checkpoint-2.safetensors"
    assert checkpoint.exists(), streamed
    saved = load_file(checkpoint)
    found = {name.removeprefix("model."): value for name, value in saved.items() if name.startswith("model.")}
    expected = fedsim.run(fedsim.Scenario.load("quickstart", sets=sets)).parameters
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_flowers_own_simulation_gives_the_same_parameters(
    app: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    superlink = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    with program(superlink, environment, tmp_path / "superlink.log"):
        streamed = flwr_run(app, port, environment, "--federation-config", "num-supernodes=3")
    same_parameters(tmp_path / "run", streamed)


@pytest.mark.parametrize("name", PAPERS)
def test_parts_of_papers_under_flowers_own_simulation(
    name: str, app: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    sets = (*SETS, PAPERS[name])
    configure(app, sets)
    port = free_port()
    superlink = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    with program(superlink, environment, tmp_path / "superlink.log"):
        streamed = flwr_run(app, port, environment, "--federation-config", "num-supernodes=3")
    same_parameters(tmp_path / "run", streamed, sets)


def test_several_exchanges_and_memory_on_flowers_own_nodes(
    app: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """The part with three exchanges: the same parameters and memory; going on with such a run is refused."""
    part = PROJECT / "tests" / "simulation" / "three_exchanges.py"
    sets = (*SETS[:-2], f'server.defenses=["{part}:ThreeExchanges", "median"]', SETS[-1])
    port = free_port()
    superlink = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    with program(superlink, environment, tmp_path / "superlink.log"):
        configure(app, sets)
        same_parameters(
            tmp_path / "run", flwr_run(app, port, environment, "--federation-config", "num-supernodes=3"), sets
        )
        fedsim.run(fedsim.Scenario.load("quickstart", sets=sets), tmp_path / "here")
        memory = [Recorder.resume(tmp_path / name)[3]["strategy"]["defenses"][0] for name in ("run", "here")]
        assert memory[0] == memory[1]
        assert max(memory[0]["visits"].values()) == 2
        configure(app, [*sets[:2], "rounds=3", *sets[3:]], resume=True)
        refused = flwr_run(app, port, environment, "--federation-config", "num-supernodes=3")
    assert "lies on Flower's own nodes" in refused
    assert not (tmp_path / "run" / "checkpoint-3.safetensors").exists()


def test_a_deployment_gives_the_same_parameters(app: Path, environment: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    superlink = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    with ExitStack() as running:
        running.enter_context(program(superlink, environment, tmp_path / "superlink.log"))
        for partition in range(3):
            supernode = [
                "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()),
                "--node-config", f"partition-id={partition} num-partitions=3",
            ]  # fmt: skip
            running.enter_context(program(supernode, environment, tmp_path / f"supernode-{partition}.log"))
        streamed = flwr_run(app, port, environment)
    same_parameters(tmp_path / "run", streamed)


def test_flowers_own_simulation_draws_the_scenarios_noise(
    app: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    configure(app, PRIVATE)
    port = free_port()
    superlink = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    with program(superlink, environment, tmp_path / "superlink.log"):
        streamed = flwr_run(app, port, environment, "--federation-config", "num-supernodes=3")
    same_parameters(tmp_path / "run", streamed, PRIVATE)


def test_a_deployment_draws_noise_that_no_scenario_tells(
    app: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    configure(app, PRIVATE)
    port = free_port()
    superlink = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    with ExitStack() as running:
        running.enter_context(program(superlink, environment, tmp_path / "superlink.log"))
        for partition in range(3):
            supernode = [
                "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()),
                "--node-config", f"partition-id={partition} num-partitions=3",
            ]  # fmt: skip
            running.enter_context(program(supernode, environment, tmp_path / f"supernode-{partition}.log"))
        streamed = flwr_run(app, port, environment)
    checkpoint = tmp_path / "run" / "checkpoint-2.safetensors"
    assert checkpoint.exists(), streamed
    saved = load_file(checkpoint)
    expected = fedsim.run(fedsim.Scenario.load("quickstart", sets=PRIVATE)).parameters
    moved = torch.cat([(saved[f"model.{name}"] - value).flatten() for name, value in expected.items()])
    assert 0.001 < float(moved.std()) < 0.1
