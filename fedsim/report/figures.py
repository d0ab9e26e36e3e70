"""Charts as data: paths in a box of 1000 × 1000 units, ticks in per cent; ``figure.html.j2`` draws them as inline SVG.

The box is stretched to whatever width the page has, strokes and text are not, so that one drawing serves a phone and
a desk. Colours are CSS classes (``honest``, ``malicious``, …), so that dark mode and print need no second drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsim.report.folder import Floats
from fedsim.report.words import number, percent

SIZE = 1000.0


@dataclass(frozen=True)
class Tick:
    """A label at a place along an axis, in per cent from its start."""

    at: float
    text: str


@dataclass(frozen=True)
class Shape:
    """An SVG path and the CSS classes that paint it."""

    path: str
    style: str


@dataclass(frozen=True)
class Key:
    """An entry of the legend."""

    style: str
    text: str


@dataclass(frozen=True)
class Hint:
    """What the pointer is told over a stretch of the x axis (units of the box)."""

    x: float
    width: float
    text: str


@dataclass
class Chart:
    """A drawing with its axes, legend and description."""

    title: str
    label: str
    shapes: list[Shape]
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    legend: list[Key] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)
    x_title: str = ""
    note: str = ""
    width: float = SIZE
    height: float = SIZE
    pixels: int = 220
    min_pixels: int = 0

    @property
    def gutter(self) -> int:
        """Characters that the labels of the y axis need."""
        return max((len(tick.text) for tick in self.y_ticks), default=0)


@dataclass(frozen=True)
class Series:
    """Values over rounds.

    Args:
        name: what the legend says.
        style: CSS class that gives the colour.
        x, y: rounds and values.
        low, high: a band around them.
        form: ``line`` (with dots while they are few), ``level`` (without), ``stems``, ``dots``, ``rings``, ``dashes``.
    """

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    form: str = "line"


@dataclass(frozen=True)
class Axis:
    """Values → units of the box, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        if self.log:
            value = max(value, self.low)
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int = 5) -> list[float]:
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, math.ceil((last - first + 1) / about))
            return [10.0**power for power in range(first, last + 1, step)]
        raw = (self.high - self.low) / about
        unit = 10 ** math.floor(math.log10(raw))
        step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw * (1 - 1e-9))
        count = math.floor((self.high - self.low) / step + 1e-9)
        start = math.ceil(self.low / step - 1e-9) * step
        return [start + i * step for i in range(count + 1) if start + i * step <= self.high + step * 1e-9]

    @classmethod
    def around(cls, values: Floats, log: bool = False) -> Axis:
        """An axis that holds the values; logarithmic if wished, possible, and spanning more than a factor of 30."""
        values = values[np.isfinite(values)]
        if len(values) == 0:
            return cls(0.0, 1.0)
        low, high = float(values.min()), float(values.max())
        if log and low > 0 and high / low > 30:
            return cls(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)), True)
        if low >= 0:
            return cls(0.0, high * 1.05 if high > 0 else 1.0)
        pad = 0.05 * (high - low) or max(abs(low) * 0.05, 1e-12)
        return cls(low - pad, high + pad)


SHARES = Axis(0.0, 1.0)
FEW = 60
"""Marks up to this number are drawn large."""
MANY = 150
"""Rounds beyond which marks for single rounds become too small to be told apart."""
MARKS = {"stems": "stem", "dots": "dot", "rings": "dot ring", "dashes": "dash"}


def curves(
    title: str,
    series: Sequence[Series],
    rounds: int,
    *,
    y: Axis = SHARES,
    marks: Sequence[int] = (),
    hints: Sequence[Hint] = (),
    label: str = "",
    note: str = "",
    pixels: int = 220,
) -> Chart:
    """Lines over rounds.

    Args:
        title: what is shown.
        series: the lines; their order is that of the legend.
        rounds: last round; the x axis runs from 0 to it.
        y: the y axis.
        marks: rounds that get a tick on the x axis (an attacker slipped through).
        hints: what the pointer is told.
        label: what a screen reader is told.
        note: a line below.
        pixels: height.
    """
    x = Axis(0.0, float(max(rounds, 1)))
    shapes = [Shape(_grid(y), "grid")]
    for one in series:
        if one.form == "stems":
            base = SIZE
            path = "".join(
                f"M{_x(x, px):g} {base:g}V{_y(y, py):g}" for px, py in zip(one.x, one.y, strict=True) if py > y.low
            )
            zeros = "".join(f"M{_x(x, px):g} {base:g}h0" for px, py in zip(one.x, one.y, strict=True) if py <= y.low)
            shapes += [Shape(path, f"stem {one.style}"), Shape(zeros if len(one.x) <= MANY else "", f"dot {one.style}")]
            continue
        if one.low and len(one.x) > 1:
            upper = [f"{_x(x, px):g} {_y(y, py):g}" for px, py in zip(one.x, one.high, strict=True)]
            lower = [f"{_x(x, px):g} {_y(y, py):g}" for px, py in zip(one.x, one.low, strict=True)]
            shapes.append(Shape("M" + "L".join(upper + lower[::-1]) + "z", f"band {one.style}"))
        points = [f"{_x(x, px):g} {_y(y, py):g}" for px, py in zip(one.x, one.y, strict=True)]
        if one.form in ("dots", "rings"):
            size = "dot large" if len(points) <= FEW else "dot" if len(points) <= MANY else "dot small"
            path = "".join(f"M{point}h0" for point in points)
            shapes.append(Shape(path, f"{size}{' ring' if one.form == 'rings' else ''} {one.style}"))
            shapes += [Shape(path, f"{size} hole")] if one.form == "rings" else []
        elif one.form == "dashes":
            half = 0.42 * SIZE / x.high
            dashes = (
                f"M{_x(x, px) - half:.6g} {_y(y, py):g}h{2 * half:.4g}" for px, py in zip(one.x, one.y, strict=True)
            )
            shapes.append(Shape("".join(dashes), f"dash {one.style}"))
        elif points:
            shapes.append(Shape("M" + "L".join(points), f"line {one.style}"))
            if one.form == "line" and len(points) <= 40:
                shapes.append(Shape("".join(f"M{point}h0" for point in points), f"dot {one.style}"))
    if marks:
        shapes.append(Shape("".join(f"M{_x(x, mark):g} {SIZE:g}v-45" for mark in marks), "stem malicious"))
    return Chart(
        title,
        label or f"{title}: " + "; ".join(_spoken(one) for one in series),
        [shape for shape in shapes if shape.path],
        [Tick(100 * x.share(at), f"{at:g}") for at in x.ticks() if at == int(at)],
        [Tick(100 - 100 * y.share(at), number(at)) for at in y.ticks(5)],
        [Key(f"{MARKS.get(one.form, 'line')} {one.style}", one.name) for one in series],
        list(hints),
        "round",
        note,
        pixels=pixels,
    )


def distribution(name: str, honest: Floats, malicious: Floats, note: str = "", bins: int = 32) -> Chart | None:
    """Two histograms of one score, honest upwards and malicious downwards, each as shares of its own group.

    Returns:
        The chart; None where no finite value is known.
    """
    honest, malicious = honest[np.isfinite(honest)], malicious[np.isfinite(malicious)]
    both = np.concatenate([honest, malicious])
    if len(both) == 0:
        return None
    axis = Axis.around(both, log=True)
    if not axis.log and both.min() < both.max():
        axis = Axis(float(both.min()), float(both.max()))
    elif not axis.log:
        axis = Axis(float(both.min()) - 0.5, float(both.min()) + 0.5)
    edges = np.linspace(0.0, 1.0, bins + 1)
    up, down = (_shares(axis, group, edges) for group in (honest, malicious))
    top = max(float(up.max(initial=0.0)), float(down.max(initial=0.0)))
    middle, reach = (SIZE / 2, SIZE / 2) if len(malicious) else (SIZE, SIZE)
    shapes = [
        Shape(_bars(edges, up, middle, -reach / top), "area honest"),
        Shape(_bars(edges, down, middle, reach / top), "area malicious"),
        Shape(f"M0 {middle:g}H{SIZE:g}", "axis"),
    ]
    legend = (
        [Key("area honest", f"honest ({len(honest):,} values, median {number(float(np.median(honest)))})")]
        if len(honest)
        else []
    )
    if len(malicious):
        middle_value = number(float(np.median(malicious)))
        legend.append(Key("area malicious", f"malicious, downwards ({len(malicious):,}, median {middle_value})"))
    return Chart(
        name,
        f"{name}: " + "; ".join(key.text for key in legend),
        [shape for shape in shapes if shape.path],
        [Tick(100 * axis.share(at), number(at)) for at in axis.ticks(4)],
        [Tick(0.0, percent(top, 0)), *([Tick(100.0, percent(top, 0))] if len(malicious) else [])],
        legend,
        x_title="score, relative" + (", logarithmic" if axis.log else ""),
        note=note,
        pixels=170,
    )


def _shares(axis: Axis, values: Floats, edges: Floats) -> Floats:
    if len(values) == 0:
        return np.zeros(len(edges) - 1)
    placed = np.clip([axis.share(float(value)) for value in values], 0.0, 1.0)
    counts, _ = np.histogram(placed, edges)
    return counts / len(values)


def _bars(edges: Floats, shares: Floats, base: float, scale: float) -> str:
    gap = 1.5
    return "".join(
        f"M{SIZE * left + gap:.4g} {base:g}v{share * scale:.4g}H{SIZE * right - gap:.4g}V{base:g}z"
        for left, right, share in zip(edges[:-1], edges[1:], shares, strict=True)
        if share > 0
    )


def _grid(y: Axis) -> str:
    return "".join(f"M0 {_y(y, at):g}H{SIZE:g}" for at in y.ticks(5))


def _x(axis: Axis, value: float) -> float:
    return round(SIZE * axis.share(value), 2)


def _y(axis: Axis, value: float) -> float:
    return round(SIZE - SIZE * min(max(axis.share(value), 0.0), 1.0), 1)


def _spoken(series: Series) -> str:
    if not len(series.y):
        return f"{series.name}: no values"
    return f"{series.name} from {number(series.y[0])} to {number(series.y[-1])}"
