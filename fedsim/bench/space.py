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

Options are searched between the bounds of :mod:`fedsim.bench.ranges`; the rest stays as the scenario or the attack's
default says. Attacks and choices that the scenario refuses are outside of the threat model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from attacks.attack import overrides
from fedsim import registry
from fedsim.bench.ranges import SPACES, Choices, Span, Trial, searched
from fedsim.errors import Fault, FedsimError, Said, ScenarioError
from fedsim.scenario import Scenario

Goal = Literal["asr", "damage"]


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
NEEDED = {"trigger": "with a trigger", "craft": "that crafts updates"}
"""Slot that must be filled → the attacks that fill it, in words."""


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
    def of(cls, scenario: Scenario, goal: Goal, attacks: Sequence[str] = (), where: str = "scenario") -> Space:
        """The space of a threat model.

        Args:
            scenario: the threat model, with one defense.
            goal: what is to be won.
            attacks: names of the only attacks to try; none: all that fit.
            where: the scenario's file, for messages.

        Raises:
            ScenarioError: nothing fits.
        """
        if not scenario.attackers:
            accepted = "malicious clients: set adversary.count or adversary.fraction to one client or more"
            raise ScenarioError([Fault("adversary", Said("no malicious clients"), accepted)], where)
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
                accepted = f"a threat model that allows one ({_grouped(outside)})"
                raise ScenarioError([Fault("adversary", Said(f"no attack {NEEDED[slot]}"), accepted)], where)
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
        if adversary.examples is not None:
            whose = "its clients" if adversary.examples == "own" else "all clients, and the test set"
            found.insert(2, ("Has", f"the examples of {whose}"))
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
    for option, what in searched(name, fixed):
        if isinstance(what, Span):
            found[option] = what
            continue
        allowed = tuple(value for value in what if not _refused(scenario, {"name": name, **fixed, option: value}))
        if len(allowed) > 1:
            found[option] = allowed
    return found


def _grouped(outside: Mapping[str, str]) -> str:
    """``alie, ipm: needs …; pgd: needs …``: attacks that one reason keeps out, together."""
    reasons = dict.fromkeys(outside.values())
    return "; ".join(f"{', '.join(name for name in outside if outside[name] == why)}: {why}" for why in reasons)


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


__all__ = ["NONE", "SLOTS", "Attempt", "Goal", "Space", "has_trigger", "slot_of"]
