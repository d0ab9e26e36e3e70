"""What the red team found, as one page: the best static attack beside the best adaptive one, and the search."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError
from fedsim.record import write_bytes
from fedsim.report import words
from fedsim.report.figures import SHARES, Axis, Chart, Hint, Series, curves
from fedsim.report.page import write

HEADS = ("defense", "best static attack", "", "best adaptive attack", "", "adapting adds", "without attack")


def write_redteam(source: Path) -> Path:
    """Write the page of what was found, and beside it the scenarios of the best attacks, which its commands run.

    Args:
        source: folder of a search, or the file of one that was kept as ``NAME.json``: its page is ``NAME.html`` then,
            and its scenarios' names begin with ``NAME-``.

    Raises:
        FedsimError: the folder holds no findings.
        RecordError: the page or a scenario cannot be written.
    """
    file = source if source.suffix == ".json" else source / "redteam.json"
    if not file.is_file():
        raise FedsimError(f"{file.parent} holds no findings of a red team: there is no {file.name} in it")
    told = json.loads(file.read_text("utf-8"))
    before = "" if file.stem == "redteam" else f"{file.stem}-"
    for found in told["defenses"]:
        for key in ("static", "adaptive"):
            write_bytes(file.parent / f"{before}{found[key]['file']}", found[key]["scenario"].encode())
    return write(
        file.with_suffix(".html"),
        "redteam.html.j2",
        title=f"The red team against {_against(told)}",
        lead=_lead(told),
        measure=_measure(told["goal"]),
        rows=rows(told),
        defenses=[
            {
                "name": found["defense"],
                "facts": found["threat_model"],
                "chart": history(found, told["goal"], told["bound"]),
                "ends": [
                    (kind, attack_words(found[key]), found[key]["scenario"], _command(before + found[key]["file"]))
                    for kind, key in (("Best static attack", "static"), ("Best adaptive attack", "adaptive"))
                ],
            }
            for found in told["defenses"]
        ],
        told=told,
    )


def rows(told: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row a defense, as the page and the terminal show it: see ``HEADS``."""
    found = []
    for each in told["defenses"]:
        row = [each["defense"]]
        for key in ("static", "adaptive"):
            measure = _interval(each[key]["measure"], least=0.0 if told["goal"] == "asr" else -1.0)
            row += [attack_words(each[key]), measure + _over(each[key])]
        gain = each["gain"]
        row.append(_interval(gain, signed=True))
        row.append("–" if each["floor"] is None else words.percent(each["floor"]))
        found.append(tuple(row))
    return found


def attack_words(table: Mapping[str, Any]) -> str:
    """An attack in short: its parts, then its schedule where that is not every round."""
    parts = ", then ".join(words.part(_rounded(part)) for part in table["attacks"])
    schedule = table["schedule"]
    return parts if schedule.get("name") == "every_round" else f"{parts}; {words.part(_rounded(schedule))}"


def history(found: Mapping[str, Any], goal: str, bound: float) -> Chart | None:
    """What each attack of the search reached on the tuning seeds, and the best so far."""
    key = "asr" if goal == "asr" else "lost"
    numbers: dict[bool, list[tuple[int, float]]] = {True: [], False: []}
    best: list[tuple[int, float]] = []
    hints = []
    count = len(found["trials"])
    width = 1000 / max(count, 1)
    for number, trial in enumerate(found["trials"], start=1):
        if trial["error"]:
            continue
        value = _mean(trial[key])
        within = goal != "asr" or _mean(trial["lost"]) <= bound
        numbers[within].append((number, value))
        if within and (not best or value > best[-1][1]):
            best += [(number, best[-1][1])] if best else []
            best.append((number, value))
        elif best:
            best.append((number, best[-1][1]))
        hints.append(Hint((number - 0.5) * width, width, f"{number}: {words.percent(value)}, {attack_words(trial)}"))
    if not hints:
        return None
    statics = [_mean(each[key]) for each in found["statics"] if not each["error"] and _allowed(each, goal, bound)]
    series = [Series("tried", "main", *_split(numbers[True]), form="dots")]
    if numbers[False]:
        series.append(Series("costs more accuracy than allowed", "chance", *_split(numbers[False]), form="rings"))
    if best:
        series.append(Series("best so far", "attack", *_split(best), form="level"))
    if statics:
        series.append(Series("best static attack", "floor", (0, count), (max(statics),) * 2, form="level"))
    values = [value for one in series for value in one.y]
    axis = SHARES if goal == "asr" else Axis(min(0.0, *values), max(0.05, *values) * 1.1)
    chart = curves(
        f"{_measure(goal)} {'of' if goal == 'asr' else 'by'} what was tried",
        series,
        count,
        y=axis,
        hints=hints,
        pixels=260,
        note="Means over the tuning seeds; what is reported above comes from other seeds.",
    )
    chart.x_title = "attack tried"
    return chart


def _allowed(table: Mapping[str, Any], goal: str, bound: float) -> bool:
    return goal != "asr" or _mean(table["lost"]) <= bound


def _against(told: Mapping[str, Any]) -> str:
    names = [each["defense"] for each in told["defenses"]]
    return str(names[0]) if len(names) == 1 else words.plural(len(names), "defense")


def _lead(told: Mapping[str, Any]) -> str:
    goal = (
        f"the highest attack success rate that costs at most {words.percent(told['bound'])} of main accuracy"
        if told["goal"] == "asr"
        else "the largest loss of main accuracy"
    )
    return (
        f"Wanted: {goal}. {words.plural(told['budget'], 'attack')} tried against each defense on "
        f"{_seeds(told['tune'])}; reported on {_seeds(told['report'])}, which the search never saw."
    )


def _measure(goal: str) -> str:
    return "Attack success rate" if goal == "asr" else "Accuracy lost"


def _over(end: Mapping[str, Any]) -> str:
    return "" if end["within"] else f", over the bound: costs {words.percent(_mean(end['lost']))}"


def _interval(values: Sequence[float | None], signed: bool = False, least: float = -1.0) -> str:
    """A mean with its interval in percent; an interval of shares ends where shares do."""
    mean, low, high = (None if value is None else 100 * min(1.0, max(least, value)) for value in values)
    sign = "+" if signed else ""
    if mean is None:
        return "–"
    text = f"{mean:{sign}.1f}" + ("" if signed else "\u202f%")
    if low is not None and high is not None:
        text += f" ({low:{sign}.1f} to {high:{sign}.1f})"
    return text.replace("-", "−")


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def _command(file: str) -> str:
    return shlex.join(["fedsim", "run", file, "--floor", "--out", f"runs/{Path(file).stem}"])


def _rounded(part: Mapping[str, Any]) -> dict[str, Any]:
    """Options as people read them: three digits."""
    return {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in part.items()}


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def _split(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [number for number, _ in pairs], [value for _, value in pairs]


__all__ = ["HEADS", "attack_words", "history", "rows", "write_redteam"]
