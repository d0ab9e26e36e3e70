"""A claim of a paper: what is measured, what is expected, what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedsim.analysis.statistics import t_interval
from fedsim.errors import FedsimError

Verdict = Literal["holds", "differs", "fails", "seen", "not run"]
MEANING: dict[str, str] = {
    "holds": "ours lies where the claim says",
    "differs": "ours is not the published figure; the row says what is seen instead and why, and that it is seen again",
    "fails": "ours lies outside of what is accepted",
    "seen": "measured, nothing is claimed",
    "not run": "no result yet",
}


@dataclass
class Measured:
    """What a claim's function found with one seed.

    Args:
        values: numbers by name, those that rows are about.
        series: curves by name, for the figure.
        facts: what else the page should say, in words by name, e.g. the hash of a text.
    """

    values: dict[str, float]
    series: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """What one measured number is held against.

    Args:
        claim: what is claimed, a sentence.
        expected: the published figure, as it is written.
        low: least accepted mean over seeds; None for no bound.
        high: largest accepted mean over seeds; None for no bound.
        differs: where ours is not the published figure: what we see and why. The bounds are then of what is seen.
        source: where it stands, in place of the claim's own.
    """

    claim: str
    expected: str
    low: float | None = None
    high: float | None = None
    differs: str = ""
    source: str = ""

    @property
    def tolerance(self) -> str:
        """The accepted interval."""
        if self.low is not None and self.high is not None:
            return f"{self.low:.6g}" if self.low == self.high else f"{self.low:.6g} to {self.high:.6g}"
        if self.low is not None:
            return f"≥ {self.low:.6g}"
        return "" if self.high is None else f"≤ {self.high:.6g}"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        paper: file name of the paper.
        key: claim and number.
        expected: what it is held against.
        source: where the claim stands.
        values: ours, one a seed.
        failure: what went wrong in place of a result.
        published: where there are no values here: the published mean, and how it is shown.
    """

    paper: str
    key: str
    expected: Expected
    source: str
    values: Sequence[float] = ()
    failure: str = ""
    published: tuple[float, str] | None = None

    @property
    def mean(self) -> float | None:
        """Over the seeds; None without a result."""
        if self.values:
            return sum(self.values) / len(self.values)
        return self.published[0] if self.published else None

    @property
    def verdict(self) -> Verdict:
        mean = self.mean
        if mean is None:
            return "not run" if not self.failure or self.failure.startswith("DataMissing") else "fails"
        low, high = self.expected.low, self.expected.high
        within = math.isfinite(mean) and (low is None or mean >= low) and (high is None or mean <= high)
        if not within:
            return "fails"
        if self.expected.differs:
            return "differs"
        return "seen" if low is None and high is None else "holds"

    @property
    def ours(self) -> str:
        """The mean over seeds with its interval at 95 %."""
        if not self.values:
            return self.published[1] if self.published else self.failure or "–"
        if not all(map(math.isfinite, self.values)):
            return "not finite"
        found = t_interval(self.values)
        shown = f"{found.mean:.5g}"
        if found.n > 1:
            shown += f" [{found.low:.4g}, {found.high:.4g}], {found.n} seeds"
        return shown


@dataclass(frozen=True)
class Claim:
    """A function of a seed with what is expected of its numbers.

    Args:
        paper: file name of the paper.
        key: name, unique in the paper.
        measure: seed -> what was found.
        rows: number's name -> what is expected of it.
        source: section, table or equation.
        seeds: how many by default; 1 where nothing is drawn, or where a run takes ten minutes.
        exact: nothing is drawn: more seeds would give the same.
        quick: part of ``--quick``.
        parts: modules that this claim hangs on beyond those that its paper names in ``PARTS``.
    """

    paper: str
    key: str
    measure: Callable[[int], Measured]
    rows: Mapping[str, Expected]
    source: str
    seeds: int = 3
    exact: bool = False
    quick: bool = True
    parts: tuple[str, ...] = ()


def curves_of(found: Mapping[str, Sequence[Measured]], key: str) -> dict[str, list[float]]:
    """A claim's curves with its first seed; none if it has no result, or if they were not kept."""
    return found[key][0].series if key in found else {}


def seed_mean(found: Mapping[str, Sequence[Measured]], key: str, name: str) -> float | None:
    """A claim's number, mean over the seeds, as in the table; None without it."""
    values = [each.values[name] for each in found.get(key, ()) if name in each.values]
    return sum(values) / len(values) if values else None


_claims: dict[tuple[str, str], Claim] = {}


def claim(
    rows: Mapping[str, Expected],
    *,
    source: str,
    seeds: int = 3,
    exact: bool = False,
    quick: bool = True,
    paper: str = "",
    parts: tuple[str, ...] = (),
) -> Callable[[Callable[[int], Measured]], Callable[[int], Measured]]:
    """Decorator: the function ``(seed) -> Measured`` becomes a claim under its own name.

    Args:
        rows: as of :class:`Claim`; likewise source, seeds, exact, quick and parts.
        source: see there.
        seeds: see there.
        exact: see there.
        quick: see there.
        paper: whose claim it is; by default that of the file's name.
        parts: see there.

    Raises:
        FedsimError: the file has such a claim already.
    """

    def decorate(function: Callable[[int], Measured]) -> Callable[[int], Measured]:
        name, key = paper or function.__module__.rpartition(".")[2], function.__name__
        if (name, key) in _claims and _claims[name, key].measure.__code__ != function.__code__:
            raise FedsimError(f"verify: {name} has two claims '{key}'")
        _claims[name, key] = Claim(name, key, function, rows, source, 1 if exact else seeds, exact, quick, parts)
        return function

    return decorate


def claims_of(paper: str) -> list[Claim]:
    """The claims of a paper whose file is imported, in the order of the file."""
    return [found for (name, _), found in _claims.items() if name == paper]
