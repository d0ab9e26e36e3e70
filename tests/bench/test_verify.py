"""Claims of papers: verdicts, resuming, the page, and each paper's shortest claims."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsim.errors import FedsimError
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.verify import PAPERS, Expected, Measured, Row, runner, verify
from fedsim.verify.claim import Claim, claims_of
from fedsim.verify.page import table, write_page
from fedsim.verify.published import load_published
from fedsim.verify.runner import load

QUICK = 300.0
"""Seconds of the processor for all quick claims together."""


def row(
    values: list[float], low: float | None = None, high: float | None = None, differs: str = "", failure: str = ""
) -> Row:
    return Row("p", "k", Expected("c", "e", low, high, differs), "s", values, failure)


def test_verdicts() -> None:
    assert row([0.5], 0.4, 0.6).verdict == "holds"
    assert row([0.5], 0.6).verdict == "fails"
    assert row([0.5], None, 0.4).verdict == "fails"
    assert row([0.3, 0.9], 0.5).verdict == "holds", "the mean over seeds counts"
    assert row([0.5], 0.4, None, "why").verdict == "differs"
    assert row([0.3], 0.4, None, "why").verdict == "fails", "what was seen is not seen again"
    assert row([0.5]).verdict == "seen"
    assert row([float("nan")]).verdict == "fails"
    assert row([]).verdict == "not run"
    assert row([], failure="ValueError: no").verdict == "fails"
    assert row([], failure="DataMissing: mnist").verdict == "not run"
    assert "2 seeds" in row([0.3, 0.9]).ours


def test_every_paper_has_quick_claims_whose_rows_are_measured() -> None:
    for paper in PAPERS:
        load(paper)
        claims = claims_of(paper)
        assert any(each.quick for each in claims), paper
        assert all(each.rows and each.source and each.measure.__doc__ for each in claims)


def test_results_are_kept_and_picked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def measure(seed: int) -> Measured:
        """Counts."""
        calls.append(seed)
        if seed == 2:
            raise ValueError("broken")
        return Measured({"x": float(seed)})

    made = Claim("gns", "counted", measure, {"x": Expected("c", "e", 0.0, 1.0)}, "here", seeds=2)
    monkeypatch.setattr(runner, "claims_of", lambda paper: [made] if paper == "gns" else [])
    said: list[str] = []
    rows = verify(["gns"], tmp_path, say=said.append)
    assert (calls, [each.values for each in rows]) == ([0, 1], [[0.0, 1.0]])
    assert len(said) == 2
    verify(["gns"], tmp_path)
    assert calls == [0, 1]
    failed = verify(["gns"], tmp_path, seeds=3)
    assert (calls, failed[0].verdict, failed[0].failure) == ([0, 1, 2], "fails", "ValueError: broken")
    verify(["gns"], tmp_path, seeds=3)
    assert calls == [0, 1, 2, 2], "what failed is tried again"
    kept = tmp_path / "gns.counted.0.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "fingerprint": "of other code"}))
    verify(["gns"], tmp_path)
    assert calls == [0, 1, 2, 2, 0], "results of other code do not count"
    kept.write_text("{")
    verify(["gns"], tmp_path)
    assert calls[-1] == 0
    assert len(calls) == 6


def test_an_unknown_paper_is_an_error() -> None:
    with pytest.raises(FedsimError, match="diffgrad"):
        verify(["difgrad"])


def test_the_page_has_a_table_and_a_figure(tmp_path: Path) -> None:
    rows = verify(["diffgrad"], tmp_path / "runs", quick=True)
    assert {each.verdict for each in rows} <= {"holds", "differs", "not run"}, table(rows)
    page = write_page(tmp_path / "runs", tmp_path / "out").read_text()
    assert "](verify/diffgrad.png)" in page
    drawn = (tmp_path / "out" / "verify" / "diffgrad.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert "| F1: x_1 |" in page
    assert "**not run**" in page
    again = write_page(tmp_path / "runs", tmp_path / "again")
    assert (again.parent / "verify" / "diffgrad.png").read_bytes() == drawn


def test_what_another_machine_has_run_stays_on_the_page(tmp_path: Path) -> None:
    verify(["diffgrad"], tmp_path / "runs", quick=True)
    page = write_page(tmp_path / "runs", tmp_path / "out")
    first, drawn = page.read_text(), (tmp_path / "out" / "verify" / "diffgrad.png").read_bytes()
    assert write_page(tmp_path / "clone", tmp_path / "out").read_text() == first, "no run here: as it was published"
    assert (tmp_path / "out" / "verify" / "diffgrad.png").read_bytes() == drawn
    assert "**not run**" in (kept := next(line for line in first.splitlines() if "diffGrad less Adam at lr/2" in line))
    rows = tmp_path / "out" / "verify" / "diffgrad.json"
    known = load_published(rows.parent)
    key = "diffgrad.functions"
    rows.write_text(json.dumps({key: {**asdict(known[key]), "fingerprint": "of other code"}}))
    again = write_page(tmp_path / "clone", tmp_path / "out").read_text()
    assert next(line for line in again.splitlines() if line.startswith("| F1: x_1 |")).endswith("**not run** |")
    assert kept in again
    rows.write_text("{")
    with pytest.raises(FedsimError, match=r"diffgrad\.json can't be read"):
        write_page(tmp_path / "clone", tmp_path / "out")


def test_fewer_seeds_than_published_do_not_replace_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(seed: int) -> Measured:
        """Its seed."""
        return Measured({"x": float(seed)}, facts={"text": f"of seed {seed}"})

    made = Claim("gns", "seeds", measure, {"x": Expected("the seed itself", "e")}, "here")
    for room in ("runner", "page"):
        monkeypatch.setattr(f"fedsim.verify.{room}.claims_of", lambda paper: [made] if paper == "gns" else [])
    monkeypatch.setattr("fedsim.verify.page.draw", lambda *_: None)

    def shown(runs: str, seeds: int) -> str:
        verify(["gns"], tmp_path / runs, seeds=seeds)
        page = write_page(tmp_path / runs, tmp_path / "out").read_text()
        assert "- `seeds`: text of seed 0" in page
        return next(line for line in page.splitlines() if "the seed itself" in line)

    assert "3 seeds" in (three := shown("one", 3))
    assert shown("two", 2) == three
    assert "| 1.5 [" in shown("two", 4)


def test_the_command_fails_where_a_claim_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.cli import app

    def measure(seed: int) -> Measured:
        """Wrong."""
        return Measured({"x": 2.0})

    for high, status in ((3.0, 0), (1.0, 1)):
        made = Claim("gns", f"to_{high:g}", measure, {"x": Expected("c", "e", None, high)}, "here", exact=True)
        monkeypatch.setattr(runner, "claims_of", lambda paper, made=made: [made] if paper == "gns" else [])
        options = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
        found = CliRunner().invoke(app, ["verify", "gns", *options])
        assert found.exit_code == status, found.output
        assert "verify.md" in found.output


SMALL = {"rounds": 3, "data": {"clients": 4}, "model": {"name": "logistic"}, "client": {"per_round": 2, "steps": 1}}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("becomes", ["a result", "an error", "an error that follows it"])
@pytest.mark.parametrize("background", [False, True])
def test_what_a_signal_cut_off_is_neither_a_result_nor_a_failure(
    background: bool, becomes: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsim.cli import main

    begun: list[int] = []

    def cut(line: dict[str, Any]) -> None:
        if len(begun) == 1 and line["round"] == 2:
            os.kill(os.getpid(), number)

    def measure(seed: int) -> Measured:
        """Accuracy of the last round."""
        begun.append(seed)
        scenario = Scenario(seed=seed, engine={"workers": 1}, **SMALL)
        try:
            lines = simulate(scenario, progress=cut).lines
        except KeyboardInterrupt as error:
            if becomes == "an error that follows it":
                raise TypeError("of a half of a run") from error
            raise
        accuracy = None if becomes == "an error" and len(lines) < 4 else lines[-1]["accuracy"]
        return Measured({"x": float(accuracy)})

    made = Claim("gns", "cut", measure, {"x": Expected("c", "e", 0.0, 1.0)}, "here", seeds=2)
    monkeypatch.setattr(runner, "claims_of", lambda paper: [made] if paper == "gns" else [])
    runs = tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["fedsim", "verify", "gns", "--runs", str(runs), "--out", str(tmp_path / "out")])
    monkeypatch.setattr("fedsim.verify.page.write_page", lambda runs, out: out)
    before = [(each, signal.getsignal(each)) for each in (signal.SIGTERM, signal.SIGINT)]
    heard = signal.SIG_IGN if background else signal.default_int_handler
    signal.signal(signal.SIGINT, heard)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
        assert signal.getsignal(signal.SIGINT) is heard
    finally:
        for each, handler in before:
            signal.signal(each, handler)
    assert (ended.value.code, begun) == (130, [0]), "neither its second seed"
    assert not list(runs.glob("*"))
    (row,) = verify(["gns"], runs)
    assert (begun, row.verdict, len(row.values)) == ([0, 0, 1], "holds", 2)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Row]], float]:
    """Every paper's quick claims, and the processor's seconds for all of them."""
    folder, begun = tmp_path_factory.mktemp("quick"), time.process_time()
    rows = {paper: verify([paper], folder, quick=True) for paper in PAPERS}
    return rows, time.process_time() - begun


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_quick_claims_hold(paper: str, quick: tuple[dict[str, list[Row]], float]) -> None:
    """All of them, on a machine without any data set: none is left out."""
    rows = quick[0][paper]
    assert rows
    assert {each.verdict for each in rows} <= {"holds", "differs", "seen"}, table(rows)


@pytest.mark.slow
def test_quick_claims_take_minutes(quick: tuple[dict[str, list[Row]], float]) -> None:
    assert quick[1] < QUICK
