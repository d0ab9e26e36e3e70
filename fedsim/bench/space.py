"""What the red team may try: the attacks that a threat model allows, their options, when they attack.

The scenario states the threat model: how many clients the adversary holds, what it knows, whether it knows the
defense, what it claims, what its backdoor is to do (the trigger attack and its target) and how often it may attack at
most. An attack is put together from slots, in this order:

=========  ==========================================================  ==============
goal       slots                                                       each holds
=========  ==========================================================  ==============
``asr``    trigger, mask, shape, scale                                 one, one or none …
``damage`` poison, craft                                               one or none, one
=========  ==========================================================  ==============

Options are searched between the bounds of ``SPACES``, kept inside what the registry accepts; of an attack that is not
in it (a plug-in), every choice and every number that has two bounds. The rest stays as the scenario or the attack's
default says. Attacks and choices that the scenario refuses are outside of the threat model.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from attacks.attack import overrides
from fedsim import registry
from fedsim.errors import Fault, FedsimError, ScenarioError
from fedsim.scenario import Scenario

Goal = Literal["asr", "damage"]
Choices = tuple[Any, ...]


class Trial(Protocol):
    """What of an Optuna trial is used."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = ...) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Span:
    """Numbers from ``low`` to ``high``."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Trial, name: str) -> float | int:
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


SPACES: dict[str, dict[str, Span | Choices]] = {
    "badnets": {"ratio": Span(0.05, 1.0)},
    "blended": {"ratio": Span(0.05, 1.0)},
    "sinusoidal": {"ratio": Span(0.05, 1.0)},
    "dba": {"ratio": Span(0.05, 1.0)},
    "edge_case": {"examples": Span(10, 400, log=True, whole=True), "clean": Span(0, 800, whole=True)},
    "semantic": {"examples": Span(0, 200, whole=True)},
    "anticipate": {"ratio": Span(0.05, 1.0), "ahead": Span(1, 6, whole=True)},
    "a3fl": {"ratio": Span(0.05, 1.0)},
    "iba": {"ratio": Span(0.05, 1.0)},
    "chameleon": {"ratio": Span(0.05, 1.0), "weight": Span(0.1, 10.0, log=True)},
    "neurotoxin": {"top": Span(0.005, 0.5, log=True)},
    "pgd": {"epsilon": Span(0.05, 10.0, log=True), "every": Span(1, 20, log=True, whole=True)},
    "constrain_and_scale": {"alpha": Span(0.1, 1.0), "anomaly": ("euclidean", "cosine")},
    "model_replacement": {"scale": Span(0.3, 100.0, log=True)},
    "label_flip": {},
    "alie": {"z": Span(0.1, 10.0, log=True)},
    "ipm": {"epsilon": Span(0.05, 20.0, log=True)},
    "sign_flip": {"scale": Span(0.1, 30.0, log=True), "of": ("own", "mean")},
    "gaussian": {"scale": Span(1e-3, 10.0, log=True), "mode": ("alone", "added")},
    "min_max": {"direction": ("unit", "std", "sign")},
    "min_sum": {"direction": ("unit", "std", "sign")},
    "mimic": {},
    "fang_krum": {},
    "fang_trimmed_mean": {"beyond": Span(1.1, 10.0, log=True)},
    "optimal": {"attack": ("ipm", "alie", "sign_flip"), "high": Span(1.0, 30.0, log=True)},
}
"""Attack → option → what is tried."""

NONE = "none"
SLOTS: dict[Goal, tuple[tuple[str, bool, tuple[str, ...]], ...]] = {
    "asr": (
        ("trigger", True, ("badnets", "dba", "blended")),
        ("mask", False, ("neurotoxin",)),
        ("shape", False, ("pgd", "constrain_and_scale")),
        ("scale", False, ("model_replacement",)),
    ),
    "damage": (
        ("poison", False, ("label_flip",)),
        (
            "craft",
            True,
            (
                *("sign_flip", "gaussian", "alie", "ipm", "min_max", "min_sum", "mimic"),
                *("fang_krum", "fang_trimmed_mean", "optimal", "label_flip"),
            ),
        ),
    ),
}
"""Goal → (slot, whether it must be filled, the attacks that fit)."""


@dataclass(frozen=True)
class Attempt:
    """One attack of the adversary: the parts, and when they act."""

    attacks: tuple[dict[str, Any], ...]
    schedule: dict[str, Any]

    def on(self, scenario: Scenario, seed: int) -> Scenario:
        """The scenario with this attack.

        Raises:
            ScenarioError: it does not fit.
        """
        changes = {"adversary.attacks": list(self.attacks), "adversary.schedule": self.schedule, "seed": seed}
        return scenario.changed(**changes)


@dataclass(frozen=True)
class Space:
    """All that may be tried.

    Args:
        scenario: the threat model, with one defense.
        goal: what is to be won.
        slots: (slot, whether it must be filled, attack → (its fixed options, option → what is tried)).
        stated: attack → the options that the scenario gives it.
        schedule: the only schedule; None where thinner ones than every round are tried, too.
        outside: attack → why the threat model does not allow it.
    """

    scenario: Scenario
    goal: Goal
    slots: tuple[tuple[str, bool, dict[str, tuple[dict[str, Any], dict[str, Span | Choices]]]], ...]
    schedule: dict[str, Any] | None
    outside: dict[str, str] = field(default_factory=dict)
    stated: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, scenario: Scenario, goal: Goal, attacks: Sequence[str] = ()) -> Space:
        """The space of a threat model.

        Args:
            scenario: the threat model, with one defense.
            goal: what is to be won.
            attacks: names of the only attacks to try; none: all that fit.

        Raises:
            ScenarioError: nothing fits.
        """
        outside: dict[str, str] = {}
        slots = []
        for slot, needed, names in SLOTS[goal]:
            wanted = _wanted(scenario, goal, slot, names, attacks)
            fitting = {}
            for name, fixed in wanted.items():
                found = _fitted(scenario, name, fixed, outside)
                if found is not None:
                    fitting[name] = (fixed, found)
            if needed and not fitting:
                why = "; ".join(f"{name}: {reason}" for name, reason in outside.items())
                raise ScenarioError(
                    [Fault("adversary", f"nothing for '{slot}'", f"a threat model that allows one ({why})")]
                )
            if fitting:
                slots.append((slot, needed, fitting))
        given = scenario.table()["adversary"]["schedule"]
        free = given["name"] == "every_round" and scenario.rounds >= 4
        stated = {
            part.name: {option: value for option, value in part.options.items() if value is not None}
            for part in scenario.adversary.attacks
        }
        return cls(scenario, goal, tuple(slots), None if free else given, outside, stated)

    def suggest(self, trial: Trial) -> Attempt:
        """What this trial tries."""
        attacks: list[dict[str, Any]] = []
        for slot, needed, fitting in self.slots:
            names = [*([] if needed else [NONE]), *fitting]
            name = names[0] if len(names) == 1 else trial.suggest_categorical(slot, names)
            if name == NONE:
                continue
            fixed, options = fitting[name]
            chosen = {
                option: what.suggest(trial, f"{name}.{option}")
                if isinstance(what, Span)
                else trial.suggest_categorical(f"{name}.{option}", list(what))
                for option, what in options.items()
            }
            # An attack that fits two slots acts once.
            attacks = [each for each in attacks if each["name"] != name]
            attacks.append({"name": name, **fixed, **chosen})
        return Attempt(tuple(attacks), self.schedule if self.schedule is not None else self._schedule(trial))

    def statics(self) -> list[Attempt]:
        """The attacks as their papers and the scenario set them: each alone with its defaults, in every round allowed.

        The scenario's own list comes first.
        """
        when = self.schedule or {"name": "every_round"}
        own = self.scenario.table()["adversary"]["attacks"]
        found = [Attempt(tuple(own), when)] if own else []
        required = next(fitting for _, needed, fitting in self.slots if needed)
        for name in required:
            first = {"name": name, **self.stated.get(name, {})}
            found.append(Attempt((first,), when))
            others = [
                {"name": other, **self.stated.get(other, {})}
                for _, needed, fitting in self.slots
                for other in fitting
                if not needed and self.goal == "asr"
            ]
            found += [Attempt((first, other), when) for other in others]
        unique = {repr(attempt): attempt for attempt in found}
        return list(unique.values())

    def first(self, budget: int) -> list[dict[str, Any]]:
        """What a search begins with: each attack once in every round, its options drawn; nothing if there is no room.

        Without it, a choice that was unlucky in its first trial would hardly be made again.
        """
        chosen = [(slot, needed, list(fitting)) for slot, needed, fitting in self.slots]
        plain = {slot: names[0] if needed else NONE for slot, needed, names in chosen if len(names) > needed}
        when = {} if self.schedule is not None else {"schedule": "every_round"}
        found = [plain | {slot: name} | when for slot, _, names in chosen if slot in plain for name in names]
        unique = list({repr(params): params for params in found}.values())
        return unique if 2 * len(unique) <= budget else []

    def described(self) -> list[tuple[str, str]]:
        """The threat model and the space in words: (subject, sentence) pairs."""
        adversary = self.scenario.adversary
        who = f"{self.scenario.attackers} of {self.scenario.data.clients} clients, {self.scenario.cohort} asked a round"
        if adversary.selection == "forced":
            who += f", {adversary.forced} of the adversary's forced into each attack round"
        tried = [
            f"{slot}: {', '.join([*([] if needed else ['nothing']), *fitting])}" for slot, needed, fitting in self.slots
        ]
        when = "as the scenario says" if self.schedule else "every round, a frequency, a window, a single round"
        found = [
            ("Holds", who),
            ("Knows", adversary.knowledge + (" and the defense" if adversary.knows_defense else ", not the defense")),
            ("Attacks", when),
            ("Tries", "; ".join(tried)),
        ]
        if self.outside:
            found.append(("Outside", "; ".join(f"{name}: {why}" for name, why in self.outside.items())))
        return found

    def _schedule(self, trial: Trial) -> dict[str, Any]:
        rounds = self.scenario.rounds
        names = ["every_round", "fixed_frequency", "window", "single_shot"]
        name = trial.suggest_categorical("schedule", names)
        if name == "fixed_frequency":
            return {"name": name, "every": trial.suggest_int("schedule.every", 2, max(2, rounds // 2), log=True)}
        if name == "window":
            start = trial.suggest_int("schedule.start", 1, rounds)
            length = trial.suggest_int("schedule.length", 1, rounds)
            return {"name": name, "start": start, "stop": min(rounds, start + length - 1)}
        if name == "single_shot":
            return {"name": name, "round": trial.suggest_int("schedule.round", 1, rounds)}
        return {"name": name}


def slot_of(name: str, goal: Goal) -> str:
    """The slot that an attack fits by its hooks."""
    part = registry.get("attack", name)
    known = [slot for slot, _, names in SLOTS[goal] if name in names]
    if known:
        return known[-1]
    if goal == "damage":
        return "craft"
    if any(overrides(part, hook) for hook in ("triggered", "shown")):
        return "trigger"
    return "scale" if overrides(part, "craft") else "shape"


def has_trigger(name: str) -> bool:
    """Whether an attack has a trigger, so that its success can be measured."""
    part = registry.get("attack", name)
    return any(overrides(part, hook) for hook in ("triggered", "shown"))


def _wanted(
    scenario: Scenario, goal: Goal, slot: str, names: Sequence[str], only: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Attack → options that stay: those to be tried in a slot; the trigger is the scenario's, if it names one."""
    own = {part.name: dict(part.options) for part in scenario.adversary.attacks}
    searched = {name: SPACES.get(name, {}) for name in own}
    kept = {
        name: {option: value for option, value in options.items() if option not in searched[name]}
        for name, options in own.items()
    }
    if slot == "trigger" and any(map(has_trigger, own)):
        names = [name for name in own if has_trigger(name)]
    else:
        others = [name for name in own if name not in names and not registry.get("attack", name).untargeted]
        names = [*names, *(name for name in others if goal == "asr" and slot_of(name, goal) == slot)]
    if only:
        stated = slot == "trigger" and not any(slot_of(name, goal) == slot for name in only)
        names = list(names) if stated else [name for name in only if slot_of(name, goal) == slot]
    return {name: kept.get(name, {}) for name in names}


def _fitted(
    scenario: Scenario, name: str, fixed: Mapping[str, Any], outside: dict[str, str]
) -> dict[str, Span | Choices] | None:
    """Option → what is tried of an attack; None where the threat model does not allow it."""
    why = _refused(scenario, {"name": name, **fixed})
    if why:
        outside[name] = why
        return None
    found: dict[str, Span | Choices] = {}
    for option, what in _searched(name, fixed):
        if isinstance(what, Span):
            found[option] = what
            continue
        allowed = tuple(value for value in what if not _refused(scenario, {"name": name, **fixed, option: value}))
        if len(allowed) > 1:
            found[option] = allowed
    return found


def _refused(scenario: Scenario, part: dict[str, Any]) -> str:
    try:
        Attempt((part,), {"name": "every_round"}).on(scenario, scenario.seed)
    except ScenarioError as error:
        fault = error.faults[0]
        accepted = fault.accepted.partition(", which")[0]
        return f"needs {accepted}" if fault.key.startswith("adversary.attacks") else f"needs {fault.key} = {accepted}"
    except FedsimError as error:
        return str(error)
    return ""


def _searched(name: str, fixed: Mapping[str, Any]) -> Iterator[tuple[str, Span | Choices]]:
    """(option, what is tried), inside of what the registry accepts."""
    curated = SPACES.get(name)
    for option in registry.options(registry.get("attack", name)):
        if option.name in fixed:
            continue
        low, high, whole, choices = _bounds(option.annotation)
        if curated is not None:
            what = curated.get(option.name)
            if isinstance(what, Span):
                yield option.name, Span(max(what.low, low), min(what.high, high), what.log, what.whole)
            elif what is not None:
                yield option.name, tuple(value for value in what if not choices or value in choices)
        elif choices:
            yield option.name, choices
        elif math.isfinite(low) and math.isfinite(high):
            yield option.name, Span(low, high, log=low > 0 and high / low > 30, whole=whole)


def _bounds(annotation: Any) -> tuple[float, float, bool, Choices]:
    """(lowest, highest number, whether it is whole, choices) that a type accepts; open bounds count as just inside."""
    low, high, whole = -math.inf, math.inf, False
    choices: Choices = ()
    for each in _plain(annotation):
        if typing.get_origin(each) is Literal:
            choices = typing.get_args(each)
        elif each is bool:
            choices = (False, True)
        elif typing.get_origin(each) is typing.Annotated:
            kind, *marks = typing.get_args(each)
            whole = kind is int
            for mark in (inner for outer in marks for inner in getattr(outer, "metadata", [outer])):
                low = max(low, _bound(mark, "ge", -math.inf), _bound(mark, "gt", -math.inf) + (1 if whole else 1e-9))
                high = min(high, _bound(mark, "le", math.inf), _bound(mark, "lt", math.inf) - (1 if whole else 1e-9))
            break
    return low, high, whole, choices


def _plain(annotation: Any) -> tuple[Any, ...]:
    """The members of a union."""
    import types

    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _bound(mark: Any, name: str, otherwise: float) -> float:
    found = getattr(mark, name, None)
    return otherwise if found is None else float(found)


__all__ = ["NONE", "SLOTS", "SPACES", "Attempt", "Goal", "Space", "Span", "has_trigger", "slot_of"]
