"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedsim.report import words
from fedsim.report.folder import finite
from fedsim.report.measures import passed

if TYPE_CHECKING:
    from rich.table import Table

Rows = Iterable[Mapping[str, Any]]
"""Records as dicts; a pandas frame is taken as well."""


def last_round_table(rounds: Rows, clients: Rows, scenario: Any = None) -> Table:
    """The last round of a run: main accuracy, ASR, and what the defense kept of whom.

    Args:
        rounds: records of the rounds, as in rounds.jsonl.
        clients: records of the clients, as in clients.jsonl; those of the last round tell the honest that were kept.
        scenario: a ``Scenario`` or its table; tells whether a stock strategy hides who was kept.
    """
    from rich.table import Table

    lines = _records(rounds)
    last = lines[-1] if lines else {}
    number = int(last.get("round", 0))
    table = Table(title=f"Round {number}", title_justify="left", show_header=False, pad_edge=False)
    table.add_column("measure", style="dim")
    table.add_column("value", justify="right")
    table.add_column("beside it")
    accuracy, at = _latest(lines, "accuracy")
    table.add_row("Main-task accuracy", words.percent(accuracy), _at(at, number))
    asr, at = _latest(lines, "asr")
    if asr is not None:
        line = next(line for line in lines if int(line["round"]) == at)
        low, high = finite(line.get("asr_low")), finite(line.get("asr_high"))
        interval = "" if low is None or high is None else f"{words.percent(low)} to {words.percent(high)} (95 %)"
        table.add_row(
            "Attack success rate", words.percent(asr), " ".join(piece for piece in (interval, _at(at, number)) if piece)
        )
    cohort = [int(client) for client in _list(last.get("cohort"))]
    malicious = {int(client) for client in _list(last.get("malicious"))}
    if _guest(scenario):
        table.add_row("Kept", words.UNKNOWN, "a stock Flower strategy does not tell")
        return table
    rows = [row for row in _records(clients) if int(row["round"]) == number]
    kept = {int(row["client"]) for row in rows if row.get("kept")} or {
        int(client) for client in _list(last.get("kept"))
    }
    honest = set(cohort) - malicious
    if malicious:
        chance = f"by chance (kept / n) {words.percent(len(kept) / len(cohort), 0)} of them" if cohort else ""
        table.add_row("Malicious kept", f"{len(kept & malicious)} of {len(malicious)}", chance)
    if cohort:
        table.add_row("Honest kept", f"{len(kept & honest)} of {len(honest)}", "")
    over_all = passed(_plain(lines))
    if over_all is not None:
        share = f"{words.percent(over_all.share)}, by chance {words.percent(over_all.chance)}"
        table.add_row("Malicious kept, all rounds", f"{over_all.kept} of {over_all.seen}", share)
    if malicious:
        weight = finite(last.get("malicious_weight"))
        table.add_row(
            "Weight of the malicious",
            words.percent(weight),
            "" if weight is not None else "the rule gives no linear weights" if kept else "no reply reached the model",
        )
    faults = sum(len(_list(line.get("faults"))) for line in lines)
    if faults:
        table.add_row("Replies missing or refused", str(faults), "in all rounds; the report names them")
    return table


def summary_table(rows: Sequence[Mapping[str, Any]], title: str = "") -> Table:
    """Rows of any measures as one table, a column for each key in the order of first use; numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    keys = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title or None, title_justify="left", pad_edge=False)
    for key in keys:
        numeric = all(isinstance(row.get(key), (int, float, type(None))) for row in rows)
        table.add_column(Text(key), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(key))) for key in keys))
    return table


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return words.number(value) if isinstance(value, float) and math.isfinite(value) else words.value(value)


def _records(rows: Any) -> list[dict[str, Any]]:
    if hasattr(rows, "to_dict"):
        return [dict(row) for row in rows.to_dict("records")]
    return [dict(row) for row in rows]


def _plain(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    keys = ("malicious", "cohort", "kept", "kept_malicious")
    return [{"round": line["round"], **{key: _list(line.get(key)) for key in keys}} for line in lines]


def _list(value: Any) -> list[Any]:
    """A list, where a frame may hold NaN or an array in its place."""
    return [] if value is None or isinstance(value, float) else list(value)


def _latest(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[float | None, int]:
    found = ((finite(line.get(key)), int(line["round"])) for line in reversed(lines))
    return next((pair for pair in found if pair[0] is not None), (None, 0))


def _at(measured: int, last: int) -> str:
    return "" if measured == last else f"measured in round {measured}"


def _guest(scenario: Any) -> bool:
    if scenario is None:
        return False
    if isinstance(scenario, Mapping):
        defenses = (scenario.get("server") or {}).get("defenses") or []
        return any(words.part(each).startswith("flwr:") for each in defenses)
    return bool(getattr(scenario, "guest", False))
