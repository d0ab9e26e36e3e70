"""What observers found out, as the run's page shows it: sentences beside ε, pictures, and the curve of a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsim.report import words
from fedsim.report.figures import Axis, Chart, Shape, Tick
from fedsim.report.folder import RunFolder, finite
from fedsim.report.images import in_unit_range
from fedsim.report.privacy import relation

MOST = 16
"""Pictures that are shown at most."""
LEAST_RATE = 1e-4
"""Where the logarithmic axes of a curve begin."""
FIRST = ("observer", "standpoint", "sees", "round", "epsilon", "delta", "position", "rates", "roc")
"""What stands in words of its own, not among the measures."""


@dataclass(frozen=True)
class Finding:
    """One observation.

    Args:
        title: who looked, and when.
        lead: what it saw, beside ε.
        facts: (measure, value).
        rates: rows of (false positive rate, true positive rate, interval, bound).
        chart: the curve of a test.
        pictures: (truth, found) data URIs.
    """

    title: str
    lead: str
    facts: list[tuple[str, str]]
    rates: list[tuple[str, str, str, str]] = field(default_factory=list)
    chart: Chart | None = None
    pictures: list[tuple[str, str]] = field(default_factory=list)


def observed(run: RunFolder) -> list[Finding]:
    """All findings of a run, in the order in which they were made."""
    return [_finding(number, found, run) for number, found in enumerate(run.observations)]


def _finding(number: int, found: Mapping[str, Any], run: RunFolder) -> Finding:
    epsilon, delta = finite(found.get("epsilon")), finite(found.get("delta"))
    spent = "No privacy is claimed."
    if epsilon is not None:
        spent = f"ε = {words.number(epsilon)} ({relation(run)}) was spent against it, at δ = {delta or 0:g}."
    facts = [(str(key).replace("_", " "), _shown(value)) for key, value in found.items() if key not in FIRST]
    truth, seen = run.pictures.get(f"{number}.truth"), run.pictures.get(f"{number}.found")
    pictures = []
    if truth is not None and seen is not None and truth.ndim == 4:
        pictures = list(zip(in_unit_range(truth[:MOST]), in_unit_range(seen[:MOST]), strict=True))
    return Finding(
        f"{found.get('observer', 'observer')}, round {found.get('round', '?')}",
        f"From the standpoint of a {found.get('standpoint', '?')} it saw {found.get('sees', '?')}. {spent}",
        [fact for fact in facts if fact[1]],
        [_rate(each) for each in found.get("rates") or () if isinstance(each, Mapping)],
        _curve(found),
        pictures,
    )


def _rate(point: Mapping[str, Any]) -> tuple[str, str, str, str]:
    low, high, bound = (finite(point.get(name)) for name in ("tpr_low", "tpr_high", "bound"))
    return (
        f"{words.percent(finite(point.get('asked')))} ({words.percent(finite(point.get('fpr')))} reached)",
        words.percent(finite(point.get("tpr"))),
        f"{words.percent(low)} to {words.percent(high)}",
        "–" if bound is None else words.percent(bound),
    )


def _curve(found: Mapping[str, Any]) -> Chart | None:
    """True against false positive rate, both logarithmic: what counts is the left end."""
    points = [(finite(x), finite(y)) for x, y in found.get("roc") or ()]
    if not points:
        return None
    axis = Axis(LEAST_RATE, 1.0, log=True)

    def place(x: float | None, y: float | None) -> str:
        across, up = axis.share(x or LEAST_RATE), axis.share(y or LEAST_RATE)
        return f"{1000 * across:.1f} {1000 - 1000 * up:.1f}"

    ticks = [(100 * axis.share(at), f"{at:g}") for at in axis.ticks()]
    return Chart(
        "Members found, by the false alarms that are allowed",
        f"True against false positive rate; the area under the curve is {words.number(finite(found.get('auc')))}",
        [Shape("M0 1000L1000 0", "grid"), Shape("M" + "L".join(place(x, y) for x, y in points), "line malicious")],
        [Tick(at, text) for at, text in ticks],
        [Tick(100 - at, text) for at, text in ticks],
        x_title="false positive rate",
        note="The straight line is guessing.",
    )


def _shown(value: Any) -> str:
    number = finite(value)
    if number is not None and not isinstance(value, int):
        return words.number(number)
    if isinstance(value, list):
        return ", ".join(map(str, value[:10])) + (", …" if len(value) > 10 else "")
    return "" if value is None else str(value)
