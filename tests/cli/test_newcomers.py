"""What a newcomer gets wrong is told in one line: what, where, and what is accepted; never a traceback."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim import doctor, registry
from fedsim.cli import app

SMALL = """
rounds = 1
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
FILES = {
    "small.toml": SMALL,
    "broken.toml": "rounds = = 2\n",
    "no_values.toml": SMALL + "[matrix]\nseed = []\n",
    "twice.toml": SMALL + "[matrix]\nseed = [1, 2, 1]\n",
    "cells.toml": SMALL + "[matrix]\nseed = [1, 2]\n",
    "syntax.py": "def f(:\n    pass\n",
    "imports.py": "import nothing_like_it\n",
    "no_parts.py": "x = 1\n",
    "a_file": "x",
}
DEFENSE = 'server.defenses=["krumm"]'
ATTACK = 'adversary.attacks=["syntax.py:Mine"]'

CALLS = [
    (["run", "nothere.toml"], 2, ["nothere.toml: FILE", "accepted: a TOML file"]),
    (["run", "quickstar"], 2, ["did you mean 'quickstart'?"]),
    (["run", "empty"], 2, ["empty (a folder)", "accepted: a TOML file"]),
    (["run", "broken.toml"], 2, ["broken.toml", "accepted: TOML", "line 1"]),
    (["run", "cells.toml"], 2, ["matrix", "fedsim bench"]),
    (["run", "small.toml", "--set", "client.epoch=3"], 2, ["client.epoch", "did you mean 'epochs'?"]),
    (["run", "small.toml", "--set", "rounds=many"], 2, ["rounds: given 'many'", "accepted: int"]),
    (["run", "small.toml", "--set", "client.per_round=40"], 2, ["client.per_round: given 40", "data.clients = 6"]),
    (["run", "small.toml", "--set", DEFENSE], 2, ["server.defenses[0].name", "did you mean 'krum'?"]),
    (["run", "small.toml", "--set", "model.name=resnet99"], 2, ["model.name", "did you mean 'resnet18'?"]),
    (["run", "small.toml", "--set", "rounds"], 2, ["--set: given 'rounds'", "accepted: KEY=VALUE"]),
    (["run", "small.toml", "--set", "rounds.x=3"], 2, ["rounds.x: given 3", "'rounds' is none"]),
    (["run", "small.toml", "--set", "engine.device=gpu"], 2, ["engine.device", "accepted: cpu"]),
    (["run", "small.toml", "--set", "data.dataset={name='mnist', folder='/nowhere'}"], 1, ["/nowhere", "make data"]),
    (["run", "small.toml", "--seed", "-1"], 2, ["seed: given -1", "accepted: int ≥ 0"]),
    (["run", "small.toml", "--plugin", "nothere.py"], 2, ["plugins[0]", "there is no file nothere.py"]),
    (["run", "small.toml", "--plugin", "syntax.py"], 2, ["plugins[0]", "SyntaxError in line 1"]),
    (["run", "small.toml", "--plugin", "imports.py"], 2, ["line 1 of imports.py", "nothing_like_it"]),
    (["run", "small.toml", "--plugin", "no_parts.py"], 2, ["registers no part", "@attack"]),
    (["run", "small.toml", "--set", ATTACK], 2, ["adversary.attacks[0].name", "SyntaxError in line 1"]),
    (["run", "small.toml", "--tracker", "wandb"], 1, ["--tracker: given 'wandb'", "mlflow, tensorboard"]),
    (["run", "small.toml", "--out", "a_file"], 1, ["a_file: cannot be written", "accepted: a folder"]),
    (["run", "small.toml", "--out", "done"], 1, ["done", "--resume"]),
    (["bench", "no_values.toml"], 2, ["matrix.seed: given []", "accepted: a list of one value or more"]),
    (["bench", "twice.toml"], 2, ["matrix.seed", "1 is there twice"]),
    (["bench", "cells.toml", "--set", "seed=3"], 2, ["seed: given '3'; accepted", "[matrix]", "matrix.seed=["]),
    (["bench", "small.toml", "--out", "a_file/x"], 1, ["a_file/x: cannot be written", "accepted: a folder"]),
    (["results", "nowhere"], 1, ["nowhere: holds no results", "fedsim bench"]),
    (["results", "done"], 1, ["done: holds no results (a single run: fedsim report done)", "fedsim bench"]),
    (["run", "small.toml", "--set", 'adversary.attacks=["mine"]'], 2, ["given 'mine'", "FILE.py:CLASS", "--plugin"]),
    (["results", "empty"], 1, ["empty: holds no results", "fedsim bench"]),
    (["report", "nowhere"], 1, ["nowhere holds no run: there is no such folder", "accepted:"]),
    (["report", "empty"], 1, ["empty holds no run: there is no rounds.jsonl", "accepted:"]),
    (["report", "done", "--out", "a_file/x.html"], 1, ["a_file/x.html cannot be written"]),
    (["compare", "done", "begun"], 1, ["begun", "not finished"]),
    (["merge", "empty", "--out", "merged"], 1, ["empty: holds no results"]),
    (["leaderboard", "empty"], 1, ["empty: holds no results", "fedsim bench"]),
    (["verify", "gnss"], 1, ["verify: given 'gnss'", "did you mean 'gns'?"]),
    (["redteam", "small.toml", "--defense", "krum"], 1, ["needs Optuna", "pip install"]),
    (["list", "attak"], 1, ["unknown kind 'attak'", "did you mean 'attack'?"]),
    (["list", "attack", "badnet"], 1, ["unknown attack 'badnet'", "did you mean 'badnets'?"]),
    (["new", "attack", "3-x"], 1, ["name: given '3-x'", "accepted:"]),
    (["check", "nothere.py"], 1, ["there is no file nothere.py"]),
    (["check", "a_file"], 1, ["a_file", "accepted:", ".py"]),
    (["check", "sign_flip"], 1, ["given 'sign_flip'; accepted: a file of your own", "suite checks its own attack"]),
    (["check", "nosuch"], 1, ["there is no file nosuch", "accepted: FILE.py"]),
    (["new", "defence", "x"], 1, ["kind: given 'defence'", "did you mean 'defense'?"]),
    (["bench", "quick"], 2, ["did you mean 'bench/quick'?"]),
    (["audit", "small.toml"], 1, ["claims no privacy", "accepted:"]),
]

REFUSED = [
    (["bench", "small.toml", "--jobs", "-1"], ["--jobs", "-1"]),
    (["bench", "small.toml", "--runner", "spark"], ["--runner", "accepted: local, ray"]),
    (["bench", "small.toml", "--address", "127.0.0.1:1"], ["--address", "accepted: with --runner ray"]),
    (["run", "small.toml", "--seed", "x"], ["--seed", "not a valid integer"]),
    (["run", "small.toml", "--rounds", "3"], ["No such option '--rounds'", "accepted:", "by --set rounds=3"]),
    (["run", "small.toml", "--rounds=3"], ["by --set rounds=3"]),
    (["run", "small.toml", "--per-round", "4"], ["by --set client.per_round=4"]),
    (["run", "--client.optimizer.lr", "0.5", "small.toml"], ["by --set client.optimizer.lr=0.5"]),
    (["bench", "cells.toml", "--clients", "--quiet"], ["by --set data.clients=…"]),
    (["redteam", "small.toml", "--workers", "2"], ["by --set engine.workers=2"]),
    (["run", "small.toml", "--qiet"], ["No such option '--qiet'", "--quiet"]),
    (["results", "cells", "--rounds", "3", "--epochs", "1"], ["No such option '--epochs'."]),
]
"""Told by the parser: usage, and a last line with the reason."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that are wrong, a run that is done, and one that was begun."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(app, ["run", "small.toml", "--quiet", "--out", "done"], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
    (folder / "begun").mkdir()
    (folder / "begun" / "run.json").write_bytes((folder / "done" / "run.json").read_bytes())
    (folder / "begun" / "summary.json").write_text('{"finished": false}')
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in registry.HOMES:
        registry.names(kind)
    monkeypatch.setattr(registry, "_parts", {kind: dict(parts) for kind, parts in registry._parts.items()})
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, "optuna", None)


@pytest.mark.parametrize(("call", "status", "said"), CALLS, ids=[" ".join(call) for call, *_ in CALLS])
def test_a_mistake_is_told_in_one_line(call: list[str], status: int, said: list[str]) -> None:
    done = CliRunner().invoke(app, call, catch_exceptions=False)
    assert done.exit_code == status, done.output
    (line,) = done.stderr.splitlines()
    for words in said:
        assert words in line


@pytest.mark.parametrize(("call", "said"), REFUSED, ids=[" ".join(call) for call, _ in REFUSED])
def test_a_wrong_option_is_told_with_the_usage(call: list[str], said: list[str]) -> None:
    done = CliRunner().invoke(app, call, catch_exceptions=False)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("Usage:")
    for words in said:
        assert words in done.stderr.splitlines()[-1]


def test_help_shows_no_markup() -> None:
    said = CliRunner().invoke(app, ["bench", "--help"]).stdout
    assert "[required]" in said
    assert "[default: local]" in said
    assert "\\" not in said


def test_a_cluster_that_does_not_answer_is_told_with_a_way_out() -> None:
    pytest.importorskip("ray")
    call = ["bench", "small.toml", "--runner", "ray", "--address", "127.0.0.1:1", "--out", "on_ray"]
    done = CliRunner().invoke(app, call, catch_exceptions=False)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert "--address = '127.0.0.1:1'; accepted: a cluster that can be reached" in line
    assert "ray start --head" in line


ADDRESS = "accepted: HOST:PORT of a running cluster (`ray start --head` starts one and says it), 'auto'"


@pytest.mark.parametrize("address", ["nowhere", "nowhere:", "host:port", "127.0.0.1:99999", ":1"])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (["bench", "small.toml", "--runner", "ray", "--out", "no_address", "--address"], "--address = "),
        (["run", "small.toml", "--out", "no_run", "--set", "engine.name=ray", "--set"], "engine.address = "),
    ],
)
def test_what_is_no_address_is_told_with_what_is(call: list[str], name: str, address: str) -> None:
    pytest.importorskip("ray")
    last = address if name.startswith("--") else f"engine.address={address}"
    done = CliRunner().invoke(app, [*call, last], catch_exceptions=False)
    assert done.exit_code == 1, done.output
    (line,) = done.stderr.splitlines()
    assert f"given {name}'{address}'; {ADDRESS}" in line
    assert "none, which starts one here" in line


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:99999", "local"])
def test_the_doctor_says_what_is_an_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    found = doctor.ray(address)
    assert found.state == doctor.FAULT
    assert f"--address: given '{address}'; {ADDRESS}" in found.said
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"RAY_ADDRESS: given '{address}'" in doctor.ray().said
    assert doctor.ray().state == doctor.NOTE


def test_a_cluster_that_ended_without_a_word_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address is left on this machine, where ``auto`` finds it; Ray would try it for minutes."""
    services = pytest.importorskip("ray._private.services")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: set())
    monkeypatch.setattr(services, "find_bootstrap_address", lambda place: "127.0.0.1:1")
    call = ["bench", "small.toml", "--runner", "ray", "--address", "auto", "--out", "on_ray"]
    done = CliRunner().invoke(app, call, catch_exceptions=False)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert "'auto'; accepted: a cluster that can be reached (at " in line
    assert "ray start --head" in line


def test_what_the_system_says_of_a_file_is_no_traceback() -> None:
    call = ["bench", "cells.toml", "--out", "cells", "--jobs", "1", "--quiet"]
    assert CliRunner().invoke(app, call, catch_exceptions=False).exit_code == 0
    done = CliRunner().invoke(app, ["results", "cells", "--csv", "--out", "a_file/x.csv"], catch_exceptions=False)
    assert done.exit_code == 1
    said = "accepted: a path through folders, a part of this one is a file"
    assert done.stderr == f"fedsim: a_file/x.csv: Not a directory; {said}\n"
    for out, said in (("empty", "accepted: a file, this is a folder"), ("none/x.csv", "make the folder first")):
        for form in ("--csv", "--json", "--parquet"):
            done = CliRunner().invoke(app, ["results", "cells", form, "--out", out], catch_exceptions=False)
            assert done.exit_code == 1, done.output
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"fedsim: {out}: "), (form, line)
            assert said in line, (form, line)
    done = CliRunner().invoke(app, ["merge", "cells", "--out", "a_file"], catch_exceptions=False)
    assert done.exit_code == 1
    assert done.stderr.startswith("fedsim: a_file: cannot be written")
    assert "accepted: a folder" in done.stderr


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "a disk with space left"),
        (errno.EACCES, "a place that you may read and write"),
        (errno.EMFILE, "a path that works; --verbose"),
    ],
)
def test_what_the_system_refuses_is_told_with_what_now(number: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fedsim.bench.results", refuse)
    done = CliRunner().invoke(app, ["results", "done"], catch_exceptions=False)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"fedsim: {os.strerror(number)}; accepted: {said}")
