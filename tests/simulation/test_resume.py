"""A run that is killed at any moment goes on to the same digest."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import RecordError, ResumeError
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from tests.simulation.test_runs import small

RUN = """
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
result = simulate(Scenario.load(file), folder, resume=True, progress=lambda line: said.send(line["round"]))
said.send(result.digest)
"""


TRAINED: dict[str, Any] = {
    "rounds": 150,
    "adversary": {"fraction": 0.25, "attacks": ["alie"]},
    "server": {"optimizer": "adam"},
}
PRIVATE: dict[str, Any] = {
    "rounds": 50,
    "data": {"clients": 4},
    "model": {"name": "logistic"},
    "client": {"per_round": 4},
    "server": {"estimator": {"name": "diff2", "restart": 7, "c1": 1.0, "c2": 5.0, "lr": 0.5}},
    "privacy": {"noise": [0.02, 0.08]},
}


def killed(scenario: Scenario, tmp_path: Path, most: int) -> str:
    """The digest after so many kills, each after a random number of rounds and a random wait within the next one."""
    file = tmp_path / "scenario.toml"
    file.write_text(scenario.toml())
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["fedsim.launch", "fedsim.report.page", "sklearn.datasets", "scipy.stats", "numba"])
    moments, kills, digest = random.Random(0), 0, ""
    while not digest:
        heard, said = fork.Pipe(duplex=False)
        names = {"file": str(file), "folder": str(tmp_path / "killed"), "said": said}
        process = fork.Process(target=exec, args=(RUN, names))
        process.start()
        said.close()
        survive, wait = moments.randint(1, 8), moments.randint(0, 300_000)
        try:
            for heard_so_far in itertools.count(1):
                word = heard.recv()
                if isinstance(word, str):
                    digest = word
                    break
                if kills < most and heard_so_far > survive:
                    for _ in range(wait):
                        pass
                    assert process.pid is not None
                    os.kill(process.pid, signal.SIGKILL)
                    kills += 1
                    break
        except EOFError:
            pytest.fail("the run ended without a digest")
        process.join()
    assert kills == most
    return digest


@pytest.mark.parametrize(
    ("scenario", "most"), [(small(**TRAINED), 20), (Scenario(**PRIVATE), 6)], ids=["adam", "diff2"]
)
def test_killed_at_random_moments_the_run_resumes_to_the_same_digest(
    scenario: Scenario, most: int, tmp_path: Path
) -> None:
    assert killed(scenario, tmp_path, most) == simulate(scenario, tmp_path / "whole").digest


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": {**PRIVATE["privacy"], "trust": "local"}},
        {"privacy": {**PRIVATE["privacy"], "trust": "distributed"}},
        {
            "client": {"per_round": 4, "optimizer": "sgd"},
            "server": {"defenses": [{"name": "dp_fedavg", "clip": 0.1, "adaptive": True}]},
            "privacy": {"noise": [1.0], "unit": "client"},
        },
    ],
    ids=["diff2 local", "diff2 distributed", "dp_fedavg adaptive"],
)
def test_whoever_draws_the_noise_a_killed_run_resumes_to_the_same_digest(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    scenario = Scenario(**{**PRIVATE, "rounds": 24, **changes})
    assert killed(scenario, tmp_path, 3) == simulate(scenario, tmp_path / "whole").digest


@pytest.mark.slow
def test_kept_moments_and_an_adapter_outlive_a_kill(tmp_path: Path) -> None:
    """Clients that keep their optimizer's state over rounds, and a map that each fits before it trains."""
    client = {
        "client.optimizer": {"name": "diffgrad", "lr": 0.01},
        "client.optimizer_state": "persist",
        "client.adapter": {"name": "monge_gap", "steps": 2, "hidden": [4], "batch_size": 8},
    }
    scenario = small(rounds=18, **{"data.root": 24}, **client)
    whole = simulate(scenario, tmp_path / "whole").digest
    assert killed(scenario, tmp_path, 2) == whole
    assert simulate(scenario.changed(**{"client.optimizer_state": "reset"})).digest != whole


def test_resuming_a_finished_run_does_nothing(tmp_path: Path) -> None:
    first = simulate(small(rounds=2), tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.jsonl")}
    seen: list[int] = []
    again = simulate(small(rounds=2), tmp_path, resume=True, progress=lambda line: seen.append(line["round"]))
    assert again.digest == first.digest
    assert again.finished
    assert seen == []
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.jsonl")} == before


def test_a_changed_scenario_is_refused_by_its_keys(tmp_path: Path) -> None:
    simulate(small(rounds=2), tmp_path)
    with pytest.raises(ResumeError, match=r"client\.optimizer\.lr: given 0\.2; accepted: 0\.1") as caught:
        simulate(small(rounds=2, **{"client.optimizer.lr": 0.2, "seed": 3}), tmp_path, resume=True)
    assert "seed: given 3; accepted: 0" in str(caught.value)


def test_another_engine_is_no_change(tmp_path: Path) -> None:
    first = simulate(small(rounds=2), tmp_path)
    assert (
        simulate(small(rounds=2, **{"engine.workers": 1, "title": "x"}), tmp_path, resume=True).digest == first.digest
    )


def test_more_rounds_continue_a_run(tmp_path: Path) -> None:
    simulate(small(rounds=2), tmp_path)
    assert simulate(small(rounds=4), tmp_path, resume=True).digest == simulate(small(rounds=4)).digest


def test_more_rounds_are_refused_where_a_part_depends_on_them(tmp_path: Path) -> None:
    cosine = {"client.lr_schedule": {"name": "cosine"}}
    simulate(small(rounds=2, **cosine), tmp_path)
    with pytest.raises(ResumeError, match="cosine"):
        simulate(small(rounds=4, **cosine), tmp_path, resume=True)


def test_more_rounds_are_refused_where_the_attack_is_in_the_last_one(tmp_path: Path) -> None:
    attack: dict[str, Any] = {"fraction": 0.25, "attacks": ["sign_flip"]}
    last = {"adversary": {**attack, "schedule": "single_shot"}}
    simulate(small(rounds=2, **last), tmp_path / "last")
    with pytest.raises(ResumeError, match=r"rounds: given 4; accepted: 2, since adversary\.schedule = 'single_shot'"):
        simulate(small(rounds=4, **last), tmp_path / "last", resume=True)
    second = {"adversary": {**attack, "schedule": {"name": "single_shot", "round": 2}}}
    simulate(small(rounds=2, **second), tmp_path / "second")
    assert len(simulate(small(rounds=3, **second), tmp_path / "second", resume=True).lines) == 4


def test_more_rounds_are_refused_where_the_noise_is_for_fewer(tmp_path: Path) -> None:
    def play(folder: str, rounds: int, **changes: Any) -> int:
        scenario = Scenario(**{**PRIVATE, "rounds": rounds, **changes})
        return len(simulate(scenario, tmp_path / folder, resume=True).lines)

    estimator = PRIVATE["server"]["estimator"]
    promise = {"privacy": {"epsilon": 8.0}, "server": {"estimator": {**estimator, "restart": 2}}}
    play("promise", 3, **promise)
    with pytest.raises(ResumeError, match=r"rounds: given 6; accepted: 3, since the noise for privacy\.epsilon = 8"):
        play("promise", 6, **promise)
    ratio = {"server": {"estimator": {**estimator, "restart": None, "restart_ratio": 0.5}}}
    play("ratio", 4, **ratio)
    with pytest.raises(ResumeError, match="accepted: 4, since the restart interval"):
        play("ratio", 8, **ratio)
    given = {"server": {"estimator": {**estimator, "restart": 2}}}
    play("given", 3, **given)
    assert play("given", 5, **given) == 6


def test_fewer_rounds_are_refused(tmp_path: Path) -> None:
    simulate(small(rounds=3), tmp_path)
    with pytest.raises(ResumeError, match="rounds: given 2; accepted: 3"):
        simulate(small(rounds=2), tmp_path, resume=True)


def test_ctrl_c_ends_after_the_round_and_can_be_continued(tmp_path: Path) -> None:
    def interrupt(line: dict[str, object]) -> None:
        if line["round"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    result = simulate(small(), tmp_path, progress=interrupt)
    assert not result.finished
    assert result.lines[-1]["round"] == 2
    assert simulate(small(), tmp_path, resume=True).digest == simulate(small()).digest


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from fedsim import record

    real = record._replace

    def full(path: Path, content: bytes) -> None:
        if path.name == "checkpoint-2.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(record, "_replace", full)
    with pytest.raises(RecordError, match=r"No space left on device.*--resume"):
        simulate(small(), tmp_path)
    monkeypatch.setattr(record, "_replace", real)
    assert simulate(small(), tmp_path, resume=True).digest == simulate(small()).digest


@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_a_deployment_whose_clients_draw_the_noise_is_not_resumed(trust: str, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(line: dict[str, Any]) -> None:
        if line["round"] == 2:
            raise Stop

    def play(folder: str, **changes: Any) -> int:
        scenario = Scenario(**{**PRIVATE, "rounds": 8, **changes})
        with pytest.raises(Stop):
            simulate(scenario, tmp_path / folder, progress=stop, deployed=True)
        return len(simulate(scenario, tmp_path / folder, resume=True, deployed=True).lines)

    noise = PRIVATE["privacy"]
    with pytest.raises(ResumeError, match=f"--resume with privacy.trust = '{trust}' in a deployment.*noise anew"):
        play("own", privacy={**noise, "trust": trust})
    assert play("server", privacy=noise) == 9
    assert play("none", privacy={**noise, "trust": trust, "claim": "none"}) == 9


def test_a_deployed_server_shows_no_model_before_its_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its noise is the operating system's: a round that is lost is played again with other noise, so that a model that
    had left before would be a second release of the same round."""
    from fedsim.simulation import _Run
    from strategies.diff2 import Diff2

    scenario = Scenario(**{**PRIVATE, "rounds": 8, "engine": {"workers": 1}})
    written: set[bytes] = set()
    shown: list[tuple[int, bool]] = []
    lost: list[bytes] = []
    measure, record = Diff2.measure, _Run._record

    def seen(self: Diff2, node: Any, content: Any) -> Any:
        bits = node.parameters.numpy().tobytes()
        shown.append((node.round, bits in written))
        assert bits not in lost
        return measure(self, node, content)

    def crash(self: _Run, line: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        bits = self._vector().numpy().tobytes()
        if line["round"] == 2 and not lost:
            lost.append(bits)
            raise RuntimeError("the power went")
        record(self, line, clients)
        written.add(bits)

    monkeypatch.setattr(Diff2, "measure", seen)
    monkeypatch.setattr(_Run, "_record", crash)
    with pytest.raises(RuntimeError, match="the power went"):
        simulate(scenario, tmp_path, deployed=True)
    assert len(simulate(scenario, tmp_path, resume=True, deployed=True).lines) == 9
    assert {number for number, _ in shown} == set(range(1, 9))
    assert all(early for _, early in shown)
    assert lost[0] not in written, "the noise of the second round was drawn anew"
