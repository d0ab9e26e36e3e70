"""What a reader of a run must know and would not see in its figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fedsim import registry
from fedsim.scenario import Scenario

LAST_THREE = ("rm3", "m3", "ra3")
"""Optimizers that look at three gradients before they move."""


def remarks(lines: list[dict[str, Any]], scenario: Scenario) -> list[str]:
    """What a reader of the run must know and would not see."""
    played = [line for line in lines if line["round"] > 0]
    notes = []
    defended = [part.name for part in scenario.server.defenses if part.name != "fedavg"]
    silent = [line["round"] for line in played if _silent(line)]
    if silent:
        notes.append(
            f"{len(silent)} of {len(played)} rounds changed nothing, since every reply was missing or refused: "
            f"{_few(silent)}; the first reason: {_first_reason(played)}."
        )
    heard = len(silent) < len(played)
    if heard and defended and not scenario.guest and not any(line["defense_acted"] for line in played):
        notes.append(
            f"The defense ({', '.join(defended)}) never changed an aggregate: the result is that of plain averaging."
        )
    notes += _unmoved(played, scenario)
    attacked = any(line["malicious"] for line in played)
    if played and scenario.attackers and not attacked:
        notes.append(
            "No malicious client was ever in a cohort while the adversary was active: this run shows no attack."
        )
    elif attacked and not any(line["attack_acted"] for line in played):
        notes.append("The attack never changed what a malicious client sent: this run shows no attack.")
    notes += _underrated(played, scenario)
    if played and scenario.guest and scenario.evaluate.clients:
        notes.append("The worst-10 % accuracy is not measured behind a stock Flower strategy: it owns the evaluation.")
    skipped = [
        line["round"] for line in played if any(fault["reason"].startswith("round skipped") for fault in line["faults"])
    ]
    if skipped:
        notes.append(
            f"{len(skipped)} rounds changed nothing, since no rule could work on their replies: {_few(skipped)}."
        )
    broken = sum(line.get("nonfinite") or 0 for line in played)
    if broken:
        notes.append(
            f"{broken} gradients of single examples were not finite and counted as zero: a diagnostic outside any "
            "guarantee of privacy."
        )
    notes += _slips(played, scenario)
    return notes


def _unmoved(played: list[dict[str, Any]], scenario: Scenario) -> list[str]:
    """Clients whose local steps, all of them, led nowhere."""
    norms = [line["norm_honest"] for line in played if line["norm_honest"] is not None]
    if not norms or any(norms):
        return []
    name, why = scenario.client.optimizer.name, ""
    if scenario.server.estimator is None and name in LAST_THREE:
        of = "a round" if scenario.client.optimizer_state == "reset" else "a client"
        why = f": '{name}' moves at the third local step of {of} at the earliest"
    return [f"No honest client ever changed the model that it was sent{why}."]


def _underrated(played: list[dict[str, Any]], scenario: Scenario) -> list[str]:
    """Defenses that count on fewer malicious clients than there were."""
    most = max((len(line["malicious"]) for line in played), default=0)
    found = []
    for part in scenario.server.defenses:
        expected = getattr(registry.make("defense", part.name, **part.options), "malicious", None)
        if isinstance(expected, int) and expected < most:
            found.append(
                f"{part.name} counts on {expected} malicious {'client' if expected == 1 else 'clients'} in a cohort, "
                f"and there were up to {most}: its option `malicious` says how many."
            )
    return found


def _slips(played: list[dict[str, Any]], scenario: Scenario) -> list[str]:
    """How long a malicious row that slipped through stays in an estimator, and how much the kept set changes."""
    part = scenario.server.estimator
    filtered = any(line["kept"] and len(line["kept"]) < len(line["cohort"]) for line in played)
    if part is None or not filtered:
        return []
    found = []
    turnovers = [
        len(set(one["kept"]) ^ set(two["kept"])) / max(1, len(set(one["kept"]) | set(two["kept"])))
        for one, two in pairwise(played)
        if one["kept"] and two["kept"]
    ]
    if turnovers:
        found.append(
            f"From one round to the next {sum(turnovers) / len(turnovers):.0%} of the kept set changed: differences of "
            "different clients do not telescope."
        )
    restarts = getattr(registry.make("estimator", part.name, **part.options), "interval", None)
    if restarts is None:
        return found
    interval = restarts(scenario.rounds)
    lasts = {
        line["round"]: min(interval - (line["round"] - 1) % interval, scenario.rounds - line["round"] + 1)
        for line in played
        if line["kept_malicious"]
    }
    if lasts:
        each = _few([f"{lasts[number]} from round {number}" for number in lasts])
        found.append(
            f"A malicious row slipped through in {len(lasts)} of {len(played)} rounds; it stays in the estimate until "
            f"the next restart: {sum(lasts.values()) / len(lasts):.1f} rounds on average, {max(lasts.values())} at "
            f"most ({each})."
        )
    return found


def _silent(line: dict[str, Any]) -> bool:
    return bool(line["cohort"]) and set(line["cohort"]) <= {fault["client"] for fault in line["faults"]}


def _first_reason(lines: list[dict[str, Any]]) -> str:
    return next(str(fault["reason"]) for line in lines for fault in line["faults"]).rstrip(".")


def _few(rounds: Sequence[object]) -> str:
    return ", ".join(map(str, rounds[:10])) + (", …" if len(rounds) > 10 else "")


__all__ = ["remarks"]
