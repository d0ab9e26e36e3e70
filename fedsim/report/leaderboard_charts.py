"""The curves of a leaderboard: a cell over the rounds, and all defenses under one attack."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedsim.report import words
from fedsim.report.figures import Chart, Series, curves
from fedsim.report.standings import Setting, Standings

CURVES = (("accuracy", "Main accuracy"), ("asr", "Attack success rate"))
"""Measures that are drawn over the rounds, and their titles."""
COLOURS = 8


def progress(standings: Standings, setting: Setting) -> Chart | None:
    """Accuracy and ASR over the rounds: mean over the seeds, band from the lowest to the highest."""
    series = []
    for name, style, text in (("accuracy", "main", "main accuracy"), ("asr", "attack", "attack success rate")):
        rounds, means, lows, highs = over_seeds(standings, setting, name)
        if rounds:
            several = len(setting.cells) > 1
            low, high = (lows, highs) if several else ([], [])
            series.append(Series(text, style, rounds, means, low, high, form="level"))
    if not series:
        return None
    last = max(int(one.x[-1]) for one in series)
    if not math.isnan(setting.floor):
        series.append(Series("ASR floor, without attack", "floor", (0, last), (setting.floor,) * 2, form="level"))
    many = len(setting.cells) > 1
    note = f"Means over {words.plural(len(setting.cells), 'seed')}; bands from the lowest to the highest." * many
    return curves("Over the rounds", series, last, note=note)


def overlay(standings: Standings, settings: Sequence[Setting], name: str, title: str) -> Chart | None:
    series = []
    for position, setting in enumerate(settings):
        rounds, means, _, _ = over_seeds(standings, setting, name)
        if rounds:
            again = position // COLOURS
            style = f"run-{position % COLOURS + 1}" + (f" again-{min(again, 3)}" if again else "")
            series.append(Series(setting.defense, style, rounds, means, form="level"))
    if not series:
        return None
    return curves(title, series, max(int(one.x[-1]) for one in series), pixels=260, note="Means over the seeds.")


def over_seeds(
    standings: Standings, setting: Setting, name: str
) -> tuple[list[int], list[float], list[float], list[float]]:
    """Rounds, and mean, lowest and highest of the seeds."""
    found: dict[int, list[float]] = {}
    for cell in setting.cells:
        line = standings.rounds.get(cell["key"], {"round": [], name: []})
        for number, value in zip(line["round"], line[name], strict=True):
            if value is not None:
                found.setdefault(int(number), []).append(float(value))
    rounds = sorted(found)
    values = [found[number] for number in rounds]
    return (
        rounds,
        [math.fsum(each) / len(each) for each in values],
        [min(v) for v in values],
        [max(v) for v in values],
    )


__all__ = ["CURVES", "over_seeds", "overlay", "progress"]
