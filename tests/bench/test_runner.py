"""Runners that share a folder: killed ones lose nothing, no cell is played twice, what fails is tried once more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.bench.runner import run_matrix
from fedsim.data.mapped import LEAST

sys.path.insert(0, str(Path(__file__).parent))
from matrices import matrix

ROUNDS = 60
RUNNERS = """
import os, sys, traceback
import fedsim.bench.work, fedsim.grids.local, fedsim.report.page, torch
torch.set_num_threads(1)
from fedsim.bench.runner import run_matrix
file, out, count = sys.argv[1:]
for _ in range(int(count)):
    if os.fork() == 0:
        try:
            run_matrix(file, out)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
ended = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(int(count))]
sys.exit(any(status > 0 for status in ended))
"""


def ask(out: Path, query: str) -> list[tuple[Any, ...]]:
    """What the store says."""
    if not (out / "results.sqlite").exists():
        return []
    connection = sqlite3.connect(out / "results.sqlite", timeout=60)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not true():
        assert process.poll() is None, "the runners have ended"
        time.sleep(0.01)


def kill(out: Path, count: int, process: subprocess.Popen[bytes]) -> dict[str, bytes]:
    """SIGKILL runners, each in the middle of a cell; folder → what it had written of its rounds.

    All are stopped while it is looked who is where, so that those that are killed were in a cell for certain.
    """
    left: dict[str, bytes] = {}
    killed = 0
    while killed < count:
        until(lambda: bool(playing(out)), process)
        stopped = playing(out)
        for pid, _ in stopped:
            send(pid, signal.SIGSTOP)
        for pid, folder in playing(out):
            path = out / folder / "state.json"
            state = json.loads(path.read_text()) if path.exists() else {"round": ROUNDS}
            if (pid, folder) in stopped and state["round"] < ROUNDS and killed < count:
                length = state["lengths"]["rounds.jsonl"]
                left[folder] = (out / folder / "rounds.jsonl").read_bytes()[:length]
                send(pid, signal.SIGKILL)
                killed += 1
                while alive(pid):
                    time.sleep(0.005)
        for pid, _ in stopped:
            send(pid, signal.SIGCONT)
        time.sleep(0.02)
    return left


def send(pid: int, what: signal.Signals) -> None:
    """A signal to a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)


def playing(out: Path) -> list[tuple[int, str]]:
    """Processes in the middle of a cell, and its folder."""
    query = "SELECT pid, folder FROM plays JOIN cells USING (key) WHERE plays.state = 'running'"
    return [(pid, folder) for pid, folder in ask(out, query) if alive(pid)]


def in_rounds(out: Path) -> list[str]:
    """Folders of the cells that are being played and have a round behind them."""
    return [folder for _, folder in playing(out) if (out / folder / "state.json").exists()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_killed_runners_lose_no_cell_and_none_runs_twice(tmp_path: Path) -> None:
    """Five runners: one is killed, then three of the other four; the last one finishes all; nothing is left to do."""
    file, out = tmp_path / "matrix.toml", tmp_path / "out"
    file.write_text(matrix(rounds=ROUNDS))
    process = subprocess.Popen([sys.executable, "-c", RUNNERS, str(file), str(out), "5"])
    begun = kill(out, 1, process)
    begun |= kill(out, 3, process)
    assert process.wait(300) == 0
    cells = ask(out, "SELECT key, folder, state, digest FROM cells")
    assert len(cells) == 8
    assert {state for _, _, state, _ in cells} == {"finished"}
    plays = ask(out, "SELECT folder, plays.state FROM plays JOIN cells USING (key)")
    assert sorted(folder for folder, state in plays if state == "finished") == sorted(
        folder for _, folder, _, _ in cells
    )
    assert len([state for _, state in plays if state == "died"]) == 4
    assert {state for _, state in plays} == {"finished", "died"}
    for folder, lines in begun.items():
        assert lines.count(b"\n") >= 1
        # Timings included: these rounds were not played again.
        assert (out / folder / "rounds.jsonl").read_bytes().startswith(lines)
    for _, folder, _, digest in cells:
        rounds = [json.loads(line)["round"] for line in (out / folder / "rounds.jsonl").read_text().splitlines()]
        assert rounds == list(range(ROUNDS + 1))
        assert json.loads((out / folder / "summary.json").read_text())["digest"] == digest
    counted = ask(out, "SELECT key, count(*), max(round) FROM rounds GROUP BY key")
    assert [(count, last) for _, count, last in counted] == [(ROUNDS + 1, ROUNDS)] * 8
    assert [cell.state for cell in run_matrix(file, out)] == ["skipped"] * 8
    assert len(ask(out, "SELECT id FROM plays")) == len(plays)
    undisturbed = fedsim.run(run_matrix(file, out)[0].scenario)
    assert undisturbed.digest == ask(out, f"SELECT digest FROM cells WHERE folder = '{cells[0][1]}'")[0][0]


def test_processes_give_the_bits_of_one_and_survive_one_that_dies(tmp_path: Path) -> None:
    """Two processes; an attack that kills its process fails alone, after two tries."""
    (tmp_path / "deadly.py").write_text(
        '"""Kills."""\nimport os, signal\nfrom attacks.attack import Attack\n\n'
        'class Deadly(Attack):\n    """Kills its process."""\n\n'
        "    def craft(self, rows, ctx):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    file = tmp_path / "matrix.toml"
    file.write_text(matrix(attacks=f'["sign_flip"], ["{tmp_path / "deadly.py"}:Deadly"]', defenses='["median"]'))
    told: list[str] = []
    cells = run_matrix(
        file,
        tmp_path / "two",
        progress=lambda cell, line: told.append(cell.state) if line is None else None,
        jobs=2,
    )
    assert [cell.state for cell in cells] == ["finished", "finished", "failed", "failed"]
    assert all("process died" in cell.error for cell in cells[2:])
    plays = ask(tmp_path / "two", "SELECT state, count(*) FROM plays GROUP BY state ORDER BY state")
    assert plays == [("died", 4), ("finished", 2)]
    assert told.count("finished") == 2
    rows = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert [row["state"] for row in rows] == ["finished", "finished", "failed", "failed"]
    for cell in cells[:2]:
        assert cell.row["digest"] == fedsim.run(cell.scenario).digest
        assert json.loads((cell.folder / "run.json").read_text())["engine"]["workers"] >= 1


def test_what_fails_once_is_tried_again_after_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.bench import work

    file = tmp_path / "matrix.toml"
    file.write_text(matrix(rounds=1, attacks='["sign_flip"]'))
    played: list[tuple[str, int]] = []
    real = work.run

    def shaky(scenario: Any, folder: Path, **given: Any) -> Any:
        which = (scenario.server.defenses[0].name, scenario.seed)
        played.append(which)
        if which == ("fedavg", 0) or (which == ("fedavg", 1) and played.count(which) == 1):
            raise RuntimeError("a bad day")
        return real(scenario, folder, **given)

    monkeypatch.setattr(work, "run", shaky)
    told: list[tuple[int, str]] = []
    cells = run_matrix(
        file,
        tmp_path / "out",
        progress=lambda cell, line: told.append((cell.number, cell.state)) if line is None else None,
    )
    assert [state for number, state in told if number == 1] == ["running", "waiting", "running", "failed"]
    assert [cell.state for cell in cells] == ["failed", "finished", "finished", "finished"]
    assert cells[0].error == "RuntimeError: a bad day"
    fresh = [("fedavg", 0), ("fedavg", 1), ("median", 0), ("median", 1)]
    assert played == [*fresh, ("fedavg", 0), ("fedavg", 1)]
    monkeypatch.setattr(work, "run", real)
    assert [cell.state for cell in run_matrix(file, tmp_path / "out")] == ["finished", *["skipped"] * 3]


def test_missing_data_fails_its_cells_alone(tmp_path: Path) -> None:
    file = tmp_path / "matrix.toml"
    file.write_text(
        matrix(rounds=1, seeds=1, attacks='["sign_flip"]', defenses='["fedavg"]')
        + '"data.dataset" = ["digits", { name = "idx", folder = "nowhere" }]\n'
    )
    cells = run_matrix(file, tmp_path / "out")
    assert [cell.state for cell in cells] == ["finished", "failed"]
    assert "nowhere" in cells[1].error


def test_a_folder_that_was_removed_is_played_again(tmp_path: Path) -> None:
    import shutil

    file = tmp_path / "matrix.toml"
    file.write_text(matrix(rounds=1, attacks='["sign_flip"]', defenses='["fedavg"]'))
    first = run_matrix(file, tmp_path / "out")
    shutil.rmtree(first[0].folder)
    assert [cell.state for cell in run_matrix(file, tmp_path / "out")] == ["finished", "skipped"]
    (tmp_path / "out" / "results.sqlite").unlink()
    assert [cell.state for cell in run_matrix(file, tmp_path / "out")] == ["skipped", "skipped"]
    found = ask(tmp_path / "out", "SELECT state, digest FROM cells ORDER BY digest")
    assert found == sorted(("finished", cell.row["digest"]) for cell in first)


COUNTED = '''
"""Digits that note who imports them and who reads them."""
import os
from pathlib import Path

from fedsim import registry
from fedsim.data.reading import read_once


def note(what):
    with Path({told!r}).open("a") as file:
        file.write(f"{{what}} {{os.getpid()}}\\n")


note("import")


class Counted:
    """Digits, counted."""

    def info(self):
        return registry.make("dataset", "digits").info()

    def load(self):
        return read_once("counted", self.read)

    def read(self):
        note("read")
        return registry.make("dataset", "digits").load()
'''


def counted(folder: Path, **options: Any) -> tuple[list[int], list[int]]:
    """Processes that imported the plug-in, and those that read its data, while six cells of it were played."""
    plugin, told, file = folder / "counted.py", folder / "told", folder / "matrix.toml"
    plugin.write_text(COUNTED.format(told=str(told)))
    file.write_text(matrix(rounds=1, seeds=3, attacks='["sign_flip"]'))
    cells = run_matrix(file, folder / "out", [f'data.dataset="{plugin}:Counted"'], **options)
    assert [cell.state for cell in cells] == ["finished"] * 6, [cell.error for cell in cells]
    lines = [line.split() for line in told.read_text().splitlines()]
    imported, read = ([int(pid) for what, pid in lines if what == kind] for kind in ("import", "read"))
    return imported, read


def test_processes_share_one_reading_and_one_import(tmp_path: Path) -> None:
    """The caller reads for the keys; the process that forks the players reads once for all of them."""
    imported, read = counted(tmp_path, jobs=2)
    assert len(imported) == len(set(imported)) == 2
    assert read == imported
    assert os.getpid() in read
    players = {pid for (pid,) in ask(tmp_path / "out", "SELECT pid FROM plays")}
    assert not players & set(read)


MAPPED = '''
"""Any data set in an .npz file; notes who decodes it, and whether who has it has it mapped."""
import os
from pathlib import Path

from fedsim import registry
from fedsim.data import npz

decoded = npz.dataset_of


def note(what):
    with Path({told!r}).open("a") as file:
        file.write(f"{{what}} {{os.getpid()}}\\n")


def dataset_of(*arrays, **told):
    note("decode")
    return decoded(*arrays, **told)


npz.dataset_of = dataset_of


class Mapped:
    """An .npz file, watched."""

    path: str

    def info(self):
        return registry.make("dataset", "npz", path=self.path).info()

    def load(self):
        data = registry.make("dataset", "npz", path=self.path).load()
        note("map" if {mapped!r} in Path("/proc/self/maps").read_text() else "copy")
        return data
'''


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at processes through /proc")
def test_processes_map_one_large_data_set_that_is_decoded_once(tmp_path: Path) -> None:
    """The caller decodes, for the keys; who plays cells has the pages of its file, as all others have."""
    plugin, told, file, mapped = (tmp_path / name for name in ("mapped.py", "told", "matrix.toml", "mapped"))
    draw = np.random.default_rng(0)
    inputs, targets = draw.random((4200, 1000), np.float32), draw.integers(0, 3, 4200)
    assert inputs.nbytes >= LEAST
    np.savez(tmp_path / "large.npz", x_train=inputs, y_train=targets, x_test=inputs[:50], y_test=targets[:50])
    plugin.write_text(MAPPED.format(told=str(told), mapped=str(mapped)))
    file.write_text(matrix(rounds=1, attacks='["sign_flip"]'))
    command = [sys.executable, "-m", "fedsim", "bench", str(file), "--out", str(tmp_path / "out"), "--jobs", "2"]
    dataset = f'data.dataset={{ name = "{plugin}:Mapped", path = "{tmp_path / "large.npz"}" }}'
    settings = os.environ | {"FEDSIM_MAPPED": str(mapped)}
    done = subprocess.run([*command, "--set", dataset], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in told.read_text().splitlines()]
    assert [what for what, _ in lines].count("decode") == 1
    assert "copy" not in {what for what, _ in lines}
    players = {pid for (pid,) in ask(tmp_path / "out", "SELECT pid FROM plays")}
    assert players
    assert players <= {int(pid) for what, pid in lines if what == "map"}
    assert [each.suffix for each in mapped.iterdir()] == [".data"]


@pytest.mark.slow
def test_a_cluster_reads_once_and_imports_once_a_process(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    imported, read = counted(tmp_path, runner="ray")
    assert read == [os.getpid()]
    assert len(imported) == len(set(imported))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_ctrl_c_and_a_scheduler_end_after_a_round_and_the_printed_command_goes_on(
    tmp_path: Path, number: int, runner: str
) -> None:
    if runner == "ray":
        pytest.importorskip("ray")
    file, out = tmp_path / "matrix.toml", tmp_path / "out"
    file.write_text(matrix(rounds=2000, attacks='["sign_flip"]'))
    command = [sys.executable, "-m", "fedsim", "bench", str(file), "--out", str(out), "--jobs", "2", "--quiet"]
    command += ["--runner", "ray"] if runner == "ray" else []
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    until(lambda: len(in_rounds(out)) == 2, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"go on with: fedsim bench {file} --out {out} --jobs 2" in said.decode()
    assert not playing(out)
    assert ask(out, "SELECT DISTINCT state FROM plays") == [("interrupted",)]
    assert ask(out, "SELECT DISTINCT state FROM cells") == [("waiting",)]
    begun = [out / folder for (folder,) in ask(out, "SELECT folder FROM cells JOIN plays USING (key)")]
    assert len(begun) == 2
    for folder in begun:  # no line behind the last whole round
        state = json.loads((folder / "state.json").read_text())
        assert state["round"] < 2000
        assert (folder / "rounds.jsonl").stat().st_size == state["lengths"]["rounds.jsonl"]


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    file = tmp_path / "matrix.toml"
    file.write_text(matrix(seeds=1))
    cells = run_matrix(file, tmp_path / "ray", runner="ray")
    assert [cell.state for cell in cells] == ["finished"] * 4
    assert all(cell.row["digest"] == fedsim.run(cell.scenario).digest for cell in cells)
    assert cells[1].row["floor"] is not None
    assert [cell.state for cell in run_matrix(file, tmp_path / "ray")] == ["skipped"] * 4
