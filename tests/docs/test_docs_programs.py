"""The tutorials with programs beside fedsim: their terminals run, their commands end well.

A block with the title of a terminal runs until the page ends, with ports that nobody uses in place of the page's; other
titles are files, other ``sh`` blocks are commands.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r'```(\w+)(?: title="([^"]+)")?\n(.*?)```', re.DOTALL)
PORT = "6380"
PATIENCE = 1200
"""Seconds after which a command counts as hanging; more than the ``wait`` that a page gives its nodes."""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def until_open(port: str, program: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for a program that opens a port, giving the processor to it."""
    for _ in range(600):
        assert program.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                return
        subprocess.run([sys.executable, "-c", ""], check=True)
    raise AssertionError(f"nobody listens on {port}: {log.read_text()}")


@contextmanager
def terminal(commands: str, port: str, folder: Path) -> Iterator[None]:
    """Commands that run beside the page, with all that they start."""
    log = folder / f"terminal-{port}.log"
    with log.open("wb") as output:
        program = subprocess.Popen(
            ["bash", "-c", commands], cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
        try:
            until_open(port, program, log)
            yield
        finally:
            os.killpg(program.pid, signal.SIGTERM)
            try:
                program.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(program.pid, signal.SIGKILL)
                program.wait()


def test_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    port = free_port()
    text = (TUTORIALS / "cluster.md").read_text("utf-8").replace(PORT, port)
    said: dict[str, str] = {}
    with ExitStack() as running:
        for language, title, content in BLOCK.findall(text):
            if title.startswith("terminal"):
                running.enter_context(terminal(content, port, tmp_path))
            elif title:
                (tmp_path / title).write_text(content, "utf-8")
            elif language == "sh":
                for command in content.splitlines():
                    done = subprocess.run(
                        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
                    )
                    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}{done.stderr[-5000:]}"
                    said[command] = done.stdout + done.stderr
    (reached,) = [text for command, text in said.items() if command.startswith("fedsim doctor")]
    assert f"the cluster at 127.0.0.1:{port} answers" in reached
    for place in ("here", "there"):
        (played,) = [text for command, text in said.items() if command.endswith(f"--out runs/{place}")]
        assert f"4 finished in runs/{place}" in played
    (compared,) = [text for command, text in said.items() if command.startswith("fedsim compare")]
    assert "same, compared bit for bit" in compared


CHECKOUT = ("pyproject.toml", "README.md", "LICENSE", "fedsim", "attacks", "strategies", "scenarios")


def test_a_deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SuperLink and three SuperNodes, processes of their own on the loopback interface."""
    home, checkout = tmp_path / "home", tmp_path / "checkout"
    home.mkdir()
    checkout.mkdir()
    for name in CHECKOUT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, checkout / name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("FLWR_HOME", str(home / ".flwr"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    text = (TUTORIALS / "deployment.md").read_text("utf-8")
    ports = {port: free_port() for port in sorted(set(re.findall(r"80\d\d", text)))}
    text = re.sub(r"80\d\d", lambda found: ports[found.group()], text)
    said = ""
    with ExitStack() as running:
        opened = iter(ports.values())
        for language, title, content in BLOCK.findall(text):
            if title.startswith("terminal"):
                running.enter_context(terminal(content, next(opened), checkout))
            elif title:
                file = home / title.removeprefix("~/") if title.startswith("~/") else checkout / title
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content, "utf-8")
            elif language == "sh":
                for command in content.splitlines():
                    done = subprocess.run(
                        ["bash", "-c", command], cwd=checkout, capture_output=True, text=True, timeout=PATIENCE
                    )
                    logs = "".join(each.read_text()[-4000:] for each in sorted(checkout.glob("terminal-*.log")))
                    said += f"{command}\n{done.stdout[-5000:]}{done.stderr[-5000:]}{logs}"
                    assert done.returncode == 0, said
    run = checkout / "runs" / "deployed"
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    # Flower's command ends well also where the run did not.
    assert [line["round"] for line in lines] == [0, 1, 2], said
    assert [line["cohort"] for line in lines[1:]] == [[0, 1, 2]] * 2
    assert [len(line["malicious"]) for line in lines[1:]] == [1, 1]
    assert lines[-1]["accuracy"] > lines[0]["accuracy"]
    assert (run / "report.html").is_file()
