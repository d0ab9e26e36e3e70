"""What the red team found: attacks with what they reached, the verdict on a defense, and how it is written down."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.analysis.statistics import Interval, paired_difference, t_interval
from fedsim.bench.space import Attempt, Goal, Space
from fedsim.errors import FedsimError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Scored:
    """What an attack reached on some seeds.

    Args:
        attempt: the attack.
        asr: ASR by seed; NaN where there is no trigger.
        accuracy: main accuracy by seed.
        lost: main accuracy without attack, minus with it, by seed.
        acted: whether it changed a row in every seed.
        error: why it could not be run.
    """

    attempt: Attempt
    asr: tuple[float, ...] = ()
    accuracy: tuple[float, ...] = ()
    lost: tuple[float, ...] = ()
    acted: bool = False
    error: str = ""

    def value(self, goal: Goal) -> float:
        """What is maximised, the mean over the seeds."""
        values = self.asr if goal == "asr" else self.lost
        return -math.inf if self.error or not values else mean(values)

    def excess(self, goal: Goal, bound: float) -> float:
        """How far the loss of accuracy is above the bound; at most 0 where it holds."""
        return -math.inf if goal == "damage" else mean(self.lost) - bound if self.lost else math.inf

    def table(self) -> dict[str, Any]:
        return {
            "attacks": list(self.attempt.attacks),
            "schedule": self.attempt.schedule,
            "asr": plain(self.asr),
            "accuracy": plain(self.accuracy),
            "lost": plain(self.lost),
            "acted": self.acted,
            "error": self.error,
        }


@dataclass(frozen=True)
class Verdict:
    """What the red team found against one defense.

    Args:
        defense: in short.
        space: what was tried.
        statics: the static attacks on the tuning seeds.
        trials: the search, in its order, on the tuning seeds.
        static: the best static attack on the reporting seeds.
        adaptive: the best of all that was tried, on the reporting seeds.
        floor: ASR without attack on the reporting seeds.
    """

    defense: str
    space: Space
    statics: list[Scored]
    trials: list[Scored]
    static: Scored
    adaptive: Scored
    floor: float

    def measure(self, scored: Scored) -> tuple[float, ...]:
        return scored.asr if self.space.goal == "asr" else scored.lost

    @property
    def gain(self) -> Interval:
        """What adapting adds, paired by seed."""
        return paired_difference(self.measure(self.adaptive), self.measure(self.static))


@dataclass(frozen=True)
class Plan:
    """How to search.

    Args:
        out: folder of everything.
        budget: attacks that the search tries.
        goal: what is to be won.
        bound: main accuracy that the attack may cost, with the goal ``asr``.
        tune: seeds on which attacks are tuned.
        report: seeds on which the best are reported.
        jobs: runs at a time.
    """

    out: Path
    budget: int
    goal: Goal
    bound: float
    tune: tuple[int, ...]
    report: tuple[int, ...]
    jobs: int = 1
    say: Say = field(default=print, compare=False)


def best(scored: Sequence[Scored], goal: Goal, bound: float) -> Scored:
    """The one that reaches most within the bound; where none keeps within it, the one that exceeds it least.

    Raises:
        FedsimError: none could be run.
    """
    known = [each for each in scored if not each.error]
    if not known:
        raise FedsimError(f"redteam: no attack could be run; the first: {scored[0].error if scored else 'none fits'}")
    return max(known, key=lambda each: (min(0.0, -each.excess(goal, bound)), each.value(goal)))


def best_file(kind: str, defense: str) -> str:
    """Name of the scenario file of a defense's worst attack."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9_]+', '-', defense)}.toml"


def told(verdicts: Sequence[Verdict], plan: Plan, file: str) -> dict[str, Any]:
    """``redteam.json``."""

    def interval(values: Sequence[float]) -> list[float | None]:
        return [None if math.isnan(each) else each for each in t_interval(values)[:3]]

    def end(verdict: Verdict, scored: Scored) -> dict[str, Any]:
        scenario = scored.attempt.on(verdict.space.scenario, plan.report[0])
        return scored.table() | {
            "measure": interval(verdict.measure(scored)),
            "lost_interval": interval(scored.lost),
            "within": scored.excess(plan.goal, plan.bound) <= 0,
            "scenario": scenario.toml(),
            "file": best_file("static" if scored is verdict.static else "adaptive", verdict.defense),
        }

    return {
        "file": file,
        "goal": plan.goal,
        "bound": plan.bound,
        "budget": plan.budget,
        "tune": list(plan.tune),
        "report": list(plan.report),
        "defenses": [
            {
                "defense": verdict.defense,
                "threat_model": verdict.space.described(),
                "statics": [each.table() for each in verdict.statics],
                "trials": [each.table() for each in verdict.trials],
                "static": end(verdict, verdict.static),
                "adaptive": end(verdict, verdict.adaptive),
                "gain": [None if math.isnan(each) else each for each in verdict.gain[:3]],
                "floor": None if math.isnan(verdict.floor) else verdict.floor,
            }
            for verdict in verdicts
        ],
    }


def restored(table: dict[str, Any]) -> Scored:
    def values(name: str) -> tuple[float, ...]:
        return tuple(math.nan if value is None else value for value in table[name])

    attempt = Attempt(tuple(table["attacks"]), table["schedule"])
    return Scored(attempt, values("asr"), values("accuracy"), values("lost"), table["acted"], table["error"])


def plain(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


__all__ = ["Plan", "Say", "Scored", "Verdict", "best", "best_file", "mean", "restored", "told"]
