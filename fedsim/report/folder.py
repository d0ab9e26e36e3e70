"""A run's folder, read for a report: whatever is missing is empty, a half-written last line is left out."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import FedsimError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClientRows:
    """What was recorded of each client in each round, one entry a reply.

    Args:
        round, client: (m,) numbers.
        malicious, kept: (m,) flags.
        weight: (m,) share of the aggregate, NaN where no linear weight exists.
        norm: (m,) norm of the update.
        scores: part → (m,) scores, NaN where there is none.
    """

    round: NDArray[np.int64]
    client: NDArray[np.int64]
    malicious: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    weight: Floats
    norm: Floats
    scores: dict[str, Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, lines: list[dict[str, Any]]) -> ClientRows:
        names = dict.fromkeys(name for line in lines for name in line.get("scores") or {})
        return cls(
            np.array([line["round"] for line in lines], dtype=np.int64),
            np.array([line["client"] for line in lines], dtype=np.int64),
            np.array([bool(line.get("malicious")) for line in lines], dtype=bool),
            np.array([bool(line.get("kept")) for line in lines], dtype=bool),
            _floats(line.get("weight") for line in lines),
            _floats(line.get("norm") for line in lines),
            {name: _floats((line.get("scores") or {}).get(name) for line in lines) for name in names},
        )

    def __len__(self) -> int:
        return len(self.round)


@dataclass(frozen=True)
class RunFolder:
    """Everything that a run left in its folder."""

    path: Path
    scenario: dict[str, Any]
    scenario_text: str
    info: dict[str, Any]
    rounds: list[dict[str, Any]]
    clients: ClientRows
    partition: dict[str, Any]
    samples: dict[str, NDArray[Any]]
    summary: dict[str, Any]
    privacy: dict[str, Any] = field(default_factory=dict)
    observations: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Read a folder.

        Raises:
            FedsimError: there is no rounds.jsonl, or a file is not what its name says.
        """
        if not (path / "rounds.jsonl").is_file():
            missing = "there is no rounds.jsonl in it" if path.is_dir() else "there is no such folder"
            raise FedsimError(f"{path} holds no run: {missing}; accepted: the folder of a run, or of a benchmark")
        text = (path / "scenario.toml").read_text("utf-8") if (path / "scenario.toml").is_file() else ""
        try:
            scenario = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise FedsimError(f"{path / 'scenario.toml'}: {error}") from error
        return cls(
            path,
            scenario,
            text,
            _table(path / "run.json"),
            _lines(path / "rounds.jsonl"),
            ClientRows.of(_lines(path / "clients.jsonl")),
            _table(path / "partition.json"),
            _arrays(path / "samples.npz"),
            _table(path / "summary.json"),
            _table(path / "privacy.json"),
            _list(path / "observations.json"),
            _arrays(path / "observations.npz"),
        )

    @property
    def title(self) -> str:
        return str(self.scenario.get("title") or self.info.get("title") or self.path.resolve().name)

    @property
    def seed(self) -> int:
        return int(self.scenario.get("seed", 0))

    @property
    def last_round(self) -> int:
        return int(self.rounds[-1]["round"]) if self.rounds else 0

    @property
    def planned_rounds(self) -> int:
        return int(self.scenario.get("rounds", self.last_round))

    @property
    def finished(self) -> bool:
        return bool(self.summary.get("finished", self.last_round >= self.planned_rounds))

    @property
    def guest(self) -> bool:
        """Whether a stock Flower strategy aggregated, whose weights are unknown."""
        defenses = (self.scenario.get("server") or {}).get("defenses") or []
        first = defenses[0] if defenses else ""
        return str(first.get("name", "") if isinstance(first, Mapping) else first).startswith("flwr:")

    @property
    def floor(self) -> tuple[list[int], list[float]]:
        """ASR of the same run without attack: rounds and values; its last value alone where no more was recorded."""
        floor = self.summary.get("floor")
        if not isinstance(floor, Mapping):
            return [], []
        each = floor.get("rounds")
        pairs = sorted(
            (int(number), finite(value)) for number, value in (each if isinstance(each, Mapping) else {}).items()
        )
        known = [(number, value) for number, value in pairs if value is not None]
        last = finite(floor.get("asr"))
        if not known and last is not None:
            known = [(self.last_round, last)]
        return [number for number, _ in known], [value for _, value in known]

    @property
    def attacked(self) -> bool:
        """Whether any client of any round was malicious."""
        return any(line.get("malicious") for line in self.rounds) or bool(self.clients.malicious.any())

    @cached_property
    def malicious_clients(self) -> list[int]:
        """Clients that attacked in some round."""
        named = {int(client) for line in self.rounds for client in line.get("malicious") or ()}
        return sorted(named | set(self.clients.client[self.clients.malicious].tolist()))

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """The rounds in which a measure was taken, and its values."""
        pairs = [(int(line["round"]), finite(line.get(key))) for line in self.rounds]
        known = [(number, value) for number, value in pairs if value is not None]
        return [number for number, _ in known], [value for _, value in known]


def finite(value: Any) -> float | None:
    """A number as a float; None for null, NaN, infinity and what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _floats(values: Iterator[Any]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _table(file: Path) -> dict[str, Any]:
    found = _json(file)
    return found if isinstance(found, dict) else {}


def _list(file: Path) -> list[dict[str, Any]]:
    found = _json(file)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _json(file: Path) -> Any:
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise FedsimError(f"{file} is not JSON: {error}") from error


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    whole = [line for line in file.read_text("utf-8").split("\n") if line.strip()]
    try:
        return list(json.loads("[" + ",".join(whole) + "]"))
    except ValueError:
        pass
    found = []
    for number, line in enumerate(whole, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number < len(whole):
                raise FedsimError(f"{file}, line {number} is not JSON: {error}") from error
    return found


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    if not file.is_file():
        return {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError) as error:
        raise FedsimError(f"{file} cannot be read: {error}") from error
