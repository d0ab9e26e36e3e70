"""RayGrid: the bits of LocalGrid, states that travel, killed workers, guests, clear errors. One cluster for all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim import registry
from fedsim.errors import FedsimError
from fedsim.flower import FIRST_NODE, Flat, send
from fedsim.grids.embedded import EmbeddedGrid
from fedsim.grids.local import LocalGrid
from fedsim.grids.ray import RayGrid
from fedsim.updates import Layout

ray = pytest.importorskip("ray")
LAYOUT = Layout((("w", (200, 150)),))
START = torch.linspace(-1, 1, LAYOUT.d)


class Chunked:
    """Replies a product that depends on client, chunk and round; marked clients kill their process."""

    def __init__(self, scale: torch.Tensor) -> None:
        self.scale = scale

    def plan(self, messages: list[Message], contexts: list[Context]) -> list[list[int]]:
        return [list(range(start, min(start + 3, len(messages)))) for start in range(0, len(messages), 3)]

    def many(self, messages: list[Message], contexts: list[Context]) -> list[Message]:
        replies = []
        for message, context in zip(messages, contexts, strict=True):
            client = int(context.node_config["partition-id"])
            config = message.content["config"]
            marker = str(config.get("kill", ""))
            if client in list(config.get("victims", [])) and (not marker or not Path(marker).exists()):
                if marker:
                    Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            count = int(context.state["seen"]["count"]) if "seen" in context.state else 0
            context.state["seen"] = MetricRecord({"count": count + 1})
            context.state["moments"] = Flat(torch.full((LAYOUT.d,), float(count)), LAYOUT)
            generator = torch.Generator().manual_seed(client)
            mixing = torch.randn(200, 200, generator=generator)
            vector = (mixing @ message.content["arrays"].vector.view(200, 150)).reshape(-1) * self.scale + count
            content = RecordDict({"arrays": Flat(vector, LAYOUT), "metrics": MetricRecord({"num-examples": client})})
            replies.append(Message(content, reply_to=message))
        return replies


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    folder = tempfile.mkdtemp(prefix="fedsim-test-ray-", dir="/tmp")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=folder)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def pair(cluster: None) -> Iterator[RayGrid]:
    with RayGrid(app(), 9, workers=2) as grid:
        yield grid
    assert ray.is_initialized()


def exchange(grid: EmbeddedGrid, rounds: int = 2, **config: object) -> list[list[float] | str]:
    vector = START
    for _ in range(rounds):
        content = RecordDict({"arrays": Flat(vector, LAYOUT), "config": ConfigRecord(config)})  # type: ignore[arg-type]
        replies = grid.send_and_receive([send(content, c + FIRST_NODE, "train") for c in (8, 1, 0, 5, 2, 7, 3)])
        good = [reply.content["arrays"].vector for reply in replies if reply.has_content()]
        vector = torch.stack(good).mean(0) / 50
    return [reply.error.reason if reply.has_error() else reply.content["arrays"].vector.tolist() for reply in replies]


def app() -> Chunked:
    return Chunked(torch.tensor(0.5))


def same_states(grid: EmbeddedGrid, other: EmbeddedGrid) -> bool:
    return sorted(grid.client_state) == sorted(other.client_state) and all(
        state["seen"] == other.client_state[client]["seen"]
        and torch.equal(state["moments"].vector, other.client_state[client]["moments"].vector)
        for client, state in grid.client_state.items()
    )


def test_the_bits_are_local_grids_for_two_workers(pair: RayGrid) -> None:
    local = LocalGrid(app(), 9, workers=2)
    expected = exchange(local)
    before = pair.processes
    assert exchange(pair) == expected
    assert pair.processes == before
    assert len(set(before)) == 2
    assert pair.incidents == []
    assert same_states(pair, local)


def test_a_killed_worker_is_replaced_and_its_chunk_run_again(pair: RayGrid, tmp_path: Path) -> None:
    expected = exchange(LocalGrid(app(), 9))
    before = set(pair.processes)
    pair.client_state.clear()
    pair.incidents.clear()
    assert exchange(pair, kill=str(tmp_path / "once"), victims=[5]) == expected
    assert len(set(pair.processes) & before) == 1
    assert [(each["what"], each["then"]) for each in pair.incidents] == [("worker died", "run again")]


@pytest.mark.slow
def test_the_bits_are_local_grids_for_one_worker(cluster: None) -> None:
    local = LocalGrid(app(), 9, workers=2)
    with RayGrid(app(), 9, workers=1) as grid:
        assert exchange(grid) == exchange(local)
        assert same_states(grid, local)


@pytest.mark.slow
def test_a_worker_killed_between_rounds_is_replaced(cluster: None) -> None:
    with RayGrid(app(), 9, workers=2) as grid:
        os.kill(grid.processes[0], signal.SIGKILL)
        assert exchange(grid) == exchange(LocalGrid(app(), 9))


@pytest.mark.slow
def test_a_client_that_always_kills_its_worker_fails_alone(cluster: None) -> None:
    with RayGrid(app(), 9, workers=2) as grid:
        outcome = exchange(grid, rounds=1, victims=[1])
        alone = [str(each).startswith("its worker died") for each in outcome]
        assert alone == [False, True, False, False, False, False, False]
        assert [each["then"] for each in grid.incidents] == ["run again", "run one by one", "given up"]
        assert 1 not in grid.client_state


@pytest.mark.slow
def test_guests_run_with_states_and_errors(cluster: None) -> None:
    guest = ClientApp()

    @guest.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        if client == 1:
            raise ValueError("broken")
        state = message.content["arrays"].to_torch_state_dict(keep_input=False)
        state["w"] += 1
        context.state["seen"] = MetricRecord({"count": 1})
        drawn = float(torch.rand(()))
        metrics = MetricRecord({"first": float(state["w"][0, 0]), "drawn": drawn})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    content = RecordDict({"arrays": Flat(START, LAYOUT), "config": ConfigRecord()})
    seen = []
    for grid in (RayGrid(guest, 4, workers=2, seed=1), LocalGrid(guest, 4, seed=1)):
        with grid:
            replies = grid.send_and_receive([send(content, c + FIRST_NODE, "train") for c in range(4)])
            seen.append([r.error.reason if r.has_error() else dict(r.content["metrics"]) for r in replies])
            assert sorted(grid.client_state) == [0, 2, 3]
    assert seen[0] == seen[1]
    assert seen[0][1] == "ValueError('broken')"
    assert START[0] == -1


@pytest.mark.slow
def test_late_replies_are_left_out_and_their_workers_replaced(cluster: None) -> None:
    guest = ClientApp()

    @guest.train()
    def train(message: Message, context: Context) -> Message:
        if int(context.node_config["partition-id"]) == 0:
            signal.pause()
        return Message(RecordDict(), reply_to=message)

    content = RecordDict({"config": ConfigRecord()})
    with RayGrid(guest, 3, workers=2) as grid:
        replies = grid.send_and_receive([send(content, c + FIRST_NODE, "train") for c in range(3)], timeout=2.0)
        assert [reply.metadata.src_node_id - FIRST_NODE for reply in replies] == [1, 2]
        assert [each["then"] for each in grid.incidents] == ["left out"]
        assert len(grid.send_and_receive([send(content, 1 + FIRST_NODE, "train")], timeout=60.0)) == 1


def test_what_cannot_work_is_one_clear_error(cluster: None) -> None:
    with pytest.raises(FedsimError, match="at most the cluster's 4 CPUs"):
        RayGrid(app(), 3, workers=9)
    with pytest.raises(FedsimError, match="GPUs"):
        registry.make("engine", "ray", workers=1, num_gpus=1.0).grid(app(), 3)
    unsendable = app()
    unsendable.scale = (number for number in ())  # type: ignore[assignment]
    with pytest.raises(FedsimError, match="cannot be sent to Ray's workers"):
        RayGrid(unsendable, 3)


SCRIPT = """
import pathlib, ray
from flwr.clientapp import ClientApp
from fedsim.errors import FedsimError
from fedsim.grids.ray import RayGrid
try:
    RayGrid(ClientApp(), 3, address="127.0.0.1:1")
except FedsimError as error:
    assert "engine.address = '127.0.0.1:1'" in str(error), error
else:
    raise AssertionError("no error")
try:
    RayGrid(ClientApp(), 3, address="auto").close()
except FedsimError as error:
    assert "engine.address = 'auto'" in str(error), error
else:
    from ray._private.services import find_gcs_addresses
    assert find_gcs_addresses(), "no error, and no cluster of somebody else's either"
grid = RayGrid(ClientApp(), 3, workers=1)
folder = pathlib.Path(grid._folder)
assert folder.is_dir()
assert len(grid.processes) == 1
grid.close()
assert not folder.exists() and not ray.is_initialized()
print("fine")
"""


@pytest.mark.slow
def test_a_cluster_of_its_own_is_quiet_and_cleaned_up_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fine\n"
    assert done.stderr == ""


HEAD = """
import ray, shutil, sys, tempfile
folder = tempfile.mkdtemp(prefix="fedsim-test-ray-", dir="/tmp")
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=folder)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
shutil.rmtree(folder, ignore_errors=True)
"""

JOIN = """
import sys, ray, torch
from flwr.app import Message, RecordDict, MetricRecord
from flwr.clientapp import ClientApp
from fedsim.flower import send
from fedsim.grids.ray import RayGrid
app = ClientApp()
@app.train()
def train(message, context):
    return Message(RecordDict({"m": MetricRecord({"client": context.node_config["partition-id"]})}), reply_to=message)
with RayGrid(app, 3, workers=2, address=sys.argv[1]) as grid:
    messages = [send(RecordDict(), client + 2, "train") for client in range(3)]
    print([reply.content["m"]["client"] for reply in grid.send_and_receive(messages)])
"""


@pytest.mark.slow
def test_it_joins_a_running_cluster_and_leaves_it_running(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", HEAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as head:
        assert head.stdout is not None
        address = head.stdout.readline().strip()
        for _ in range(2):
            joined = subprocess.run(
                [sys.executable, "-c", JOIN, address],
                cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200,
            )  # fmt: skip
            assert joined.stdout == "[0, 1, 2]\n", joined.stderr
        head.communicate("")
    assert head.returncode == 0
