"""Several runs on one page: what differs, the headline numbers, curves over each other, means over seeds."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.analysis.statistics import Interval, paired_difference, t_interval
from fedsim.errors import FedsimError
from fedsim.report import words
from fedsim.report.figures import Chart, Key, Series, curves
from fedsim.report.folder import RunFolder
from fedsim.report.measures import Measures, measure
from fedsim.report.page import write
from fedsim.report.privacy import DAGGER, MARK, outside

IRRELEVANT = ("title", "engine.workers")
"""Keys that cannot change a result and are no difference between runs."""
COLOURS = 8


@dataclass(frozen=True)
class Compared:
    """One run among others.

    Args:
        run: its folder.
        measures: its headline.
        differs: key → value, for what sets its scenario apart from the others.
        setting: what it shares with the runs that differ from it by their seed alone.
        name: the setting in words.
        style: CSS class of the setting's curves.
    """

    run: RunFolder
    measures: Measures
    differs: dict[str, str]
    setting: str
    name: str
    style: str


def compare_report(folders: Sequence[Path], out: Path) -> Path:
    """Write one page that compares several runs.

    Raises:
        FedsimError: no folder, or one that holds no run.
        RecordError: the page cannot be written.
    """
    if not folders:
        raise FedsimError("compare_report: given no folder; accepted: at least one run's folder")
    runs = compared([RunFolder.read(folder) for folder in folders])
    charts = [
        overlay(runs, key, title) for key, title in (("accuracy", "Main-task accuracy"), ("asr", "Attack success rate"))
    ]
    return write(
        out,
        "compare.html.j2",
        title=_title(runs),
        runs=[(one, _cells(one)) for one in runs],
        note=f"{DAGGER} {MARK}" if any("kept" in outside(one.run) for one in runs) else "",
        heads=("accuracy", "ASR (95\u202f% interval)", "ASR floor", "attackers kept", "by chance", "weight they got"),
        titled=len({one.run.title for one in runs}) > 1 or not any(one.differs for one in runs),
        charts=[chart for chart in charts if chart is not None],
        seeds=over_seeds(runs),
        command="fedsim report " + " ".join(shlex.quote(str(folder)) for folder in folders),
    )


def compared(runs: Sequence[RunFolder]) -> list[Compared]:
    """The runs, each with what sets its scenario apart from the others."""
    tables = [{k: v for k, v in _flat(run.scenario).items() if k not in IRRELEVANT} for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    different = [key for key in keys if len({table.get(key) for table in tables}) > 1]
    settings = [json.dumps({k: v for k, v in table.items() if k != "seed"}, sort_keys=True) for table in tables]
    grouped = len(set(settings)) < len(settings) and "seed" in different
    if not grouped:
        settings = [f"{position} {setting}" for position, setting in enumerate(settings)]
    order = list(dict.fromkeys(settings))
    titles = [run.title for run in runs]
    named = len(set(titles)) == len(order) == len(set(zip(titles, settings, strict=True)))
    alike = Counter(titles)
    found = []
    for run, table, setting in zip(runs, tables, settings, strict=True):
        differs = {key: _told(json.loads(table[key])) if key in table else "–" for key in different}
        short = ", ".join(
            text if key == "server.defenses" else f"{key.rpartition('.')[2].replace('_', ' ')} {text}"
            for key, text in differs.items()
            if not (grouped and key == "seed")
        )
        name = run.title if named or not short else short
        if not short and not grouped and alike[run.title] > 1:
            name = f"{words.cut(name, 60)} ({run.path.resolve().name})"
        position = order.index(setting)
        again = min(position // COLOURS, 3)
        style = f"run-{position % COLOURS + 1}" + (f" again-{again}" if again else "")
        found.append(Compared(run, measure(run), differs, setting, words.cut(name, 90), style))
    return found


def overlay(runs: Sequence[Compared], key: str, title: str) -> Chart | None:
    """One measure of all runs over rounds, one colour a setting; None where no run has it."""
    shown = [one for one in runs if one.run.series(key)[0]]
    if not shown:
        return None
    series = [Series(one.name, one.style, *one.run.series(key), form="level") for one in shown]
    chart = curves(title, series, max(one.run.last_round for one in shown), pixels=280)
    counts = Counter(one.style for one in shown)
    chart.legend = [
        Key(entry.style, entry.text + (f" ({counts[style]} runs)" if counts[style] > 1 else ""))
        for entry, style in {entry: entry.style.removeprefix("line ") for entry in chart.legend}.items()
    ]
    return chart


def over_seeds(runs: Sequence[Compared]) -> dict[str, Any] | None:
    """Mean and 95 % interval over the seeds of each setting, and its difference to the first one, paired by seed.

    Returns:
        Heads and rows of the table; None where no setting was run with two seeds.
    """
    groups: dict[str, list[Compared]] = {}
    for one in runs:
        groups.setdefault(one.setting, []).append(one)
    if all(len(group) < 2 for group in groups.values()):
        return None
    settings = list(groups.values())
    rows = []
    for group in settings:
        row = [group[0].name, str(len({one.run.seed for one in group}))]
        for pick in (_accuracy, _asr):
            values, base = _by_seed(group, pick), _by_seed(settings[0], pick)
            shared = sorted(values.keys() & base.keys())
            row.append(_interval(t_interval(list(values.values()))) if values else "–")
            if len(settings) > 1:
                known = group is not settings[0] and len(shared) > 1
                row.append(
                    _difference(paired_difference([values[s] for s in shared], [base[s] for s in shared]))
                    if known
                    else "–"
                )
        rows.append(row)
    paired = ["against the first"] if len(settings) > 1 else []
    return {"heads": ["setting", "seeds", "accuracy", *paired, "ASR", *paired], "rows": rows}


def _accuracy(measures: Measures) -> float | None:
    return measures.accuracy.value if measures.accuracy else None


def _asr(measures: Measures) -> float | None:
    return measures.asr.value if measures.asr else None


def _by_seed(group: Sequence[Compared], pick: Any) -> dict[int, float]:
    found = {one.run.seed: pick(one.measures) for one in group}
    return {seed: value for seed, value in found.items() if value is not None}


def _interval(interval: Interval) -> str:
    text = words.percent(interval.mean)
    return text if math.isnan(interval.low) else f"{text} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _difference(interval: Interval) -> str:
    mean, low, high = (f"{100 * value:+.1f}".replace("-", "−") for value in interval[:3])
    return f"{mean} ({low} to {high})"


def _told(value: Any) -> str:
    """A difference in words: parts in a row are read in their order."""
    if value == []:
        return "none"
    if isinstance(value, list) and all(isinstance(each, (str, dict)) for each in value):
        return ", then ".join(words.part(each) for each in value)
    return words.value(value)


def _cells(one: Compared) -> list[str]:
    found = one.measures
    asr = words.percent(found.asr.value) if found.asr else "–"
    if found.asr and found.asr_interval:
        asr += f" ({100 * found.asr_interval[0]:.1f} to {100 * found.asr_interval[1]:.1f})"
    unknown = words.UNKNOWN if one.run.attacked else "–"
    mark = f" {DAGGER}" if "kept" in outside(one.run) else ""
    return [
        words.percent(found.accuracy.value) if found.accuracy else "–",
        asr,
        words.percent(found.floor.value) if found.floor is not None else "–",
        f"{found.passed.kept} of {found.passed.seen} ({words.percent(found.passed.share)}){mark}"
        if found.passed
        else unknown,
        f"{words.percent(found.passed.chance)}{mark}" if found.passed else "–",
        f"{words.percent(found.weight)}{mark}" if found.weight is not None else unknown,
    ]


def _title(runs: Sequence[Compared]) -> str:
    titles = {one.run.title for one in runs}
    return (
        f"{titles.pop()}: {words.plural(len(runs), 'run')}"
        if len(titles) == 1
        else f"{words.plural(len(runs), 'run')} compared"
    )


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key → JSON of its value; a part counts as one value where its name is one of its keys."""
    found: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and not (prefix and "name" in value):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = json.dumps(value, default=str)
    return found
