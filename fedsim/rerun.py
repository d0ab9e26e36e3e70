"""Compares a run with its rerun: bit for bit on the same kind of machine, else to float tolerance, and says which.

Bits hold for one kind of processor, one operating system and one set of library versions, which every run records.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import ResumeError
from fedsim.record import Recorder

BOUND = ("python", "system", "processor", "versions", "environment")
"""What the bits depend on, out of a run's ``runtime``."""
MEASURES = ("accuracy", "loss", "asr")


@dataclass(frozen=True)
class Rerun:
    """What a comparison found.

    Args:
        exact: whether bits were compared (the machines are of one kind), not numbers.
        same: whether the runs agree.
        differs: what the machines differ in: key, first, second.
        parameters: ‖difference of the final models‖₂ / ‖first‖₂.
        measures: measure → largest difference over the rounds.
    """

    exact: bool
    same: bool
    differs: list[tuple[str, str, str]]
    parameters: float
    measures: dict[str, float]


def compare(first: Path, second: Path, tolerance: float = 1e-3) -> Rerun:
    """Compare two finished runs of one scenario.

    Args:
        first: a run's folder.
        second: another's.
        tolerance: largest relative difference of the models, and difference of accuracy, loss and ASR in any round,
            where the machines are not of one kind.

    Raises:
        ResumeError: a folder holds no finished run, or the runs are of different scenarios.
    """
    runs = [_read(folder) for folder in (first, second)]
    keys = [run["key"] for run, *_ in runs]
    if keys[0] != keys[1]:
        raise ResumeError(f"{second}: its key is {keys[1][:12]}; accepted: a run of the same scenario, {keys[0][:12]}")
    (one, said_one, model_one, lines_one), (two, said_two, model_two, lines_two) = runs
    differs = [
        (key, json.dumps(one["runtime"][key]), json.dumps(two["runtime"][key]))
        for key in BOUND
        if one["runtime"].get(key) != two["runtime"].get(key)
    ]
    off = np.sqrt(sum(float(((model_two[n] - a) ** 2).sum()) for n, a in model_one.items()))
    size = np.sqrt(sum(float((a**2).sum()) for a in model_one.values()))
    parameters = float(off / max(size, 1e-300))
    found = {name: _largest(lines_one, lines_two, name) for name in MEASURES}
    measures = {name: value for name, value in found.items() if value is not None}
    if not differs:
        return Rerun(True, said_one["digest"] == said_two["digest"], differs, parameters, measures)
    return Rerun(False, max(parameters, *measures.values()) <= tolerance, differs, parameters, measures)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    try:
        run = json.loads((folder / "run.json").read_text())
        said = json.loads((folder / "summary.json").read_text())
    except OSError as error:
        raise ResumeError(
            f"{folder}: holds no run ({error.strerror}); accepted: the folder of a finished run"
        ) from error
    if not said.get("finished"):
        raise ResumeError(f"{folder}: its run is not finished; accepted: the folder of a finished run")
    recorder, _, model, _ = Recorder.resume(folder)
    return run, said, {name: np.asarray(array, dtype=np.float64) for name, array in model.items()}, recorder.rounds


def _largest(one: list[dict[str, Any]], two: list[dict[str, Any]], name: str) -> float | None:
    both = [(a.get(name), b.get(name)) for a, b in zip(one, two, strict=True)]
    found = [abs(a - b) for a, b in both if a is not None and b is not None]
    return max(found) if found else None


__all__ = ["Rerun", "compare"]
