"""The red team: it stays inside the threat model, judges on fresh seeds, and a stopped search ends like a whole one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fedsim import registry
from fedsim.bench import redteam as module
from fedsim.bench.locks import held
from fedsim.bench.ranges import SPACES, Span
from fedsim.bench.redteam import redteam
from fedsim.bench.space import Attempt, Space
from fedsim.bench.verdict import Scored, best
from fedsim.errors import DataMissing, FedsimError, RecordError, ScenarioError
from fedsim.scenario import Scenario

pytest.importorskip("optuna")

FILE = """
rounds = 4
seed = 5
[data]
clients = 8
[model]
name = "logistic"
[client]
per_round = 4
steps = 2
batch_size = 16
[adversary]
count = 2
attacks = [{ name = "badnets", target = 3, ratio = 0.4 }]
[matrix]
seed = [0, 1]
"""


class Fixed:
    """A trial that always takes the first choice and the lowest number, but for what it is told."""

    def __init__(self, **told: Any) -> None:
        self.told = {name.replace("__", "."): value for name, value in told.items()}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self.told.get(name, low))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self.told.get(name, low))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        assert self.told.get(name, choices[0]) in choices
        return self.told.get(name, choices[0])


def scenario(knowledge: str = "colluding", knows_defense: bool = False, **more: Any) -> Scenario:
    attacks = more.pop("attacks", [{"name": "sign_flip"}])
    adversary = {"count": 4, "knowledge": knowledge, "knows_defense": knows_defense, "attacks": attacks}
    return Scenario(rounds=10, data={"clients": 20}, client={"per_round": 10}, adversary=adversary | more)


def names(space: Space, slot: str) -> set[str]:
    return next(set(fitting) for name, _, fitting in space.slots if name == slot)


@pytest.mark.parametrize("name", sorted(SPACES))
def test_both_ends_of_every_range_are_accepted(name: str) -> None:
    known = {option.name for option in registry.options(registry.get("attack", name))}
    for option, what in SPACES[name].items():
        assert option in known
        ends = (what.low, what.high) if isinstance(what, Span) else what
        for end in ends:
            value = int(end) if isinstance(what, Span) and what.whole else end
            assert registry.check_options("attack", name, {option: value})[1] == []


def test_what_the_adversary_must_not_know_is_outside() -> None:
    colluding, omniscient, knowing = (
        Space.of(scenario(*given), "damage") for given in (("colluding",), ("omniscient",), ("omniscient", True))
    )
    assert names(colluding, "craft") == {"sign_flip", "gaussian", "alie", "min_max", "min_sum", "label_flip"}
    assert names(omniscient, "craft") - names(colluding, "craft") == {"ipm", "mimic"}
    assert names(knowing, "craft") - names(omniscient, "craft") == {"fang_krum", "fang_trimmed_mean", "optimal"}
    assert "omniscient" in colluding.outside["ipm"]
    assert "knows_defense" in omniscient.outside["optimal"]
    flips = next(fitting["sign_flip"][1] for slot, _, fitting in colluding.slots if slot == "craft")
    assert "of" not in flips


def test_the_backdoor_is_the_one_that_the_scenario_states() -> None:
    given = scenario(attacks=[{"name": "dba", "target": 7, "ratio": 0.3}, {"name": "pgd", "epsilon": 1.0}])
    space = Space.of(given, "asr")
    assert names(space, "trigger") == {"dba"}
    attempt = space.suggest(Fixed(shape="pgd", pgd__epsilon=0.5, scale="model_replacement"))
    assert [part["name"] for part in attempt.attacks] == ["dba", "pgd", "model_replacement"]
    assert attempt.attacks[0]["target"] == 7
    assert attempt.attacks[1]["epsilon"] == 0.5
    assert space.statics()[0].attacks[0] == {"name": "dba", "target": 7, "ratio": 0.3, "parts": 4, "trigger": "bars"}
    assert attempt.on(given, 3).seed == 3


def test_it_attacks_no_more_often_than_the_scenario_lets_it() -> None:
    thin = Space.of(scenario(schedule={"name": "fixed_frequency", "every": 4}), "damage")
    assert thin.suggest(Fixed()).schedule["every"] == 4
    free = Space.of(scenario(), "damage")
    for name in ("every_round", "fixed_frequency", "window", "single_shot"):
        attempt = free.suggest(Fixed(schedule=name, schedule__start=10, schedule__length=7))
        assert attempt.schedule["name"] == name
        assert attempt.on(free.scenario, 0).adversary.schedule.name == name


def test_a_search_begins_with_each_attack_in_every_round() -> None:
    space = Space.of(scenario(), "damage")
    first = space.first(40)
    assert {params["craft"] for params in first} == names(space, "craft")
    assert any(params["poison"] == "label_flip" for params in first)
    assert {params["schedule"] for params in first} == {"every_round"}
    assert space.first(len(first)) == []


def test_a_plug_in_is_searched_between_the_bounds_that_it_declares(tmp_path: Path) -> None:
    file = tmp_path / "my_attack.py"
    file.write_text(
        "from typing import Annotated, Literal\nfrom pydantic import Field\nfrom attacks.attack import Attack\n\n\n"
        "class Mine(Attack):\n    a: Annotated[float, Field(ge=0.5, le=2)] = 1.0\n"
        "    b: Annotated[int, Field(ge=1, le=9)] = 2\n    c: Literal['x', 'y'] = 'x'\n    d: float = 1.0\n\n"
        "    def craft(self, rows, ctx):\n        return -rows\n"
    )
    space = Space.of(scenario(), "damage", [f"{file}:Mine"])
    (craft,) = [fitting for slot, _, fitting in space.slots if slot == "craft"]
    assert craft == {
        f"{file}:Mine": ({}, {"a": Span(0.5, 2.0), "b": Span(1, 9, whole=True), "c": ("x", "y")}),
    }


def test_a_goal_that_nothing_reaches_is_said() -> None:
    with pytest.raises(ScenarioError, match=r"^mine.toml: adversary: given no attack that crafts updates; accepted: "):
        Space.of(scenario(), "damage", ["ipm"], "mine.toml")


def test_equal_reasons_against_attacks_are_told_once() -> None:
    with pytest.raises(ScenarioError) as caught:
        Space.of(scenario(), "damage", ["ipm", "fang_krum", "optimal"])
    assert str(caught.value).count("needs adversary.knowledge = 'omniscient'") == 1
    assert "(ipm, fang_krum, optimal: needs " in str(caught.value)


def test_a_file_without_attackers_is_told_in_one_short_line(tmp_path: Path) -> None:
    file = tmp_path / "calm.toml"
    file.write_text("rounds = 2\n[data]\nclients = 6\n[client]\nper_round = 4\n")
    with pytest.raises(ScenarioError) as caught:
        redteam(file, ["median"], budget=1, out=tmp_path / "out", tune=1, report=1)
    said = str(caught.value)
    assert said.startswith(f"{file}: adversary: given no malicious clients; accepted: ")
    assert "adversary.count or adversary.fraction" in said
    assert len(said.splitlines()) == 1
    assert len(said) < len(str(file)) + 200


def test_the_bound_comes_before_the_success() -> None:
    def scored(asr: float, lost: float, error: str = "") -> Scored:
        return Scored(Attempt(({"name": str(asr)},), {}), (asr,), (0.9,), (lost,), True, error)

    loud, quiet, weak, broken = scored(0.99, 0.3), scored(0.6, 0.02), scored(0.2, 0.0), scored(1.0, 0.0, "no")
    assert best([loud, quiet, weak, broken], "asr", 0.02) is quiet
    assert best([loud, scored(1.0, 0.4)], "asr", 0.02) is loud
    assert best([loud, quiet, weak], "damage", 0.02) is loud
    with pytest.raises(FedsimError, match="no attack could be run"):
        best([broken], "asr", 0.02)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "threat.toml"
    path.write_text(FILE)
    return path


def search(file: Path, out: Path, budget: int, **more: Any) -> dict[str, Any]:
    redteam(file, [["median"]], budget, out, tune=1, report=2, attacks=["pgd"], say=lambda text: None, **more)
    return dict(json.loads((out / "redteam.json").read_text()))


def test_a_search_goes_on_behind_a_line_that_a_full_disk_cut(file: Path, tmp_path: Path) -> None:
    whole, out = search(file, tmp_path / "whole", 4), tmp_path / "cut"
    search(file, out, 2)
    (journal,) = [each for each in (out / "studies").iterdir() if each.is_file() and each.stat().st_size]
    with journal.open("ab") as stream:
        stream.write(b'{"op_code":4,"work')
    assert search(file, out, 4)["defenses"] == whole["defenses"]
    assert search(file, out, 4)["defenses"] == whole["defenses"]


def test_a_folder_is_searched_by_one_process_at_a_time(file: Path, tmp_path: Path) -> None:
    """The other's running trials are not ours, and its journal's last line may be one that it is about to end."""
    out = tmp_path / "out"
    with held(out / "redteam.lock") as ours:
        assert ours
        with pytest.raises(FedsimError, match="out is searched by another process; accepted: "):
            search(file, out, 1)
        assert not (out / "studies").exists()
    assert search(file, out, 1)["budget"] == 1


def test_a_search_ends_alike_however_often_it_is_stopped(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search(file, tmp_path / "whole", 4)
    play, played = module._play, []

    def stopping(*given: Any) -> str:
        played.append(given)
        return "interrupted" if len(played) in (2, 5, 7) else play(*given)

    monkeypatch.setattr(module, "_play", stopping)
    stops = 0
    while True:
        try:
            found = search(file, tmp_path / "stopped", 4)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == 3
    assert found == whole

    (verdict,) = whole["defenses"]
    assert len(verdict["trials"]) == 4
    assert whole["tune"] == [5]
    assert whole["report"] == [6, 7]
    for end in ("static", "adaptive"):
        assert len(verdict[end]["asr"]) == 2
        again = Scenario.load(tmp_path / "whole" / verdict[end]["file"])
        assert again.seed == 6
        assert again.server.defenses[0].name == "median"
    assert all(part["target"] == 3 for trial in verdict["trials"] for part in trial["attacks"][:1])
    page = (tmp_path / "whole" / "redteam.html").read_text()
    assert "best so far" in page
    assert page.count('class="hint"') == 4

    monkeypatch.setattr(module, "_play", play)
    more = search(file, tmp_path / "whole", 5)
    assert more["defenses"][0]["trials"][:4] == verdict["trials"]


@pytest.mark.slow
def test_a_search_of_two_processes_goes_on_where_it_was_stopped(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped with one run of a batch done and the others not, twice: the same trials, in the same order."""
    whole = search(file, tmp_path / "whole", 4, jobs=2)
    batches: list[int] = []
    cut: list[int] = []

    class Stopping(ProcessPoolExecutor):
        def map(self, play: Any, *given: Any, **more: Any) -> Any:
            columns = [list(each) for each in given]
            batches.append(len(columns[0]))
            if batches[-1] < 2 or len(cut) == 2:
                return super().map(play, *columns, **more)
            cut.append(len(batches))
            done = list(super().map(play, *(each[:1] for each in columns), **more))
            return [*done, *["interrupted"] * (len(columns[0]) - 1)]

    monkeypatch.setattr(module, "ProcessPoolExecutor", Stopping)
    stops = 0
    while True:
        try:
            found = search(file, tmp_path / "stopped", 4, jobs=2)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == 2
    first = cut[0]
    assert batches[first] == batches[first - 1] - 1, "what was done is not played again"
    assert found == whole


POOL = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from fedsim.bench.redteam import _end_with_caller
if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), _end_with_caller) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(600)
"""


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_killed_search_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    caller = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert caller.stdout is not None
    pid = int(caller.stdout.readline())
    caller.kill()
    caller.communicate(timeout=60)  # its output is open as long as the other process lives
    deadline = time.monotonic() + 60
    while _is_there(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_threat_model_need_name_no_attack_to_do_damage(file: Path, tmp_path: Path) -> None:
    file.write_text(
        FILE.replace('attacks = [{ name = "badnets", target = 3, ratio = 0.4 }]', 'knowledge = "omniscient"'), "utf-8"
    )
    (verdict,) = redteam(file, ["median"], budget=1, out=tmp_path / "out", tune=1, report=1, attacks=["ipm"])
    assert verdict.static is not None


def test_without_optuna_it_says_what_to_install(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(FedsimError, match=r"fedsim-flwr\[redteam\]"):
        search(file, tmp_path / "out", 1)


PLUG_IN = """
from attacks.attack import Attack, attack


@attack("scaled")
class Scaled(Attack):
    \"\"\"Rows times a factor.\"\"\"

    def craft(self, rows, ctx):
        {body}
"""


def searched(file: Path, out: Path, plug_in: Path) -> dict[str, Any]:
    only = ["sign_flip", f"{plug_in}:Scaled"]
    redteam(file, ["fedavg"], 4, out, goal="damage", tune=1, report=1, attacks=only, say=lambda text: None)
    (found,) = json.loads((out / "redteam.json").read_text())["defenses"]
    return dict(found)


def test_an_attack_that_breaks_costs_its_trials_and_an_edited_one_is_searched_again(file: Path, tmp_path: Path) -> None:
    plug_in = tmp_path / "scaled.py"
    plug_in.write_text(PLUG_IN.format(body="raise ZeroDivisionError('by nothing')"))
    broken = searched(file, tmp_path / "out", plug_in)
    said = {trial["error"] for trial in broken["trials"] if trial["attacks"][0]["name"] != "sign_flip"}
    assert said == {"ZeroDivisionError in line 10 of scaled.py, in craft: by nothing"}
    assert broken["adaptive"]["attacks"][0]["name"] == "sign_flip"

    plug_in.write_text(PLUG_IN.format(body="return -1000 * rows"))
    registry.plug_in(str(plug_in))
    again = searched(file, tmp_path / "out", plug_in)
    assert len(again["trials"]) == 4
    assert not any(trial["error"] for trial in again["trials"])


@pytest.mark.parametrize(
    "error", [RecordError("runs: cannot be written: No space left on device"), DataMissing("mnist: looked for")]
)
def test_a_full_disk_or_missing_data_costs_no_trial(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: FedsimError
) -> None:
    """Neither says that an attack cannot run: mended, the same call finds what one that was not disturbed finds."""
    simulate, played = module.simulate, []

    def failing(*given: Any, **more: Any) -> Any:
        played.append(given)
        if len(played) in (1, 4):
            raise error
        return simulate(*given, **more)

    monkeypatch.setattr(module, "simulate", failing)
    for _ in range(2):
        with pytest.raises(type(error)):
            search(file, tmp_path / "out", 2)
    (found,) = search(file, tmp_path / "out", 2)["defenses"]
    assert [trial["error"] for trial in found["trials"]] == ["", ""]


def test_what_breaks_on_a_reporting_seed_is_named(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play = module._play

    def breaking(table: dict[str, Any], folder: Path, workers: int) -> str:
        return "a row too many" if table["seed"] > 5 and table["adversary"]["attacks"] else play(table, folder, workers)

    monkeypatch.setattr(module, "_play", breaking)
    with pytest.raises(FedsimError, match="reporting seed: a row too many"):
        search(file, tmp_path / "out", 2)


@pytest.mark.slow
def test_a_scheduler_ends_a_search_in_processes_at_once_and_the_printed_command_goes_on(tmp_path: Path) -> None:
    """SIGTERM reaches the caller alone: its processes are in the middle of long runs, of which no round is lost."""
    file, out = tmp_path / "threat.toml", tmp_path / "out"
    file.write_text(FILE.replace("rounds = 4", "rounds = 20000"))
    command = [sys.executable, "-m", "fedsim", "redteam", str(file), "--defense", "median", "--budget", "4"]
    command += ["--attack", "pgd", "--jobs", "2", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def begun() -> list[Path]:
        return [each for each in out.rglob("rounds.jsonl") if each.read_text().count("\n") > 2]

    while process.poll() is None and len(begun()) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "go on with: fedsim redteam" in said
    assert all(each.read_text().endswith("\n") for each in begun())
