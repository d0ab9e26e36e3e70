"""One run as one self-contained HTML page: no script, no network, inline pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.errors import RecordError
from fedsim.report import aftermath, images, words
from fedsim.report.charts import losses, norms, progress, scores, weight
from fedsim.report.figures import Chart
from fedsim.report.folder import RunFolder, finite
from fedsim.report.maps import kept_map, partition_map
from fedsim.report.measures import Latest, Measures, measure
from fedsim.report.observations import observed
from fedsim.report.privacy import (
    ASIDE,
    COHORT_MARK,
    DAGGER,
    MARK,
    daggers,
    marked,
    note_on_notes,
    outside,
    relation,
    spent,
)

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_FAULTS, OPEN_FAULTS, MOST_ROWS = 500, 8, 200


@dataclass(frozen=True)
class Card:
    """One headline number."""

    name: str
    value: str
    detail: str = ""
    tone: str = ""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Raises:
        FedsimError: the folder holds no run.
        RecordError: the page cannot be written.
    """
    run = RunFolder.read(folder)
    return write(folder / "report.html", "run.html.j2", **contents(run))


def contents(run: RunFolder) -> dict[str, Any]:
    """Everything that ``run.html.j2`` shows of a run."""
    measures = measure(run)
    labels = [str(label) for label in run.partition.get("labels") or ()]
    faults = [
        (int(line["round"]), fault.get("client"), str(fault.get("reason", "")))
        for line in run.rounds
        for fault in line.get("faults") or ()
    ]
    private = outside(run)
    notes = [str(note) for note in run.summary.get("notes") or ()]
    reasons = Counter(words.cut(reason, 120) for _, _, reason in faults)
    return {
        "run": run,
        "unheard": not _heard(run),
        "title": run.title,
        "lead": lead(run, measures),
        "sentences": words.sentences(run.scenario, len(run.malicious_clients)),
        "cards": cards(run, measures),
        "notes": notes,
        "notes_note": note_on_notes(run, notes),
        "progress": progress(run, measures, ASIDE if "kept" in private else ""),
        "kept": None if run.guest else _kept(run, private),
        "passed": measures.passed,
        "weight": marked(weight(run, measures), "kept" in private),
        "detection": detection(measures),
        "kept_note": MARK if "kept" in private else "",
        "scores": [marked(chart, "scores" in private) for chart in scores(run)],
        "norms": marked(norms(run), "norm_honest" in private),
        "losses": marked(losses(run), "train_loss" in private),
        "partition": marked(partition_map(run), "partition" in private),
        "privacy": run.privacy,
        "spent": spent(run),
        "outside": list(private.values()),
        "floored": "floor" in private,
        "observed": observed(run),
        "images": images.pairs(run.samples, labels),
        "faults": faults[:MOST_FAULTS],
        "fault_count": len(faults),
        "faults_note": MARK if "faults" in private else "",
        "fault_reasons": reasons.most_common(10),
        "faults_open": len(faults) <= OPEN_FAULTS,
        "seconds": _seconds(measures, run.last_round),
        "table_data": _rows(run),
        "runtime": _runtime(run),
    }


def _kept(run: RunFolder, private: Mapping[str, str]) -> Chart | None:
    """Who was kept; its columns also tell who was asked."""
    return marked(marked(kept_map(run), "kept" in private), "cohort" in private, COHORT_MARK)


def write(file: Path, template: str, **values: Any) -> Path:
    """Render a template into a file, whole or not at all."""
    text = environment().get_template(template).render(**values)
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, "utf-8")
        os.replace(part, file)
    except OSError as error:
        raise RecordError(f"{file} cannot be written: {error.strerror or error}") from error
    return file


@lru_cache(maxsize=1)
def environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(percent=words.percent, number=words.number, duration=words.duration)
    found.globals.update(plural=words.plural)
    return found


def lead(run: RunFolder, measures: Measures) -> str:
    """The first sentence: how far the run came, and whether an attacker got through."""
    text = f"{words.plural(run.last_round, 'round')} in {words.duration(sum(measures.seconds.values()))}."
    if not run.finished:
        text = f"Unfinished: {run.last_round} of {words.plural(run.planned_rounds, 'round')}."
    if not run.attacked:
        return text + " Nobody attacked."
    if run.guest:
        return (
            text
            + " What the strategy made of the attackers is unknown: a stock Flower strategy does not tell its weights."
        )
    found = measures.passed
    if found is None:
        return text
    aside = f" ({ASIDE})" if "kept" in outside(run) else ""
    if not _heard(run):
        return f"{text} No reply reached the model in any round{aside}: see the faults."
    if not measures.selects:
        return f"{text} No client was dropped in any round{aside}: this defense does not select."
    rounds = words.plural(found.rounds, "round")
    if not found.slips:
        return f"{text} No attacker was kept in any of the {rounds} in which one took part{aside}."
    return (
        f"{text} An attacker was kept in {len(found.slips)} of the {rounds} "
        f"in which one took part, first in round {found.slips[0]}{aside}."
    )


def cards(run: RunFolder, measures: Measures) -> list[Card]:
    """The headline numbers, those that exist."""
    found = []
    if measures.accuracy is not None:
        found.append(
            Card("Main-task accuracy", words.percent(measures.accuracy.value), _when(measures.accuracy), "main")
        )
    if measures.asr is not None:
        interval = measures.asr_interval
        detail = f"{words.percent(interval[0])} to {words.percent(interval[1])} (95\u202f%, Wilson" if interval else ""
        if interval:
            detail += f", {measures.asr_eligible:,} images); " if measures.asr_eligible else "); "
        name = "Attack success rate" if run.attacked else "Trigger's hits, nobody attacking"
        found.append(Card(name, words.percent(measures.asr.value), detail + _when(measures.asr), "attack"))
        floor = measures.floor
        if floor is not None:
            detail = f"{words.points(measures.asr.value - floor.value)}; floor in {_when(floor)}"
            detail += f"; {ASIDE}" if "floor" in outside(run) else ""
            found.append(Card("Its floor, without attack", words.percent(floor.value), detail))
        elif run.attacked:
            meaning = "what the same run without attack would call the target"
            found.append(Card("Its floor, without attack", "not measured", meaning))
    if run.attacked:
        passed = measures.passed
        aside = f"; {ASIDE}" if "kept" in outside(run) else ""
        found.append(
            Card(
                "Attackers kept",
                words.percent(passed.share) if passed else words.UNKNOWN,
                f"{passed.kept} of {passed.seen}; by chance (kept / n) {words.percent(passed.chance)}{aside}"
                if passed
                else "the strategy does not tell",
                "attack",
            )
        )
        found.append(
            Card(
                "Weight they got",
                words.percent(measures.weight),
                f"their share of the cohort: {words.percent(measures.cohort_share)}{aside}"
                if measures.weight is not None
                else "the strategy does not tell"
                if run.guest
                else "this rule gives no linear weights"
                if _heard(run)
                else "no reply reached the model",
                "attack",
            )
        )
    found += [Card(*each, "attack") for each in aftermath.told(run)]
    if measures.worst10 is not None:
        detail = f"accuracy; {ASIDE}" if run.privacy else "accuracy"
        found.append(Card("Worst 10\u202f% of clients", words.percent(measures.worst10), detail))
    if run.privacy.get("none"):
        found.append(Card("Privacy guaranteed", "NONE", str((run.privacy.get("reasons") or [""])[0]), "none"))
    elif measures.epsilon is not None:
        proof = run.privacy
        detail = f"δ = {proof['delta']:g}, {proof['neighbours']}, against {proof['against']}" if proof else ""
        found.append(Card("Privacy spent", f"ε = {words.number(measures.epsilon)}", detail))
    return found


def _heard(run: RunFolder) -> bool:
    """Whether a reply ever reached the model."""
    return any(line.get("kept") for line in run.rounds)


def detection(measures: Measures) -> list[tuple[str, str, str]]:
    """Detection against the truth, means over the rounds: (measure, value, meaning)."""
    found = (
        ("True positive rate", measures.true_positive_rate, True, "malicious clients that were dropped"),
        ("False positive rate", measures.false_positive_rate, True, "honest clients that were dropped"),
        ("AUC", measures.auc, False, "chance that a malicious client scores above an honest one; 0.5 is guessing"),
    )
    return [
        (name, words.percent(value) if share else f"{value:.3f}", meaning)
        for name, value, share, meaning in found
        if value is not None
    ]


def _when(latest: Latest) -> str:
    if latest.tail_rounds < 2:
        return f"round {latest.round}"
    return f"round {latest.round}; mean of the last {latest.tail_rounds}: {words.percent(latest.tail)}"


def _seconds(measures: Measures, rounds: int) -> list[tuple[str, float, float, float]]:
    total = sum(measures.seconds.values())
    if total <= 0:
        return []
    steps = [*measures.seconds.items(), ("all steps", total)]
    return [(step, spent, spent / total, spent / max(rounds, 1)) for step, spent in steps]


def _rows(run: RunFolder) -> dict[str, Any]:
    """The rounds as a table of text, thinned to ``MOST_ROWS``."""
    columns = (
        ("accuracy", "accuracy", words.percent),
        ("loss", "loss", words.number),
        ("asr", "ASR", words.percent),
        ("malicious_weight", "malicious weight", words.percent),
        ("true_positive_rate", "TPR", words.percent),
        ("false_positive_rate", "FPR", words.percent),
        ("auc", "AUC", words.number),
        ("worst10", "worst 10\u202f%", words.percent),
        ("epsilon", f"ε ({relation(run)})", words.number),
    )
    used = [column for column in columns if run.series(column[0])[0]]
    lines = run.rounds
    if len(lines) > MOST_ROWS:
        lines = [lines[i] for i in np.linspace(0, len(lines) - 1, MOST_ROWS).round().astype(int)]
    rows = []
    for line in lines:
        row = [str(line["round"])]
        row += [show(finite(line[key])) if finite(line.get(key)) is not None else "–" for key, _, show in used]
        if run.attacked:
            row.append(
                f"{len(line.get('kept_malicious') or ())} of {len(line.get('malicious') or ())}"
                if not run.guest
                else words.UNKNOWN
            )
        rows.append(row)
    shown = [*((key, name) for key, name, _ in used), *([("attackers", "attackers kept")] if run.attacked else [])]
    marked = daggers(run) & {key for key, _ in shown}
    heads = ["round", *(f"{name} {DAGGER}" if key in marked else name for key, name in shown)]
    return {"heads": heads, "rows": rows, "of": len(run.rounds), "note": f"{DAGGER} {MARK}" if marked else ""}


def _runtime(run: RunFolder) -> list[tuple[str, str]]:
    runtime = dict(run.info.get("runtime") or {})
    versions = runtime.pop("versions", {}) or {}
    found = [("fedsim", str(run.info["fedsim"]))] if "fedsim" in run.info else []
    for name in ("processor", "cores", "system", "python"):
        if name in runtime:
            found.append((name, str(runtime.pop(name))))
    found += [(str(name), str(version)) for name, version in versions.items() if name != "fedsim-flwr"]
    found += [("key", str(run.info["key"]))] if "key" in run.info else []
    found += [("digest", str(run.summary["digest"]))] if run.summary.get("digest") else []
    return found
