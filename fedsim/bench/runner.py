"""Runs the product of a scenario's ``[matrix]``: one folder a cell, finished cells skipped, one summary table.

A cell's folder is named by the key of its whole resolved scenario, so that no two cells share one and an edited file
makes a new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError
from fedsim.federation import key, make
from fedsim.launch import add_floor, run, twin
from fedsim.record import make_folder, write_json
from fedsim.scenario import Part, Scenario, cells, read

CellProgress = Callable[["Cell", dict[str, Any] | None], None]
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
    """

    number: int
    total: int
    values: dict[str, Any]
    scenario: Scenario
    folder: Path
    state: str = "waiting"
    error: str = ""
    row: dict[str, Any] = field(default_factory=dict)


def run_matrix(
    file: str | Path,
    out: str | Path,
    sets: Sequence[str] = (),
    progress: CellProgress | None = None,
    overrides: dict[str, Any] | None = None,
) -> list[Cell]:
    """Run every cell that is not finished yet.

    Args:
        file: scenario file with a ``[matrix]`` (or without: one cell), or the name of one that ships with fedsim.
        out: folder of the cells' folders and of ``summary.json``.
        sets: ``key=VALUE`` overrides.
        progress: called with the cell and each round's line, and with None when the cell's state changes.
        overrides: dotted key → value.

    Returns:
        The cells; a failed one says why and does not stop the others.

    Raises:
        ScenarioError: the faults of all cells at once; nothing was run.
    """
    product = cells(read(file, overrides, sets), str(file))
    folder = Path(out)
    found = [
        Cell(i + 1, len(product), values, scenario, folder / _name(scenario))
        for i, (values, scenario) in enumerate(product)
    ]
    make_folder(folder)
    for cell in found:
        _play(cell, folder, progress)
        write_json(folder / "summary.json", [summary(each) for each in found])
        if cell.state == "interrupted":
            break
    return found


def _play(cell: Cell, folder: Path, progress: CellProgress | None) -> None:
    tell = progress or (lambda cell, line: None)
    if _complete(cell):
        cell.state = "skipped"
    else:
        cell.state = "running"
        tell(cell, None)
        try:
            result = run(cell.scenario, cell.folder, resume=True, progress=lambda line: tell(cell, line))
            cell.state = "finished" if result.finished else "interrupted"
            if result.finished:
                add_floor(result, folder / "floors")
        except FedsimError as error:
            cell.state, cell.error = "failed", str(error)
        except Exception as error:
            cell.state, cell.error = "failed", f"{type(error).__name__}: {error}"
    cell.row = summary(cell)
    tell(cell, None)


def _complete(cell: Cell) -> bool:
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
    if not finished(cell.folder):
        return row
    lines = [json.loads(line) for line in (cell.folder / "rounds.jsonl").read_text().splitlines()]
    said = json.loads((cell.folder / "summary.json").read_text())
    played = [line for line in lines if line["round"] > 0]
    row["last_rounds"] = min(LAST, len([line for line in played if line["accuracy"] is not None]))
    for name in ("accuracy", "asr", "loss"):
        values = [line[name] for line in played if line[name] is not None][-LAST:]
        row[name] = sum(values) / len(values) if values else None
    attacked = [line for line in played if line["malicious"]]
    row["attacker_rows"] = sum(len(line["malicious"]) for line in attacked)
    row["attacker_rows_kept"] = sum(len(line["kept_malicious"]) for line in attacked)
    kept, asked = sum(len(line["kept"]) for line in attacked), sum(len(line["cohort"]) for line in attacked)
    row["chance"] = kept / asked if asked else None
    weights = [line["malicious_weight"] for line in attacked if line["malicious_weight"] is not None]
    row["malicious_weight"] = sum(weights) / len(weights) if weights else None
    calm = (said.get("floor") or {}).get("rounds", {})
    floors = [calm[str(line["round"])] for line in played if str(line["round"]) in calm][-LAST:]
    row["floor"] = sum(floors) / len(floors) if floors else None
    row["digest"], row["notes"] = said["digest"], said["notes"]
    return row


def _name(scenario: Scenario) -> str:
    """``krum-3-0f3a…``: readable enough to find, unique by the key."""
    defenses = "+".join(part.name for part in scenario.server.defenses).replace(":", "-").replace("/", "-")
    return f"{defenses}-{scenario.seed}-{_key(scenario)[:12]}"


_fingerprints: dict[str, str] = {}


def _key(scenario: Scenario) -> str:
    return str(key(scenario, _fingerprint(scenario.data.dataset))["key"])


def _fingerprint(part: Part) -> str:
    name = json.dumps([part.name, part.options], sort_keys=True, default=str)
    if name not in _fingerprints:
        _fingerprints[name] = make("dataset", part).load().fingerprint
    return _fingerprints[name]


__all__ = ["Cell", "finished", "run_matrix", "summary"]
