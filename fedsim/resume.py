"""Whether a run may go on in a folder: the scenario, its files, the data and the code are those it was started with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsim import registry
from fedsim.errors import ResumeError
from fedsim.scenario import Scenario
from fedsim.scenario_privacy import mechanisms


def check_continues(folder: Path, keys: dict[str, Any], scenario: Scenario) -> None:
    """Whether the run in a folder may be continued by this scenario.

    Another engine or title is no change; more rounds are none where no part depends on how many there are.

    Raises:
        ResumeError: naming the keys that differ.
    """
    before = json.loads((folder / "run.json").read_text())
    if before["key"] == keys["key"]:
        return
    old, new = dict(_leaves(before["scenario"])), dict(_leaves(keys["scenario"]))
    differ = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if "rounds" in differ and new["rounds"] > old["rounds"]:
        bound = _parts_bound_to_rounds(scenario, old["rounds"]) or _noise_bound_to_rounds(scenario, old["rounds"])
        if not bound:
            differ.remove("rounds")
        else:
            raise ResumeError(
                f"{folder}: rounds: given {new['rounds']}; accepted: {old['rounds']}, since {bound} depends on it"
            )
    shown = [
        f"{name}: given {new.get(name)!r}; accepted: {old.get(name)!r}, as the run there was started" for name in differ
    ]
    for name in sorted(before["files"].keys() | keys["files"].keys()):
        if before["files"].get(name) != keys["files"].get(name) and not differ:
            shown.append(f"{name}: the file has changed since the run was started")
    if before["data"] != keys["data"] and not differ:
        shown.append("data.dataset: its examples are others than when the run was started")
    if before["fedsim"] != keys["fedsim"]:
        shown.append(f"fedsim: given {keys['fedsim']}; accepted: {before['fedsim']}, which started the run")
    if shown:
        raise ResumeError("\n".join(f"{folder}: {line}" for line in shown))


def _parts_bound_to_rounds(scenario: Scenario, before: int) -> str:
    when = registry.make("schedule", scenario.adversary.schedule.name, **scenario.adversary.schedule.options)
    if any(when.active(number, before) != when.active(number, scenario.rounds) for number in range(1, before + 1)):
        return f"adversary.schedule = '{scenario.adversary.schedule.name}'"
    parts = {
        "client.lr_schedule": ("lr_schedule", scenario.client.lr_schedule),
        "adversary.schedule": ("schedule", scenario.adversary.schedule),
        **{f"server.defenses[{i}]": ("defense", part) for i, part in enumerate(scenario.server.defenses)},
        **{f"adversary.attacks[{i}]": ("attack", part) for i, part in enumerate(scenario.adversary.attacks)},
    }
    for where, (kind, part) in parts.items():
        if getattr(registry.get(kind, part.name), "depends_on_rounds", False):
            return f"{where} = '{part.name}'"
    return ""


def _noise_bound_to_rounds(scenario: Scenario, before: int) -> str:
    """What makes another noise of more rounds: those that are over have released with too little of it."""
    privacy, estimator = scenario.privacy, scenario.server.estimator
    if estimator is not None:
        interval = getattr(registry.make("estimator", estimator.name, **estimator.options), "interval", None)
        if interval is not None and interval(before) != interval(scenario.rounds):
            return "the restart interval of server.estimator"
    calibrated = privacy.noise is None and privacy.epsilon not in (None, "inf")
    return f"the noise for privacy.epsilon = {privacy.epsilon:g}" if calibrated and mechanisms(scenario) else ""


def _leaves(table: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(table, dict):
        for name, value in table.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, table


def refuse_occupied(folder: Path) -> None:
    """A new run takes no other's folder.

    Raises:
        ResumeError: a run is in it.
    """
    if (folder / "state.json").exists():
        raise ResumeError(f"{folder}: holds a run already; --resume continues it, another --out leaves it alone")
