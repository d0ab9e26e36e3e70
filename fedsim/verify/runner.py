"""Runs claims, keeps each result in a file of its own, and picks up what is there already.

A result counts only for the code that gave it: its file names the hash of what the claim's function reaches in this
room, of the files that the paper's ``PARTS`` and the claim's ``parts`` name, and of fedsim's version.
"""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsim import runtime
from fedsim.errors import FedsimError, nearest, one_line
from fedsim.record import make_folder, write_json
from fedsim.simulation import whole_or_none
from fedsim.verify.claim import Claim, Measured, Row, claims_of
from fedsim.verify.fingerprint import fingerprint

PAPERS = (
    "multi_metrics",
    "diff2",
    "hessian_alignment",
    "diffgrad",
    "langevin",
    "sam_gs",
    "gns",
    "softmax_radius",
    "harmonic",
    "monge_gap",
    "coherence",
    "generalization",
)
"""One file each, in the order of the page; what a file's ``MORE`` names holds further claims of its paper."""
FEDERATIONS = "fedsim.verify.in_a_federation"
"""Claims of any paper, as its scenarios have them."""

Say = Callable[[str], None]


def verify(
    papers: Sequence[str] = (),
    runs: str | Path = "runs/verify",
    *,
    quick: bool = False,
    seeds: int | None = None,
    say: Say = lambda line: None,
) -> list[Row]:
    """Run the claims that have no result yet; the rows of these papers.

    Args:
        papers: of PAPERS; all without.
        runs: folder of the results.
        quick: only claims that take seconds, one seed each.
        seeds: in place of each claim's own number; claims that draw nothing take one.
        say: told one line for each claim and seed that is run.

    Raises:
        FedsimError: no such paper.
        KeyboardInterrupt: Ctrl-C; of the claim that it cut off nothing is kept.
    """
    folder = Path(runs)
    rows: list[Row] = []
    for paper in papers or PAPERS:
        module = load(paper)
        for each in claims_of(paper):
            if quick and not each.quick:
                continue
            count = 1 if each.exact or quick else seeds or each.seeds
            for seed in range(count):
                _ensure(folder, module, each, seed, say)
            rows += rows_of(folder, module, each, count)
        here = {each.key: [got for got, _ in results_of(folder, module, each) if got] for each in claims_of(paper)}
        rows += [row for row in derived_rows(paper, here) if row.values]
    return rows


def rows_of(folder: Path, module: ModuleType, each: Claim, count: int | None) -> list[Row]:
    """A claim's rows out of its first ``count`` results, or out of all."""
    results = results_of(folder, module, each)[:count]
    values = [found.values for found, _ in results if found is not None]
    failure = next((said for found, said in results if found is None), "")
    rows = []
    for name, expected in each.rows.items():
        ours = [] if failure else [found[name] for found in values]
        rows.append(Row(each.paper, f"{each.key}.{name}", expected, expected.source or each.source, ours, failure))
    return rows


def derived_rows(paper: str, found: Mapping[str, Sequence[Measured]]) -> list[Row]:
    """Rows about two claims at once, which the paper's file makes of what they found: its ``derived(found)``."""
    make: Callable[[Mapping[str, Sequence[Measured]]], list[Row]] | None = getattr(load(paper), "derived", None)
    return make(found) if make else []


def results_of(folder: Path, module: ModuleType, each: Claim) -> list[tuple[Measured | None, str]]:
    """(what was found, or what went wrong) with seed 0, 1, …, as far as they are there."""
    found: list[tuple[Measured | None, str]] = []
    for seed in range(10_000):
        kept = _kept(_file(folder, each, seed), code_of(module, each))
        if kept is None:
            break
        found.append((None, kept["failure"]) if kept.get("failure") else (Measured(**kept["found"]), ""))
    return found


def times_of(folder: Path, each: Claim, count: int) -> list[tuple[float, float | None]]:
    """(seconds, seconds of the processor if they are known) that the first ``count`` results took."""
    records = [json.loads(_file(folder, each, seed).read_text()) for seed in range(count)]
    return [(record["seconds"], record.get("processor")) for record in records]


def _ensure(folder: Path, module: ModuleType, each: Claim, seed: int, say: Say) -> None:
    file, code = _file(folder, each, seed), code_of(module, each)
    kept = _kept(file, code)
    if kept is not None and not kept.get("failure"):
        return
    began, busy = time.perf_counter(), time.process_time()
    record: dict[str, Any] = {"fingerprint": code, "paper": each.paper, "claim": each.key, "seed": seed}
    try:
        with runtime.one_thread(), whole_or_none():
            found = each.measure(seed)
        broken = [name for name in each.rows if not math.isfinite(found.values[name])]
        if broken:
            raise FedsimError(f"{', '.join(broken)}: not finite")
        record["found"] = asdict(found)
    except Exception as error:  # a claim that breaks is a row that fails, and the others go on
        record["failure"] = f"{type(error).__name__}: {one_line(error)}"
    record["seconds"] = time.perf_counter() - began
    record["processor"] = time.process_time() - busy
    record["runtime"] = runtime.describe()
    make_folder(folder)
    write_json(file, record)
    took = f"{record['seconds']:.1f} s"
    say(f"{each.paper} {each.key} seed {seed}: {record.get('failure') or took}")


def _file(folder: Path, each: Claim, seed: int) -> Path:
    return folder / f"{each.paper}.{each.key}.{seed}.json"


def _kept(file: Path, fingerprint: str) -> dict[str, Any] | None:
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("fingerprint") == fingerprint else None


def load(paper: str) -> ModuleType:
    """A paper's file, imported with all its claims.

    Raises:
        FedsimError: no such paper.
    """
    if paper not in PAPERS:
        raise FedsimError(f"verify: given '{paper}'; accepted: {', '.join(PAPERS)}{nearest(paper, PAPERS)}")
    module = importlib.import_module(f"fedsim.verify.{paper}")
    for name in (*getattr(module, "MORE", ()), FEDERATIONS):
        importlib.import_module(name)
    return module


def code_of(module: ModuleType, each: Claim) -> str:
    """Fingerprint of what gives the claim's results."""
    return fingerprint(each.measure, (*getattr(module, "PARTS", ()), *each.parts))
