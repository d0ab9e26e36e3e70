"""Where the caller of a cluster breaks off, no task outlives the lock of its cell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedsim.bench.locks import free
from fedsim.bench.runner import run_matrix
from fedsim.grids import ray as grid

sys.path.insert(0, str(Path(__file__).parent))
from matrices import matrix


class Nodes:
    """A cluster of two processors whose tasks end by force alone; the first look at them fails."""

    exceptions = SimpleNamespace(RayError=RuntimeError, TaskCancelledError=InterruptedError)

    def __init__(self, out: Path) -> None:
        self.out, self.running, self.said = out, list[str](), list[str]()

    def put(self, value: object) -> object:
        return value

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **options: object) -> Any:
        return lambda play: SimpleNamespace(remote=self.begin)

    def begin(self, task: Any, shared: object) -> str:
        self.running.append(Path(task.folder).name)
        return self.running[-1]

    def cancel(self, task: str, force: bool = False) -> None:
        self.said.append(f"{'kill' if force else 'end'} {task}")
        if force:
            self.running.remove(task)

    def wait(self, tasks: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert [free(self.out / "locks" / task) for task in tasks] == [False] * len(tasks)
        if not self.said:
            raise OSError("no space left")
        return [each for each in tasks if each not in self.running], [each for each in tasks if each in self.running]


def test_tasks_have_ended_before_the_locks_of_their_cells_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = tmp_path / "matrix.toml", tmp_path / "out"
    file.write_text(matrix(rounds=2, seeds=2, attacks='["sign_flip"]'))
    nodes = Nodes(out)

    @contextmanager
    def cluster(address: str | None, cpus: int) -> Iterator[Nodes]:
        yield nodes

    monkeypatch.setattr(grid, "cluster", cluster)
    with pytest.raises(OSError, match="no space left"):
        run_matrix(file, out, runner="ray")
    assert nodes.running == []
    begun = [each.removeprefix("end ") for each in nodes.said[:2]]
    assert nodes.said == [*(f"end {each}" for each in begun), *(f"kill {each}" for each in begun)]
    assert [free(out / "locks" / each) for each in begun] == [True, True]
