"""``fedsim.run``: a simulation with its report, and the floor of its attack success rate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import registry
from fedsim.errors import FedsimError
from fedsim.federation import make
from fedsim.record import write_json
from fedsim.scenario import Part, Scenario
from fedsim.scenario_rules import needs_population
from fedsim.simulation import Progress, Result, simulate
from fedsim.tables import Tables

if TYPE_CHECKING:
    from fedsim.report.tracker import Trackers


def run(
    scenario: Scenario | dict[str, Any],
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    floor: bool = False,
    trackers: Sequence[str | Mapping[str, Any]] | Trackers = (),
) -> Result:
    """Run a scenario and write its report.

    Args:
        scenario: a scenario, or its tables.
        out: the run's folder, where ``report.html`` will lie; None keeps everything in memory.
        resume: continue the run in ``out`` if there is one; a finished one is returned as it is.
        progress: called with each round's line (a dict, see ``rounds.jsonl``).
        floor: also run the twin without attack (once a trigger) and record its ASR beside this run's.
        trackers: where else the measures go: names, or tables with a name and options (``fedsim list tracker``).

    Returns:
        The result: ``.rounds``, ``.clients`` (pandas), ``.parameters``, ``.digest``, ``.notes``.

    Raises:
        ScenarioError, ResumeError, DataMissing, RecordError: see :func:`fedsim.simulation.simulate`.
    """
    if isinstance(scenario, dict):
        scenario = Scenario(**scenario)
    if trackers:
        from fedsim.report.tracker import Trackers

        found = trackers if isinstance(trackers, Trackers) else Trackers(trackers)
        return _tracked(scenario, out, resume, progress, floor, found)
    return _reported(simulate(scenario, out, resume, progress), floor)


def _reported(result: Result, floor: bool) -> Result:
    if result.folder is not None:
        if floor and result.finished:
            add_floor(result)
        from fedsim.report.page import write_report

        write_report(result.folder)
    return result


def _tracked(
    scenario: Scenario,
    out: str | Path | None,
    resume: bool,
    progress: Progress | None,
    floor: bool,
    trackers: Trackers,
) -> Result:
    trackers.begin(scenario, None if out is None else Path(out))

    def tell(line: dict[str, Any]) -> None:
        trackers.round(line)
        if progress is not None:
            progress(line)

    finished, facts = False, dict[str, str]()
    try:
        result = _reported(simulate(scenario, out, resume, tell), floor)
        finished, facts = result.finished, {"key": result.key, "digest": result.digest}
    finally:
        trackers.end(finished, facts)
    return result


def add_floor(result: Result, store: Path | None = None) -> dict[str, Any] | None:
    """Run the twin without attack (kept in ``store``, by its key) and write what it measured into the run's summary.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the twin after a round; calling again goes on with it.
    """
    folder = result.folder
    if folder is None:
        raise FedsimError("floor: given a run without a folder; accepted: a run with out=…")
    other = twin(result.scenario)
    if other is None:
        return None
    store = folder.parent / "floors" if store is None else store
    calm = simulate(other, store / twin_key(other), resume=True)
    if not calm.finished:
        raise KeyboardInterrupt
    measured = [line for line in calm.lines if line["asr"] is not None]
    if not measured:
        return None
    found = {
        "asr": measured[-1]["asr"],
        "asr_low": measured[-1]["asr_low"],
        "asr_high": measured[-1]["asr_high"],
        "accuracy": measured[-1]["accuracy"],
        "key": calm.key,
        "rounds": {str(line["round"]): line["asr"] for line in measured},
        "accuracies": {str(line["round"]): line["accuracy"] for line in measured},
    }
    path = folder / "summary.json"
    write_json(path, json.loads(path.read_text()) | {"floor": found})
    return found


def twin(scenario: Scenario) -> Scenario | None:
    """The same run without attack, its trigger kept to measure what it hits by chance; None without a trigger."""
    from attacks.attack import overrides

    kept = [part for part in scenario.adversary.attacks if overrides(make("attack", part), "triggered")]
    if not kept or any(getattr(registry.get("attack", part.name), "learned_trigger", False) for part in kept):
        return None
    table = scenario.table()
    table["adversary"] = {"count": 0, "attacks": [_table(part) for part in kept]}
    if any(needs_population(part, Tables().adversary) for part in kept):
        table["adversary"]["examples"] = "population"
    table["title"] = f"Without attack: {scenario.title}"
    table.pop("observe", None)
    return Scenario(**table)


def twin_key(scenario: Scenario) -> str:
    """A short name for a scenario's folder in a store."""
    import hashlib

    table = scenario.table()
    table.pop("title"), table.pop("engine")
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]


def _table(part: Part) -> dict[str, Any]:
    return {"name": part.name, **part.options}
