"""Accuracy against robustness: a numbered dot a defense, none hidden by another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.report.figures import Axis, Tick
from fedsim.report.words import number, percent

WIDTH, HEIGHT, DOT = 300.0, 300.0, 24.0
"""The narrowest canvas that the dots are spread for, in pixels, and what a dot takes."""


@dataclass(frozen=True)
class Dot:
    """A defense, in per cent of the canvas; ``true_x`` and ``true_y`` where it would be if nobody were in the way."""

    x: float
    y: float
    true_x: float
    true_y: float
    number: int
    name: str
    link: str
    text: str


@dataclass(frozen=True)
class Scatter:
    """Dots with their axes."""

    dots: list[Dot]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def scatter(rows: Sequence[tuple[int, str, str, float, float]]) -> Scatter | None:
    """The chart of (number, defense, link, accuracy without attack, harm under the worst attack); None without any."""
    known = [row for row in rows if not math.isnan(row[3]) and not math.isnan(row[4])]
    if not known:
        return None
    low, high = min(row[3] for row in known), max(row[3] for row in known)
    pad = max(0.15 * (high - low), 0.01)
    x, y = Axis(max(0.0, low - pad), min(1.0, high + pad)), Axis(0.0, 1.0)
    placed: list[Dot] = []
    for count, name, link, calm, worst in known:
        at = (100 * x.share(calm), 100 - 100 * y.share(min(max(1 - worst, 0.0), 1.0)))
        free = _free(at, placed)
        text = f"{name}: accuracy {percent(calm)} without attack, harm {percent(worst)} under its worst attack"
        placed.append(Dot(*free, *at, count, name, link, text))
    return Scatter(
        placed,
        [Tick(100 * x.share(at), percent(at, int(not _whole(at)))) for at in x.ticks(4)],
        [Tick(100 - 100 * y.share(at), number(at)) for at in y.ticks(5)],
    )


def _whole(share: float) -> bool:
    return math.isclose(100 * share, round(100 * share), abs_tol=1e-9)


def _free(at: tuple[float, float], placed: Sequence[Dot]) -> tuple[float, float]:
    """The nearest place on a spiral around ``at`` where no dot is."""
    for step in range(200):
        turn, reach = step * 2.4, 0.28 * DOT * math.sqrt(step)
        spot = at[0] + 100 * reach * math.cos(turn) / WIDTH, at[1] + 100 * reach * math.sin(turn) / HEIGHT
        inside = -1 <= spot[0] <= 101 and -1 <= spot[1] <= 101
        if inside and all(
            math.hypot((spot[0] - dot.x) * WIDTH / 100, (spot[1] - dot.y) * HEIGHT / 100) >= DOT for dot in placed
        ):
            return spot
    return at


__all__ = ["Dot", "Scatter", "scatter"]
