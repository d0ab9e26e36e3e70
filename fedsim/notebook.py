"""A run's result in a notebook: a picture of its rounds, and what is shown where a cell ends with it."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

CURVES = (
    ("accuracy", "main-task accuracy", "#0072b2", "-"),
    ("asr", "attack success rate", "#d55e00", "--"),
    ("worst10", "accuracy of the worst 10 % of clients", "#009e73", ":"),
)
"""Measure, its name, a colour that the colour-blind tell apart, a dash."""
Lines = Sequence[Mapping[str, Any]]


def plot(lines: Lines, ax: Any = None, title: str = "") -> Any:
    """Draw what the rounds measured into a matplotlib Axes (a new one if None), and return it."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    drawn = False
    for key, name, colour, dash in CURVES:
        points = [(line["round"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            drawn = True
            rounds, values = zip(*points, strict=True)
            ax.plot(
                rounds, values, dash, color=colour, label=name, linewidth=1.8, marker="o" if len(points) == 1 else ""
            )
    bounds = [(line["round"], line["asr_low"], line["asr_high"]) for line in lines if line.get("asr_low") is not None]
    if bounds:
        ax.fill_between(*zip(*bounds, strict=True), color=CURVES[1][2], alpha=0.15, linewidth=0)
    ax.set(xlabel="round", ylim=(-0.02, 1.02), title=title)
    if drawn:
        ax.legend(loc="best", frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def as_html(title: str, lines: Lines, facts: Mapping[str, str], notes: Sequence[str] = ()) -> str:
    """A title, the measures of the last round that has them, the picture, the notes."""
    cells = {**_measured(lines), **facts}
    table = "".join(
        f"<tr><th style='text-align:left'>{_safe(k)}</th><td>{_safe(v)}</td></tr>" for k, v in cells.items()
    )
    told = "".join(f"<li>{_safe(note)}</li>" for note in notes)
    return (
        f"<div><strong>{_safe(title)}</strong><table>{table}</table>{_svg(lines)}"
        f"{f'<ul>{told}</ul>' if told else ''}</div>"
    )


def _measured(lines: Lines) -> dict[str, str]:
    found = {"rounds": str(lines[-1]["round"]) if lines else "0"}
    for key, name, *_ in CURVES:
        values = [(line["round"], line[key]) for line in lines if line.get(key) is not None]
        if values and math.isfinite(values[-1][1]):
            at = "" if values[-1][0] == lines[-1]["round"] else f" (round {values[-1][0]})"
            found[name] = f"{100 * values[-1][1]:.1f} %{at}"
    return found


def _svg(lines: Lines) -> str:
    """The picture, drawn without a window and without touching the notebook's own figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    plot(lines, figure.subplots())
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _safe(text: object) -> str:
    return html.escape(str(text))


__all__ = ["as_html", "plot"]
