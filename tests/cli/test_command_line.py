"""The command line: what it prints, where, and its exit statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import fedsim
from fedsim.cli import app
from fedsim.registry import HOMES, shipped_scenarios

SMALL = """
title = "small"
rounds = 2
[data]
dataset = "digits"
clients = 6
[model]
name = "logistic"
[client]
per_round = 4
[engine]
workers = 1
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scenario of two short rounds, in the working directory."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "small.toml"
    file.write_text(SMALL, encoding="utf-8")
    return file


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_version_is_the_one_of_the_package_and_of_the_bundle() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert call("--version").stdout.strip() == f"fedsim {fedsim.__version__}"
    assert project["version"] == fedsim.__version__


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fedsim.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'flwr', 'numpy', 'pandas', 'pydantic', 'rich', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "bench" in done.stdout


def test_a_checked_scenario_has_imported_no_pandas() -> None:
    code = (
        "import sys, fedsim\nfedsim.Scenario(server={'defenses': ['krum']})\n"
        "print(sorted({'pandas', 'pyarrow', 'sklearn', 'matplotlib', 'ray', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_run_writes_a_folder_and_says_where_the_report_is(small: Path, tmp_path: Path) -> None:
    done = call("run", str(small), "--seed", "3", "--set", "client.batch_size=16")
    assert done.exit_code == 0, done.stderr
    folder = tmp_path / "runs" / "small"
    written = tomllib.loads((folder / "scenario.toml").read_text("utf-8"))
    assert (written["seed"], written["client"]["batch_size"]) == (3, 16)
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 3
    assert (folder / "report.html").is_file()
    digest = json.loads((folder / "summary.json").read_text())["digest"]
    assert digest in done.stdout
    assert str(Path("runs") / "small" / "report.html") in done.stdout


def test_a_second_run_takes_a_new_folder_and_resume_the_last_one(small: Path, tmp_path: Path) -> None:
    first, second = call("run", str(small), "--quiet"), call("run", str(small), "--quiet", "--seed", "1")
    again = call("run", str(small), "--quiet", "--seed", "1", "--resume")
    assert [first.exit_code, second.exit_code, again.exit_code] == [0, 0, 0]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["small", "small-2"]
    assert first.stdout == ""


def test_a_resumed_run_that_is_not_there_starts_and_says_so(small: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for folder in ("nowhere", "there"):
        done = call("run", str(small), "--quiet", "--out", folder, "--resume")
        assert (done.exit_code, done.stdout) == (0, "")
        assert done.stderr == f"{folder}: no round of a run is there to resume; starts at round 1\n"
        again = call("run", str(small), "--quiet", "--out", folder, "--resume")
        assert (again.exit_code, again.output) == (0, "")


def test_a_folder_that_holds_a_run_is_not_overwritten(small: Path) -> None:
    assert call("run", str(small), "--quiet", "--out", "here").exit_code == 0
    refused = call("run", str(small), "--quiet", "--out", "here")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("fedsim: here: holds a run already")
    other = call("run", str(small), "--quiet", "--out", "here", "--resume", "--set", "client.per_round=5")
    assert other.exit_code == 1
    assert "client.per_round: given 5; accepted: 4" in other.stderr


def test_a_bad_scenario_is_one_line_a_fault_and_writes_nothing(small: Path, tmp_path: Path) -> None:
    sets = ("--set", "rounds=0", "--set", "client.per_rond=4", "--set", "server.defenses=['krumm']")
    done = call("run", str(small), *sets)
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{small}: ") for line in lines)
    assert all("given " in line and "accepted: " in line for line in lines)
    assert any("client.per_rond" in line and "did you mean 'per_round'?" in line for line in lines)
    assert any("krumm" in line and "did you mean 'krum'?" in line for line in lines)
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("key", ["matrix.seed=[1, 2]", "engine.device='cuda:99'"])
def test_what_only_the_run_finds_names_the_file_too(small: Path, tmp_path: Path, key: str) -> None:
    done = call("run", str(small), "--set", key)
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"{small}: {key.partition('=')[0].removesuffix('.seed')}: given ")
    assert not (tmp_path / "runs").exists()


def test_a_missing_file_names_what_there_is() -> None:
    done = call("run", "quickstrat")
    assert done.exit_code == 2
    assert "did you mean 'quickstart'?" in done.stderr


def test_a_missing_data_set_is_one_line(small: Path) -> None:
    done = call("run", str(small), "--set", "data.dataset={name='idx', folder='nowhere'}")
    assert done.exit_code == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "nowhere" in done.stderr


def test_a_call_without_a_file_is_a_bad_call() -> None:
    assert call("run").exit_code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("background", [False, True])
def test_ctrl_c_ends_after_the_round_and_the_printed_command_goes_on(
    small: Path, tmp_path: Path, number: int, background: bool
) -> None:
    """In the background as well, where a shell has its jobs ignore SIGINT."""
    command = [sys.executable, "-m", "fedsim", "run", str(small), "--set", "rounds=100000", "--out", "long"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    rounds = tmp_path / "long" / "rounds.jsonl"
    while process.poll() is None and not (rounds.exists() and rounds.read_text().count("\n") > 2):
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert f"go on with: fedsim run {small} --set rounds=100000 --out long --resume" in said
    done = int(said.split("stopped after round ")[1].split()[0])
    assert len(rounds.read_text().splitlines()) == done + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        more = call("run", str(small), "--set", f"rounds={done + 1}", "--out", "long", "--resume", "--quiet")
    assert more.exit_code == 1, "fewer rounds than it was started with are another scenario"


def test_list_counts_the_parts_of_each_kind() -> None:
    counts = dict(line.split() for line in call("list").stdout.splitlines()[1:])
    assert set(counts) <= set(HOMES)
    assert int(counts["defense"]) == len(fedsim.names("defense"))
    assert int(counts["attack"]) == len(fedsim.names("attack"))


def test_list_kind_names_each_part() -> None:
    listed = [line.split()[0] for line in call("list", "defense").stdout.splitlines()[1:] if not line.startswith(" ")]
    assert listed == [name for name in fedsim.names("defense") if not name.endswith(":NAME")]


def test_list_part_shows_options_and_source() -> None:
    shown = call("list", "defense", "krum").stdout
    assert "malicious" in shown
    assert "Blanchard" in shown
    assert "type" in shown
    assert "default" in shown


def test_list_knows_the_scenarios() -> None:
    listed = call("list", "scenario")
    assert listed.exit_code == 0
    assert "quickstart" in listed.stdout
    assert tomllib.loads(call("list", "scenario", "quickstart").stdout) == tomllib.loads(
        shipped_scenarios()["quickstart"].read_text("utf-8")
    )


@pytest.mark.parametrize(
    "arguments", [("list", "atack"), ("list", "defense", "krumm"), ("list", "scenario", "quikstart")]
)
def test_list_of_something_unknown_names_the_nearest(arguments: tuple[str, ...]) -> None:
    done = call(*arguments)
    assert done.exit_code == 1
    assert "did you mean" in done.stderr


def test_schema_is_json_schema_that_knows_the_parts() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(call("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    check.validate(tomllib.loads(shipped_scenarios()["quickstart"].read_text("utf-8")))
    assert not check.is_valid({"server": {"defenses": [{"name": "krum", "malicious": "many"}]}})
    assert not check.is_valid({"data": {"clints": 3}})


def test_data_draws_the_partition(small: Path) -> None:
    shown = call("data", str(small), "--set", "data.partition={name='dirichlet', alpha=0.5}")
    assert shown.exit_code == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines() if line.split()[0].isdigit()]
    assert [int(row[0]) for row in rows] == list(range(6))
    training = int(shown.stdout.split("digits: ")[1].split()[0])
    assert sum(int(row[1]) for row in rows) == training
    assert all(int(row[1]) == sum(int(cell) for cell in row[2:] if cell != "·") for row in rows)


def test_report_writes_and_compares(small: Path) -> None:
    for seed in ("0", "1"):
        assert call("run", str(small), "--quiet", "--seed", seed, "--out", f"run{seed}").exit_code == 0
    Path("run0/report.html").unlink()
    assert call("report", "run0").exit_code == 0
    assert Path("run0/report.html").is_file()
    assert call("report", "run0", "run1", "--out", "both.html").exit_code == 0
    assert "<html" in Path("both.html").read_text("utf-8")
    nothing = call("report", "nowhere")
    assert nothing.exit_code == 1
    assert "nowhere" in nothing.stderr


def test_bench_runs_the_matrix_once(small: Path, tmp_path: Path) -> None:
    with small.open("a") as file:
        file.write('[matrix]\n"server.defenses" = [["fedavg"], ["median"]]\nseed = [0, 1]\n')
    first = call("bench", str(small), "--jobs", "1")
    assert first.exit_code == 0, first.stderr
    assert "4 finished in" in first.stdout
    again = call("bench", str(small))
    assert again.exit_code == 0
    assert "4 skipped in" in again.stdout
    assert call("run", str(small)).exit_code == 2


def test_a_cell_that_fails_makes_the_status(small: Path) -> None:
    with small.open("a") as file:
        file.write('[matrix]\n"data.dataset" = ["digits", {name = "idx", folder = "nowhere"}]\n')
    done = call("bench", str(small), "--quiet", "--jobs", "1")
    assert done.exit_code == 1
    assert "nowhere" in done.stderr


def test_an_installed_command_runs_anywhere(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("fedsim")
    if not command.exists():
        pytest.skip("fedsim is not installed in this environment")
    done = subprocess.run([command, "list", "scenario"], cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0
    assert "quickstart" in done.stdout


def test_an_error_stands_alone(small: Path, tmp_path: Path) -> None:
    """No empty line of a progress bar before it, and no advice that does not fit."""
    taken = tmp_path / "taken"
    taken.write_text("a file")
    done = call("run", str(small), "--out", str(taken))
    assert done.exit_code == 1
    said = "cannot be written: File exists; accepted: a folder, there or not, that can be written"
    assert done.stderr == f"fedsim: {taken}: {said}\n"
    column = call("run", str(small), "--set", "data.partition={name='natural', column='writer'}", "--out", str(taken))
    assert column.exit_code == 2
    assert column.stderr == f"{small}: data.partition.column: given 'writer'; accepted: target\n"
