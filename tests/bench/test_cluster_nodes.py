"""A cluster that loses a node in the middle of its cells loses none of them and plays none twice."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.bench.runner import run_matrix
from fedsim.grids.ray import import_ray

sys.path.insert(0, str(Path(__file__).parent))
from matrices import matrix

ROUNDS = 800


@contextmanager
def three_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Nodes on this machine; the head has no processor, so that all cells are on the other two."""
    pytest.importorskip("ray")
    import_ray()
    from ray.cluster_utils import Cluster

    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(2):
                nodes.add_node(num_cpus=1)
            yield nodes
        finally:
            nodes.shutdown()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with three_nodes(monkeypatch) as nodes:
        yield nodes


def test_nodes_that_do_not_start_leave_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    import_ray()

    def refuse(**options: Any) -> None:
        raise OSError("no node")

    monkeypatch.setattr("ray.cluster_utils.Cluster", refuse)
    with pytest.raises(OSError, match="no node"), three_nodes(monkeypatch):
        pass
    assert not Path(os.environ["RAY_TMPDIR"]).exists()


def ask(out: Path, query: str) -> list[tuple[Any, ...]]:
    """What the store says."""
    connection = sqlite3.connect(out / "results.sqlite", timeout=60)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def in_the_middle(out: Path, last: int) -> set[str]:
    """Folders of the cells that are being played and have between 1 and ``last`` rounds behind them."""
    if not (out / "results.sqlite").exists():
        return set()
    try:
        running = ask(out, "SELECT folder FROM cells WHERE state = 'running'")
    except sqlite3.OperationalError:
        return set()
    states = {folder: out / folder / "state.json" for (folder,) in running}
    return {
        folder
        for folder, state in states.items()
        if state.exists() and 0 < json.loads(state.read_text())["round"] <= last
    }


@pytest.mark.slow
def test_a_node_that_is_lost_loses_no_cell_and_none_is_played_twice(tmp_path: Path, cluster: Any) -> None:
    file, out = tmp_path / "matrix.toml", tmp_path / "out"
    file.write_text(matrix(rounds=ROUNDS, seeds=2, attacks='["sign_flip"]'))
    command = [sys.executable, "-m", "fedsim", "bench", str(file), "--out", str(out), "--quiet"]
    process = subprocess.Popen([*command, "--runner", "ray", "--address", cluster.address], stderr=subprocess.PIPE)
    try:
        while len(hit := in_the_middle(out, ROUNDS // 2)) < 2:
            assert process.poll() is None, "the bench ended before a node was lost"
            time.sleep(0.01)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        # Each node had one of the two: one of them was in the middle of a round on the node that is gone.
        assert in_the_middle(out, ROUNDS - 1) >= hit
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, said.decode()

    assert ask(out, "SELECT state, COUNT(*) FROM cells GROUP BY state") == [("finished", 4)]
    assert ask(out, "SELECT state, COUNT(*), COUNT(DISTINCT key) FROM plays GROUP BY state") == [("finished", 4, 4)]
    for (folder,) in ask(out, "SELECT folder FROM cells"):
        rounds = [json.loads(line)["round"] for line in (out / folder / "rounds.jsonl").read_text().splitlines()]
        assert rounds == list(range(ROUNDS + 1))
    again = run_matrix(file, out)
    assert [cell.state for cell in again] == ["skipped"] * 4
    undisturbed = {cell.folder.name: fedsim.run(cell.scenario).digest for cell in again if cell.folder.name in hit}
    assert len(undisturbed) == 2
    assert {
        name: json.loads((out / name / "summary.json").read_text())["digest"] for name in undisturbed
    } == undisturbed
