"""``new``, ``check``, ``doctor``, completion, quiet and ``--verbose``, and errors of a plug-in on the command line."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from fedsim import doctor, registry, runtime
from fedsim.cli import app

SMALL = """
rounds = 2
[data]
clients = 6
[model]
name = "logistic"
[client]
per_round = 4
[adversary]
count = 2
attacks = ["sign_flip"]
[engine]
workers = 1
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A scenario in the working directory; what plug-ins register is gone afterwards."""
    for kind in registry.HOMES:
        registry.names(kind)
    monkeypatch.setattr(registry, "_parts", {kind: dict(parts) for kind, parts in registry._parts.items()})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.mark.parametrize("kind", ["attack", "defense", "observer", "optimizer"])
def test_what_new_writes_runs_and_is_checked_as_it_says(kind: str) -> None:
    made = call("new", kind, "my_part")
    assert made.exit_code == 0, made.stderr
    wrote, run, check = made.stdout.splitlines()
    assert wrote.split() == ["wrote", "my_part.py"]
    key = run.split("--set ")[1].strip("'")
    assert f"--plugin my_part.py --set '{key}'" in run
    done = call("run", "small.toml", "--plugin", "my_part.py", "--set", key, "--quiet", "--out", "run")
    assert done.exit_code == 0, done.stderr
    assert "my_part" in (Path("run") / "scenario.toml").read_text()
    checked = call(*check.removeprefix("check it").split()[1:])
    assert checked.exit_code == 0, checked.stdout
    assert checked.stdout.splitlines()[0] == f"{kind} 'my_part': {checked.stdout.split()[2]} checks, all well"
    again = call("new", kind, "my_part")
    assert again.exit_code == 1


WRONG = """
import torch
from attacks.attack import Attack

class Wrong(Attack):
    def craft(self, rows, ctx):
        return rows.neg_() + torch.randn_like(rows)
"""


def test_check_tells_faults_and_the_way_out() -> None:
    Path("wrong.py").write_text(WRONG)
    done = call("check", "wrong.py")
    assert done.exit_code == 1
    assert "  ✗ changes its input: craft changed the malicious rows in place\n    → Work on a copy" in done.stdout
    assert "  ✗ uses the global random state: a hook used torch's global generator\n    → Draw from" in done.stdout


def test_an_attack_that_reaches_too_far_stops_the_run_with_the_level_it_needs() -> None:
    Path("wrong.py").write_text(WRONG.replace("rows.neg_()", "ctx.honest_rows.mean(0)"))
    done = call("run", "small.toml", "--set", 'adversary.attacks=["wrong.py:Wrong"]', "--quiet")
    assert done.exit_code == 1
    (line,) = done.stderr.strip().splitlines()
    assert "(adversary.attacks[0]) reached for honest rows: given knowledge = 'colluding'" in line
    assert "accepted: adversary.knowledge = 'omniscient'" in line


def test_an_error_in_a_plug_in_is_one_line_that_says_where() -> None:
    Path("wrong.py").write_text(WRONG.replace("rows.neg_()", "rows.missing"))
    done = call("run", "small.toml", "--set", 'adversary.attacks=["wrong.py:Wrong"]', "--quiet")
    assert done.exit_code == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("fedsim: AttributeError in line 7 of wrong.py, in craft: 'Tensor' object has no attribute")
    with pytest.raises(AttributeError, match="missing"):
        call("run", "small.toml", "--set", 'adversary.attacks=["wrong.py:Wrong"]', "--verbose", "--quiet")


NOISY = """
import logging
import warnings
from attacks.attack import Attack

class Noisy(Attack):
    def craft(self, rows, ctx):
        logging.getLogger("flwr").warning("noise of flower")
        warnings.warn_explicit("noise of torch", UserWarning, "torch/nn.py", 1, module="torch.nn")
        warnings.warn("said by the plug-in")
        return -rows
"""


def test_a_run_is_quiet_and_verbose_is_not() -> None:
    Path("noisy.py").write_text(NOISY)
    command = [sys.executable, "-m", "fedsim", "run", "small.toml", "--set", 'adversary.attacks=["noisy.py:Noisy"]']
    said = {}
    for flags in ([], ["--verbose"]):
        done = subprocess.run([*command, "--out", f"run{len(flags)}", *flags], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said[bool(flags)] = done.stdout + done.stderr
    assert "noise of" not in said[False]
    assert "said by the plug-in" in said[False]
    assert "noise of flower" in said[True]
    assert "noise of torch" in said[True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "heard"),
    [
        (["run", "--set", 'engine={name = "ray", workers = 1}'], ("noise of flower", "Started a local Ray instance")),
        (["bench", "--jobs", "2"], ("noise of flower", "noise of torch")),
    ],
)
def test_so_it_is_where_other_processes_train(command: list[str], heard: tuple[str, ...]) -> None:
    pytest.importorskip("ray")
    Path("noisy.py").write_text(NOISY)
    given = [sys.executable, "-m", "fedsim", *command, "small.toml", "--set", 'adversary.attacks=["noisy.py:Noisy"]']
    quiet = subprocess.run([*given, "--out", "quiet"], capture_output=True, text=True)
    assert quiet.returncode == 0, quiet.stderr
    for word in ("noise of", "Ray", "ResourceWarning"):
        assert word not in quiet.stdout + quiet.stderr
    loud = subprocess.run([*given, "--out", "loud", "--verbose"], capture_output=True, text=True)
    assert loud.returncode == 0, loud.stderr
    for noise in heard:
        assert noise in loud.stdout + loud.stderr


OURS = re.compile(r"round \d+/\d+ |\[\d+/\d+\] seed \d+: finished$")
"""What fedsim itself writes on the error stream of a run and of a benchmark that go well."""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["run"], id="run"),
        pytest.param(["bench", "--jobs", "2", "--set", "matrix.seed=[0, 1]"], id="bench", marks=pytest.mark.slow),
        pytest.param(["bench", "--runner", "ray", "--set", "matrix.seed=[0, 1]"], id="ray", marks=pytest.mark.slow),
    ],
)
def test_nothing_but_fedsims_own_lines_is_on_the_screen(command: list[str]) -> None:
    """No plug-in plants a message here: what is heard is what libraries say of their own accord."""
    if "ray" in command:
        pytest.importorskip("ray")
    given = [sys.executable, "-m", "fedsim", *command, "small.toml", "--out", "plain"]
    done = subprocess.run(given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines
    assert [line for line in lines if not OURS.match(line)] == []
    for word in ("Warning", "WARNING", "INFO", "Deprecat"):
        assert word not in done.stdout


def test_quiet_ends_where_it_was_begun() -> None:
    level = logging.getLogger("flwr").level
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with runtime.noise(False):
            warnings.warn_explicit("one", UserWarning, "torch/nn.py", 1, module="torch.nn")
        warnings.warn_explicit("two", UserWarning, "torch/nn.py", 1, module="torch.nn")
    assert [str(each.message) for each in heard] == ["two"]
    assert logging.getLogger("flwr").level == level
    assert runtime.verbose is False


def test_doctor_looks_at_everything_and_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr(doctor, "CLUSTER", tmp_path / "no cluster")
    done = call("doctor")
    assert done.exit_code == 0, done.stdout
    lines = {line[7:27].strip(): line for line in done.stdout.splitlines()}
    looked = {
        "python",
        "packages",
        "processor",
        "threads",
        "plug-ins",
        "data: digits",
        "data: mnist",
        "ray",
        "self test",
    }
    assert looked <= set(lines)
    assert f"torch {__import__('torch').__version__.split('+')[0]}" in lines["packages"]
    assert lines["data: mnist"].startswith("note")
    assert "make data" in lines["data: mnist"]
    assert "the same bits" in lines["self test"]


def test_doctor_says_where_large_data_sets_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "cache" / "mapped"
    monkeypatch.setenv("FEDSIM_MAPPED", str(place))
    assert doctor.memory().state == doctor.GOOD
    assert doctor.memory().said.endswith(f"{place}, once for all processes: none so far")
    place.mkdir(parents=True)
    (place / "one.data").write_bytes(bytes(2_000_000))
    assert doctor.memory().said.endswith("1 of them, 2 MB")
    monkeypatch.setenv("FEDSIM_MAPPED", str(place / "one.data" / "mapped"))
    assert doctor.memory().state == doctor.NOTE
    assert "FEDSIM_MAPPED names another folder" in doctor.memory().said
    monkeypatch.setenv("FEDSIM_MAPPED", "off")
    assert doctor.memory().state == doctor.NOTE


def test_doctor_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.ray("127.0.0.1:1").state == doctor.FAULT
    assert "does not answer" in doctor.ray("127.0.0.1:1").said
    monkeypatch.setattr(doctor, "CLUSTER", tmp_path / "no cluster")
    assert "ray start --head" in doctor.ray("auto").said
    monkeypatch.setattr(doctor, "requires", lambda name: ["numpy>=99", "nothing-of-that-name>=1"])
    faults = [line.said for line in doctor.versions() if line.state == doctor.FAULT]
    assert len(faults) == 1
    assert "accepted: >=99" in faults[0]
    assert "nothing-of-that-name is missing" in faults[0]
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "8")
    assert doctor.threads().state == doctor.NOTE
    monkeypatch.setattr(doctor, "SELF_TEST", {"rounds": 0})
    assert doctor.self_test().state == doctor.FAULT


@pytest.mark.parametrize(
    ("words", "position", "expected"),
    [("fedsim ben", 1, "bench"), ("fedsim run quick", 2, "quickstart"), ("fedsim list def", 2, "defense")],
)
def test_a_shell_completes(words: str, position: int, expected: str) -> None:
    completing = {"_FEDSIM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    code = "from fedsim.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | completing, capture_output=True, text=True)
    assert expected in done.stdout.split(), done.stderr


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in call("--help").stdout
    assert isinstance(app, typer.Typer)
