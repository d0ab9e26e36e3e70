"""What stayed of an attack after its last round: how long accuracy took to recover, how long a backdoor survived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedsim.report import words

if TYPE_CHECKING:
    from fedsim.report.folder import RunFolder

NEAR = 0.02
"""Accuracy, or ASR above its floor, that counts as none."""
ENDLESS = ("every_round", "fixed_frequency")
"""Schedules that do not end: a last round without an attacker is chance."""


def aftermath(lines: list[dict[str, Any]], calm: dict[str, Any]) -> dict[str, int | None]:
    """What stayed of an attack after its last round; None where it lasts to the end of the run, or nothing tells.

    Args:
        lines: of ``rounds.jsonl``.
        calm: the run without attack: ``accuracies`` by round, ``rounds`` (its ASR) by round.

    Returns:
        ``recovery``: rounds from the last attack to the first evaluation with an accuracy within ``NEAR`` of the run
        without attack (of the one before the attack, where there is none); ``survival``: rounds from the last attack
        for which the ASR stayed at or above the half of what it was at its first evaluation from then on, both above
        the floor. Each is as exact as ``evaluate.every``, and None where the run ended before it was over.
    """
    attacks = [line["round"] for line in lines if line.get("malicious")]
    after = [line for line in lines if attacks and line["round"] >= attacks[-1]]
    found: dict[str, int | None] = {"recovery": None, "survival": None}
    if not after or after[-1]["round"] == attacks[-1]:
        return found
    before = [line["accuracy"] for line in lines if line["round"] < attacks[0] and line["accuracy"] is not None]
    accuracies, floors = calm.get("accuracies") or {}, calm.get("rounds") or {}
    for line in after:
        wanted = accuracies.get(str(line["round"]), before[-1] if before else None)
        if line["accuracy"] is not None and wanted is not None and line["accuracy"] >= wanted - NEAR:
            found["recovery"] = line["round"] - attacks[-1]
            break
    gains = [
        (line["round"], line["asr"] - (floors.get(str(line["round"])) or 0.0))
        for line in after
        if line.get("asr") is not None
    ]
    gone = [number for number, gain in gains if gain < gains[0][1] / 2 or gain <= NEAR]
    if gone:
        found["survival"] = gone[0] - attacks[-1]
    return found


def told(run: RunFolder) -> list[tuple[str, str, str]]:
    """(measure, value, meaning) for a run whose attack ended before it did; nothing for others."""
    attacks = [int(line["round"]) for line in run.rounds if line.get("malicious")]
    schedule = (run.scenario.get("adversary") or {}).get("schedule") or {}
    if not attacks or run.last_round <= attacks[-1] or schedule.get("name") in ENDLESS:
        return []
    calm = run.summary.get("floor") or {}
    after = aftermath(run.rounds, calm)
    left = words.plural(run.last_round - attacks[-1], "round")
    beside = "the run without attack" if calm.get("accuracies") else "before it"
    found = [
        (
            "Recovery",
            f"not in {left}" if after["recovery"] is None else words.plural(after["recovery"], "round"),
            f"from the last attack, round {attacks[-1]}, to an accuracy within {100 * NEAR:g} points of {beside}",
        )
    ]
    if run.series("asr")[0]:
        found.append(
            (
                "Backdoor survived",
                f"all {left}" if after["survival"] is None else words.plural(after["survival"], "round"),
                f"after the last attack, round {attacks[-1]}: until half of its success above the floor was gone",
            )
        )
    return found


__all__ = ["NEAR", "aftermath", "told"]
