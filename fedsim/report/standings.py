"""A benchmark as its leaderboard shows it: from the folder of its cells, or from the ``results.json`` of a leaderboard.

``results.json`` holds all that the pages show and nothing else: a line a cell, the curves of its rounds to four digits,
one scenario a setting, and the machines and versions of the runs. The pages can be made from it again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.analysis.statistics import Interval, t_interval
from fedsim.errors import FedsimError
from fedsim.tables import Privacy

if TYPE_CHECKING:
    import pandas as pd

NAME = "results.json"
FORMAT = 1
CURVES = ("accuracy", "asr")
LEAST = {"accuracy": 0.0, "asr": 0.0, "utility_lost": -1.0, "asr_gain": -1.0, "calm_accuracy": 0.0}
"""What has an interval over seeds, and below what no mean can lie."""
TEXTS = ("defense", "attack", "dataset", "partition", "state", "marks", "error", "digest", "folder", "key", "setting")
FLAGS = ("attacked", "defended", "attack_acted", "defense_acted")


@dataclass(frozen=True)
class Setting:
    """What cells share that differ by their seed alone: a square of the matrix.

    Args:
        key: hash of it.
        defense, attack, place: what it is: its defense, its attack, and where (data set, partition, …).
        attacked: whether anybody attacks.
        measures: name → mean over seeds with its interval (accuracy, asr, utility_lost, asr_gain, harm, kept: the share
            of the attackers' rows that the defense kept; NaN where nobody attacked).
        floor: mean ASR without attack; NaN where there is no trigger.
        seconds: a round.
        chance: the share kept if the defense had kept as many at random.
        marks: see :func:`fedsim.bench.tables.over_seeds`.
        cells: its cells, as ``results.json`` holds them, by ascending seed.
        epsilon: spent, as the runs claim; NaN where nothing is claimed.
        claim: what that is about: relation, unit, trust and δ. An ε stands beside none of another claim.
        failed: cells that failed.
    """

    key: str
    defense: str
    attack: str
    place: str
    attacked: bool
    measures: dict[str, Interval]
    floor: float
    seconds: float
    chance: float
    marks: str
    cells: list[dict[str, Any]]
    epsilon: float
    claim: str
    failed: int


@dataclass
class Standings:
    """Everything that a leaderboard shows.

    Args:
        cells: a dict a cell: the columns of :func:`fedsim.bench.results`, ``epsilon`` and ``versions``.
        rounds: cell's key → ``round`` and the measures of ``CURVES``.
        scenarios: setting → its resolved scenario on one of its seeds.
        versions: id → fedsim's version and the description of the machine.
        title: what was run.
    """

    cells: list[dict[str, Any]]
    rounds: dict[str, dict[str, list[Any]]]
    scenarios: dict[str, dict[str, Any]]
    versions: dict[str, dict[str, Any]]
    title: str = ""
    command: str = ""
    _settings: list[Setting] = field(default_factory=list, repr=False)

    @classmethod
    def read(cls, source: str | Path) -> Standings:
        """From a benchmark's folder (or its scenario file), or from a folder with a ``results.json``.

        Raises:
            FedsimError: no results there.
        """
        folder = Path(source)
        if (folder / NAME).is_file() and not (folder / "results.sqlite").is_file():
            return cls._published(folder / NAME)
        return cls._run(source)

    @classmethod
    def _published(cls, file: Path) -> Standings:
        try:
            told = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise FedsimError(f"{file} is not JSON: {error}") from error
        if told.get("format") != FORMAT:
            raise FedsimError(f"{file}: given format {told.get('format')}; accepted: {FORMAT}")
        return cls(told["cells"], told["rounds"], told["scenarios"], told["versions"], told["title"], told["command"])

    @classmethod
    def _run(cls, source: str | Path) -> Standings:
        from fedsim.bench.results import find, results
        from fedsim.bench.store import Store

        frame = results(source)
        folder = find(source)
        with Store.reading(folder) as store:
            stored = {row["key"]: row for row in store.rows("SELECT key, setting, scenario, versions FROM cells")}
            lines = store.rows("SELECT key, round, accuracy, asr, epsilon FROM rounds ORDER BY key, round")
            machines = store.rows("SELECT * FROM versions")
        rounds: dict[str, dict[str, list[Any]]] = {}
        epsilon: dict[str, float] = {}
        for line in lines:
            curves = rounds.setdefault(line["key"], {"round": [], **{name: [] for name in CURVES}})
            curves["round"].append(line["round"])
            for name in CURVES:
                curves[name].append(None if line[name] is None else round(line[name], 4))
            if line["epsilon"] is not None:
                epsilon[line["key"]] = line["epsilon"]
        cells = json.loads(frame.to_json(orient="records", double_precision=15))
        scenarios: dict[str, dict[str, Any]] = {}
        for cell in cells:
            row = stored[cell["key"]]
            cell |= {"epsilon": epsilon.get(cell["key"]), "versions": row["versions"]}
            scenarios.setdefault(cell["setting"], json.loads(row["scenario"]))
        versions = {
            row["id"]: {"fedsim": row["fedsim"], "runtime": json.loads(row["runtime"])}
            for row in machines
            if row["id"] in {cell["versions"] for cell in cells}
        }
        titles = {str(table.get("title", "")) for table in scenarios.values()}
        title = titles.pop() if len(titles) == 1 else ""
        kept = {cell["key"] for cell in cells}
        return cls(cells, {key: rounds[key] for key in rounds if key in kept}, scenarios, versions, title, str(source))

    def json(self) -> str:
        """``results.json``: a line a cell, a scenario and a curve, so that versions of it can be compared."""
        table = {
            "format": FORMAT,
            "title": self.title,
            "command": self.command,
            "versions": self.versions,
            "cells": self.cells,
            "scenarios": self.scenarios,
            "rounds": self.rounds,
        }
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {_lines(value)}" for key, value in table.items()) + "\n}\n"

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The cells as :func:`fedsim.bench.results` gives them."""
        import pandas as pd

        frame = pd.DataFrame(self.cells)
        for name in ("accuracy", "loss", "asr", "floor", "calm_accuracy", "utility_lost", "asr_gain", "seconds"):
            frame[name] = pd.to_numeric(frame[name], errors="coerce")
        for name in ("chance", "attacker_rows", "attacker_rows_kept", "last_rounds", "epsilon", "malicious_weight"):
            frame[name] = pd.to_numeric(frame[name], errors="coerce")
        return frame

    @cached_property
    def settings(self) -> list[Setting]:
        """The squares of the matrix, in the order in which they were run; those without a finished cell included."""
        adversary, where = self.axes()
        groups: dict[str, list[dict[str, Any]]] = {}
        for cell in self.cells:
            groups.setdefault(cell["setting"], []).append(cell)
        return [
            _setting(key, cells, adversary, where, _claim(self.scenarios.get(key, {}))) for key, cells in groups.items()
        ]

    def axes(self) -> tuple[list[str], list[str]]:
        """Columns that tell attacks apart, and those that tell apart where they took place."""
        from fedsim.bench.results import keys

        known = [name for name in keys(self.cells[0]) if name not in ("defense", "attack")]
        varied = [name for name in known if len({str(cell.get(name)) for cell in self.cells}) > 1]
        adversary = [name for name in varied if name.startswith("adversary")]
        return ["attack", *adversary], [name for name in varied if name not in adversary]

    def ranking(self, place: str | None = None) -> list[dict[str, Any]]:
        """The defenses by their worst case, over all places or in one; see :func:`fedsim.bench.tables.ranking`."""
        from fedsim.bench.tables import ranking

        keys = {setting.key for setting in self.settings if place is None or setting.place == place}
        table = ranking(self.frame[self.frame["setting"].isin(keys)])
        return [dict(row) for _, row in table.iterrows()]

    @property
    def places(self) -> list[str]:
        return list(dict.fromkeys(setting.place for setting in self.settings))

    @property
    def attacks(self) -> list[str]:
        return list(dict.fromkeys(setting.attack for setting in self.settings if setting.attacked))

    @property
    def defenses(self) -> list[str]:
        return list(dict.fromkeys(setting.defense for setting in self.settings))


def harm(cell: Mapping[str, Any]) -> float | None:
    """The larger of utility lost and ASR above its floor; None where the former is unknown, and may be the larger."""
    lost, gain = cell.get("utility_lost"), cell.get("asr_gain")
    return lost if lost is None or gain is None else max(lost, gain)


def kept(cell: Mapping[str, Any]) -> float | None:
    """Share of the attackers' rows that the defense kept; None where nobody attacked."""
    rows = int(cell.get("attacker_rows") or 0)
    return int(cell.get("attacker_rows_kept") or 0) / rows if rows else None


def interval(values: Sequence[float | None], least: float = 0.0, most: float = 1.0) -> Interval:
    """Mean over seeds with Student's interval; NaN where nothing is known.

    Args:
        values: of each seed.
        least, most: between which the mean lies: an interval that reaches beyond ends there.
    """
    known = [float(value) for value in values if value is not None and not math.isnan(value)]
    if not known:
        return Interval(math.nan, math.nan, math.nan, 0)
    found = t_interval(known)
    low, high = (float(np.clip(end, least, most)) for end in (found.low, found.high))
    return found._replace(low=low, high=high)


def _lines(value: Any) -> str:
    """JSON with a line for each entry."""
    compact: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":")}
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(k)}:{json.dumps(v, **compact)}" for k, v in value.items()) + "\n}"
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(each, **compact) for each in value) + "\n]"
    return json.dumps(value, ensure_ascii=False)


def _claim(scenario: Mapping[str, Any]) -> str:
    privacy = Privacy().model_dump() | dict(scenario.get("privacy") or {})
    return f"{privacy['neighbours']}, {privacy['unit']}, {privacy['trust']}, δ = {float(privacy['delta']):g}"


def _setting(key: str, cells: list[dict[str, Any]], adversary: list[str], where: list[str], claim: str) -> Setting:
    first = cells[0]
    done = sorted((cell for cell in cells if cell["state"] == "finished"), key=lambda cell: int(cell["seed"]))
    measures = {name: interval([cell.get(name) for cell in done], least) for name, least in LEAST.items()}
    measures["harm"] = interval([harm(cell) for cell in done], -1.0)
    measures["kept"] = interval([kept(cell) for cell in done])
    spent = [float(cell["epsilon"]) for cell in done if cell.get("epsilon") is not None]
    return Setting(
        key,
        first["defense"],
        ", ".join(str(first[name]) for name in adversary),
        ", ".join(str(first[name]) for name in where),
        bool(first["attacked"]),
        measures,
        interval([cell.get("floor") for cell in done]).mean,
        interval([cell.get("seconds") for cell in done], most=math.inf).mean,
        interval([cell.get("chance") for cell in done]).mean,
        "".join(mark for mark in "ad" if any(mark in cell["marks"] for cell in done)) + ("1" if len(done) == 1 else ""),
        done,
        max(spent) if spent else math.nan,
        claim,
        sum(cell["state"] == "failed" for cell in cells),
    )


__all__ = ["NAME", "Setting", "Standings", "harm", "interval", "kept"]
