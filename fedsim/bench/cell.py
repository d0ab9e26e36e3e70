"""A cell of a ``[matrix]``: its scenario, its folder, and what its line in the summary says."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim import registry
from fedsim.errors import FedsimError
from fedsim.federation import key, make
from fedsim.launch import twin
from fedsim.report.aftermath import NEAR, aftermath
from fedsim.scenario import Part, Scenario

LAST = 5
"""Rounds over whose mean a cell's accuracy and ASR are reported."""


@dataclass
class Cell:
    """One cell of the matrix.

    Args:
        number: position in the product, from 1.
        total: cells in all.
        values: matrix key → this cell's value.
        scenario: the cell's scenario.
        folder: where it lies.
        state: ``waiting``, ``running``, ``finished``, ``skipped`` (finished before), ``interrupted`` or ``failed``.
        error: why it failed.
        row: its line of the summary.
        key: the run's key.
    """

    number: int
    total: int
    values: dict[str, Any]
    scenario: Scenario
    folder: Path
    state: str = "waiting"
    error: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    key: str = ""

    @classmethod
    def of(cls, number: int, total: int, values: dict[str, Any], scenario: Scenario, out: Path) -> Cell:
        """The cell, in a folder below ``out`` that is named by its key."""
        found = _key(scenario)
        return cls(number, total, values, scenario, out / _name(scenario, found), key=found)


def complete(cell: Cell) -> bool:
    """Whether nothing is left to do: the run is finished, and where it has a trigger its floor is known."""
    if not finished(cell.folder):
        return False
    said = json.loads((cell.folder / "summary.json").read_text())
    return said.get("floor") is not None or twin(cell.scenario) is None


def finished(folder: Path) -> bool:
    """Whether the run in this folder is complete."""
    path = folder / "summary.json"
    return path.exists() and bool(json.loads(path.read_text()).get("finished"))


def summary(cell: Cell) -> dict[str, Any]:
    """A cell's line: its values and the mean of its last rounds (how many is said)."""
    row: dict[str, Any] = {"cell": cell.number, "folder": cell.folder.name, "state": cell.state, "values": cell.values}
    if cell.error:
        row["error"] = cell.error
    return row | measured(cell.folder) if finished(cell.folder) else row


def measured(folder: Path) -> dict[str, Any]:
    """What a finished run's folder says: means of the last rounds, attackers that passed, whether parts acted."""
    lines = read_lines(folder)
    said = json.loads((folder / "summary.json").read_text())
    played = [line for line in lines if line["round"] > 0]
    row: dict[str, Any] = {"last_rounds": min(LAST, len([line for line in played if line["accuracy"] is not None]))}
    for name in ("accuracy", "asr", "loss"):
        row[name] = _mean([line[name] for line in played if line[name] is not None][-LAST:])
    row["worst10"] = _mean([line["worst10"] for line in played if line.get("worst10") is not None][-LAST:])
    attacked = [line for line in played if line["malicious"]]
    row["attacker_rows"] = sum(len(line["malicious"]) for line in attacked)
    row["attacker_rows_kept"] = sum(len(line["kept_malicious"]) for line in attacked)
    kept, asked = sum(len(line["kept"]) for line in attacked), sum(len(line["cohort"]) for line in attacked)
    row["chance"] = kept / asked if asked else None
    row["malicious_weight"] = _mean(
        [line["malicious_weight"] for line in attacked if line["malicious_weight"] is not None]
    )
    calm = said.get("floor") or {}
    row["floor"] = _calm(calm.get("rounds"), played)
    row["calm_accuracy"] = _calm(calm.get("accuracies"), played)
    row["attack_acted"] = any(line["attack_acted"] for line in attacked)
    row["defense_acted"] = any(line["defense_acted"] for line in played)
    row |= aftermath(lines, calm)
    # The median: a machine that stood still in one round says nothing of what a defense costs.
    row["seconds"] = statistics.median([sum(line["seconds"].values()) for line in played] or [0.0])
    row["digest"], row["notes"] = said["digest"], said["notes"]
    return row


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``rounds.jsonl``."""
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def _calm(values: dict[str, float] | None, played: list[dict[str, Any]]) -> float | None:
    """Mean over the last rounds of what the run without attack measured."""
    known = values or {}
    return _mean([known[str(line["round"])] for line in played if known.get(str(line["round"])) is not None][-LAST:])


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _name(scenario: Scenario, key: str) -> str:
    """``krum-3-0f3a…``: readable enough to find, unique by the key."""
    defenses = "+".join(part.name for part in scenario.server.defenses).replace(":", "-").replace("/", "-")
    return f"{defenses}-{scenario.seed}-{key[:12]}"


_fingerprints: dict[str, str] = {}


def _key(scenario: Scenario) -> str:
    return str(key(scenario, _fingerprint(scenario.data.dataset))["key"])


def _fingerprint(part: Part) -> str:
    name = json.dumps([part.name, part.options], sort_keys=True, default=str)
    if name not in _fingerprints:
        try:
            _fingerprints[name] = make("dataset", part).load().fingerprint
        except FedsimError:
            # The cell will say so when it is played; when the data is there, its key is another.
            return "missing"
    return _fingerprints[name]


def preload(parts: list[dict[str, Any]]) -> None:
    """Read data sets once, for this process and for all that it will fork; one that fails, fails in its cell."""
    from fedsim.data import reading

    for part in parts:
        options = {name: value for name, value in part.items() if name != "name"}
        try:
            registry.make("dataset", part["name"], **options).load()
        except FedsimError:
            continue
        reading.keep()


def data_sets(cells: list[Cell]) -> list[dict[str, Any]]:
    """The data sets that the cells read, each once: their own, and those that their attacks name."""
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        named: list[Any] = [cell.scenario.table()["data"]["dataset"]]
        named += [part.options["dataset"] for part in cell.scenario.adversary.attacks if "dataset" in part.options]
        for each in named:
            table = {"name": each} if isinstance(each, str) else dict(each)
            found[json.dumps(table, sort_keys=True, default=str)] = table
    return list(found.values())


__all__ = [
    "LAST",
    "NEAR",
    "Cell",
    "aftermath",
    "complete",
    "data_sets",
    "finished",
    "measured",
    "preload",
    "read_lines",
    "summary",
]
