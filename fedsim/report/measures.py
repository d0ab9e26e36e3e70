"""The numbers on which a run is judged, out of its folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.report.folder import RunFolder, finite

TAIL = 5
"""Evaluated rounds whose mean is given beside the last one: a best round would be chosen on the test set."""


@dataclass(frozen=True)
class Latest:
    """A measure in the last round in which it was taken, and its mean over the last ``TAIL`` of those."""

    value: float
    round: int
    tail: float
    tail_rounds: int

    @classmethod
    def of(cls, numbers: Sequence[int], values: Sequence[float]) -> Latest | None:
        if not values:
            return None
        tail = [value for number, value in zip(numbers, values, strict=True) if number > 0][-TAIL:] or list(values[-1:])
        return cls(values[-1], numbers[-1], math.fsum(tail) / len(tail), len(tail))


@dataclass(frozen=True)
class Passed:
    """How often attackers were kept.

    Args:
        kept: attackers that were kept, summed over rounds.
        seen: attackers in the cohorts, summed over rounds.
        chance: how many of them a defense that keeps as many clients at random would keep, as a share.
        slips: rounds in which at least one was kept.
        rounds: rounds with at least one attacker.
    """

    kept: int
    seen: int
    chance: float
    slips: tuple[int, ...]
    rounds: int

    @property
    def share(self) -> float:
        return self.kept / self.seen if self.seen else math.nan


@dataclass(frozen=True)
class Measures:
    """A run's headline; None where a measure was not taken or cannot be known.

    ``selects`` tells whether the defense ever dropped a valid reply; rates are means over rounds.
    """

    accuracy: Latest | None
    asr: Latest | None
    asr_interval: tuple[float, float] | None
    asr_eligible: int | None
    floor: Latest | None
    passed: Passed | None
    selects: bool
    weight: float | None
    cohort_share: float | None
    true_positive_rate: float | None
    false_positive_rate: float | None
    auc: float | None
    worst10: float | None
    epsilon: float | None
    seconds: dict[str, float]


def measure(run: RunFolder) -> Measures:
    """All headline numbers of a run."""
    attacked = [line for line in run.rounds if line.get("malicious")]
    weights = [weight for line in attacked if (weight := finite(line.get("malicious_weight"))) is not None]
    asr = Latest.of(*run.series("asr"))
    last_asr: dict[str, Any] = next((line for line in reversed(run.rounds) if finite(line.get("asr")) is not None), {})
    low, high = finite(last_asr.get("asr_low")), finite(last_asr.get("asr_high"))
    eligible = last_asr.get("asr_eligible")
    return Measures(
        accuracy=Latest.of(*run.series("accuracy")),
        asr=asr,
        asr_interval=None if low is None or high is None else (low, high),
        asr_eligible=int(eligible) if eligible is not None else None,
        floor=Latest.of(*run.floor),
        passed=None if run.guest else passed(attacked),
        selects=any(_dropped(line) for line in run.rounds),
        weight=_mean(weights),
        cohort_share=_mean(len(line["malicious"]) / len(line["cohort"]) for line in attacked if line.get("cohort")),
        true_positive_rate=_mean(run.series("true_positive_rate")[1]),
        false_positive_rate=_mean(run.series("false_positive_rate")[1]),
        auc=_mean(run.series("auc")[1]),
        worst10=next(iter(run.series("worst10")[1][::-1]), None),
        epsilon=next(iter(run.series("epsilon")[1][::-1]), None),
        seconds=seconds(run.rounds),
    )


def passed(rounds: Iterable[Mapping[str, Any]]) -> Passed | None:
    """How often attackers were kept in these rounds; None where none attacked."""
    kept, seen, expected, attacked = 0, 0, 0.0, 0
    slips = []
    for line in rounds:
        malicious, cohort = set(line.get("malicious") or ()), line.get("cohort") or ()
        if not malicious or not cohort:
            continue
        through = malicious & set(line.get("kept_malicious") or ())
        attacked += 1
        seen += len(malicious)
        kept += len(through)
        expected += len(malicious) * len(line.get("kept") or ()) / len(cohort)
        if through:
            slips.append(int(line["round"]))
    return Passed(kept, seen, expected / seen, tuple(slips), attacked) if seen else None


def seconds(rounds: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds that each step of the rounds took in all, in the order in which they were recorded."""
    total: dict[str, float] = {}
    for line in rounds:
        for step, spent in (line.get("seconds") or {}).items():
            total[step] = total.get(step, 0.0) + (finite(spent) or 0.0)
    return total


def _dropped(line: Mapping[str, Any]) -> set[int]:
    """Clients whose valid reply was left out of the aggregate."""
    failed = {fault.get("client") for fault in line.get("faults") or ()}
    return set(line.get("cohort") or ()) - set(line.get("kept") or ()) - failed


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return math.fsum(known) / len(known) if known else None
