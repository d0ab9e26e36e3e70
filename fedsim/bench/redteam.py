"""The red team: attacks tuned to a defense, inside a stated threat model, judged on seeds that the tuning never saw.

Optuna's TPE proposes attacks out of a :class:`~fedsim.bench.space.Space`; each is run on the tuning seeds. The goal
``asr`` maximises the attack success rate while the main accuracy lost against the same run without attack stays within
``bound``; ``damage`` maximises that loss. The best of what was tried and the best static attack (defaults, as papers
set them) are chosen alike, by the tuning seeds, and both are then run on the reporting seeds: what is printed was not what
was maximised. Everything lies in one folder, the study as a journal, each run under its key; a search that was stopped
goes on where it was, in the middle of a run, and ends as if it had not been. The seed of each proposal depends on its
number alone, so that the same call with as many ``jobs`` finds the same.

Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019; Bergstra et al., "Algorithms
for Hyper-Parameter Optimization", NeurIPS 2011; adaptive attackers as a standard of evaluation: Tramèr et al., "On
Adaptive Attacks to Adversarial Example Defenses", NeurIPS 2020, arXiv:2002.08347.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import rng
from fedsim.analysis.statistics import Interval, paired_difference, t_interval
from fedsim.bench.cell import Cell, finished, measured
from fedsim.bench.space import Attempt, Goal, Space, has_trigger
from fedsim.errors import FedsimError, ScenarioError
from fedsim.launch import twin
from fedsim.record import make_folder, write_bytes, write_json
from fedsim.scenario import Scenario, override, read
from fedsim.simulation import simulate

if TYPE_CHECKING:
    import optuna

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
        return -math.inf if self.error or not values else _mean(values)

    def excess(self, goal: Goal, bound: float) -> float:
        """How far the loss of accuracy is above the bound; at most 0 where it holds."""
        return -math.inf if goal == "damage" else _mean(self.lost) - bound if self.lost else math.inf

    def table(self) -> dict[str, Any]:
        return {
            "attacks": list(self.attempt.attacks),
            "schedule": self.attempt.schedule,
            "asr": _plain(self.asr),
            "accuracy": _plain(self.accuracy),
            "lost": _plain(self.lost),
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


def redteam(
    file: str | Path,
    defenses: Sequence[Any],
    budget: int,
    out: str | Path,
    *,
    goal: Goal | None = None,
    bound: float = 0.02,
    tune: int = 2,
    report: int = 3,
    jobs: int = 1,
    attacks: Sequence[str] = (),
    sets: Sequence[str] = (),
    say: Say = print,
) -> list[Verdict]:
    """Search the worst attack against each defense and write ``redteam.json`` and ``redteam.html``.

    Args:
        file: scenario file that states the threat model, or the name of one that ships with fedsim; its matrix is
            left out.
        defenses: each a name, a part's table, or a list of parts; none: the scenario's own.
        budget: attacks that the search tries for each defense, beside the static ones.
        out: folder of the runs, the studies and the findings; what is there is gone on with.
        goal: ``asr`` or ``damage``; None: ``asr`` where the scenario's attack has a trigger.
        bound: main accuracy that an attack may cost, with the goal ``asr``.
        tune: seeds on which attacks are tuned, from the scenario's on.
        report: seeds on which the best are reported, those that follow.
        jobs: runs at a time, each a process.
        attacks: names of the only attacks to try; none: all that fit.
        sets: ``key=VALUE`` overrides.
        say: called with a line of progress.

    Raises:
        ScenarioError: the scenario is at fault, or allows no attack that fits the goal.
        FedsimError: Optuna is not installed, or the folder holds another search.
        KeyboardInterrupt: it was stopped after a round; the same call goes on.
    """
    _optuna()
    data = {key: value for key, value in read(file, None, sets).items() if key != "matrix"}
    base = Scenario(**data)
    own = [part.name for part in base.adversary.attacks]
    wanted: Goal = goal or ("asr" if any(map(has_trigger, own)) else "damage")
    seeds = range(base.seed, base.seed + tune + report)
    folder = Path(out)
    plan = Plan(folder, budget, wanted, bound, tuple(seeds[:tune]), tuple(seeds[tune:]), jobs, say)
    make_folder(folder)
    scenarios = [_defended(data, base, defense) for defense in defenses] or [base]
    spaces = [Space.of(scenario, wanted, attacks) for scenario in scenarios]
    verdicts = []
    with ExitStack() as stack:
        pool = None
        if jobs > 1:
            from multiprocessing import get_context

            pool = stack.enter_context(ProcessPoolExecutor(jobs, get_context("spawn")))
        for space in spaces:
            verdicts.append(_Hunt(space, plan, pool).verdict())
            write_json(folder / "redteam.json", _told(verdicts, plan, str(file)))
            _write_best(folder, verdicts[-1], plan)
            from fedsim.report.redteam import write_redteam

            write_redteam(folder)
    return verdicts


def defense_name(scenario: Scenario) -> str:
    """The defenses of a scenario in short."""
    return " + ".join(part.name for part in scenario.server.defenses)


class _Hunt:
    """The search against one defense."""

    def __init__(self, space: Space, plan: Plan, pool: Executor | None) -> None:
        self.space, self.plan, self.pool = space, plan, pool
        self.defense = defense_name(space.scenario)
        self.calm: dict[int, dict[str, Any]] = {}

    def verdict(self) -> Verdict:
        goal, plan = self.space.goal, self.plan
        statics = self.score(self.space.statics(), plan.tune)
        for scored in statics:
            self._say("static", scored)
        trials = self.search()
        static = best(statics, goal, plan.bound)
        adaptive = best([*statics, *trials], goal, plan.bound)
        ends = self.score([static.attempt, adaptive.attempt], plan.report)
        floors = [self.calm[seed]["asr"] for seed in plan.report if self.calm[seed]["asr"] is not None]
        return Verdict(self.defense, self.space, statics, trials, *ends, _mean(floors) if floors else math.nan)

    def search(self) -> list[Scored]:
        """The trials of the study, in order; those that are missing are run."""
        optuna = _optuna()
        study = self._study()
        pending = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.RUNNING]
        while True:
            done = [trial for trial in study.trials if trial.state.is_finished() and "scored" in trial.user_attrs]
            missing = min(self.plan.budget - len(done), self.plan.jobs - len(done) % self.plan.jobs)
            if missing <= 0:
                break
            batch: list[tuple[Any, Attempt]] = []
            for trial in pending:
                try:
                    batch.append((trial, self.space.suggest(optuna.trial.FixedTrial(trial.params))))
                except ValueError:  # It was stopped while it was proposed.
                    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            pending = []
            while len(batch) < missing:
                study.sampler = self._sampler(len(done) + len(batch))
                asked = study.ask()
                batch.append((asked, self.space.suggest(asked)))
            for (trial, _), scored in zip(
                batch, self.score([attempt for _, attempt in batch], self.plan.tune), strict=True
            ):
                self._tell(study, trial, scored)
                self._say(f"{len(done) + 1}/{self.plan.budget}", scored)
                done.append(trial)
        return [_restored(trial.user_attrs["scored"]) for trial in study.trials if "scored" in trial.user_attrs]

    def score(self, attempts: Sequence[Attempt], seeds: Sequence[int]) -> list[Scored]:
        """Run attacks on seeds, and what is missing of the runs without attack."""
        jobs: dict[tuple[int, int], Scenario | str] = {}
        for seed in seeds:
            if seed not in self.calm:
                jobs[-1, seed] = self._calm(seed)
            for position, attempt in enumerate(attempts):
                try:
                    jobs[position, seed] = attempt.on(self.space.scenario, seed)
                except ScenarioError as error:
                    jobs[position, seed] = error.faults[0].line(self.defense)
        found = dict(zip(jobs, self._run(list(jobs.values())), strict=True))
        self.calm |= {seed: row for (position, seed), row in found.items() if position < 0}
        return [
            self._scored(attempt, seeds, [found[position, seed] for seed in seeds])
            for position, attempt in enumerate(attempts)
        ]

    def _scored(self, attempt: Attempt, seeds: Sequence[int], rows: list[dict[str, Any]]) -> Scored:
        error = next((row["error"] for row in [*rows, *(self.calm[seed] for seed in seeds)] if "error" in row), "")
        if error:
            return Scored(attempt, error=error)
        return Scored(
            attempt,
            tuple(math.nan if row["asr"] is None else row["asr"] for row in rows),
            tuple(row["accuracy"] for row in rows),
            tuple(self.calm[seed]["accuracy"] - row["accuracy"] for seed, row in zip(seeds, rows, strict=True)),
            all(row["attack_acted"] for row in rows),
        )

    def _run(self, wanted: list[Scenario | str]) -> list[dict[str, Any]]:
        folder = self.plan.out / "runs"
        places = [None if isinstance(each, str) else Cell.of(1, 1, {}, each, folder).folder for each in wanted]
        work: dict[Path, dict[str, Any]] = {}
        for each, place in zip(wanted, places, strict=True):
            if place is not None and not isinstance(each, str) and not finished(place):
                work[place] = each.table()
        if self.pool is None:
            errors = [_play(table, place, 0) for place, table in work.items()]
        else:
            errors = list(self.pool.map(_play, work.values(), work, [1] * len(work)))
        if "interrupted" in errors:
            raise KeyboardInterrupt
        failed = dict(zip(work, errors, strict=True))
        return [
            {"error": str(each)}
            if place is None
            else {"error": failed[place]}
            if failed.get(place)
            else measured(place)
            for each, place in zip(wanted, places, strict=True)
        ]

    def _calm(self, seed: int) -> Scenario:
        """The run without attack, the scenario's trigger kept for the floor."""
        attempt = self.space.statics()[0]
        attacked = attempt.on(self.space.scenario, seed)
        other = twin(attacked)
        if other is not None:
            return other
        table = attacked.table()
        table["adversary"] = {"count": 0, "attacks": []}
        return Scenario(**table)

    def _study(self) -> optuna.Study:
        optuna = _optuna()
        folder = self.plan.out / "studies"
        make_folder(folder)
        name = self._fingerprint()
        backend = optuna.storages.journal.JournalFileBackend(str(folder / f"{self.defense.replace('/', '-')}-{name}"))
        storage = optuna.storages.JournalStorage(backend)
        return optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True, sampler=self._sampler(0)
        )

    def _fingerprint(self) -> str:
        """What a study is a search of: threat model, space, goal, seeds; another budget goes on with it."""
        import hashlib

        table = self.space.scenario.table()
        table.pop("title"), table.pop("engine")
        what = [table, repr(self.space.slots), self.space.goal, self.plan.bound, self.plan.tune]
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def _sampler(self, number: int) -> optuna.samplers.TPESampler:
        seed = rng.integer(self.space.scenario.seed, "redteam", round=number) % 2**31
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _optuna().samplers.TPESampler(
                seed=seed,
                n_startup_trials=10,
                multivariate=True,
                group=True,
                constant_liar=True,
                constraints_func=lambda trial: trial.user_attrs["constraints"],
            )

    def _tell(self, study: optuna.Study, trial: Any, scored: Scored) -> None:
        optuna = _optuna()
        goal, bound = self.space.goal, self.plan.bound
        attributes = {"scored": scored.table(), "constraints": [max(scored.excess(goal, bound), -1.0)]}
        if scored.error:
            attributes["constraints"] = [1.0]
        for key, value in attributes.items():
            study._storage.set_trial_user_attr(trial._trial_id, key, value)
        if scored.error:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial.number, scored.value(goal))

    def _say(self, what: str, scored: Scored) -> None:
        from fedsim.report.redteam import attack_words

        said = attack_words({"attacks": scored.attempt.attacks, "schedule": scored.attempt.schedule})
        if scored.error:
            self.plan.say(f"{self.defense}  {what}  {said}: cannot run, {scored.error}")
            return
        reached = f"ASR {_mean(scored.asr):.3f}, " if self.space.goal == "asr" else ""
        over = "" if scored.excess(self.space.goal, self.plan.bound) <= 0 else " (over the bound)"
        self.plan.say(f"{self.defense}  {what}  {reached}accuracy lost {_mean(scored.lost):+.3f}{over}  {said}")


def best(scored: Sequence[Scored], goal: Goal, bound: float) -> Scored:
    """The one that reaches most within the bound; where none keeps within it, the one that exceeds it least.

    Raises:
        FedsimError: none could be run.
    """
    known = [each for each in scored if not each.error]
    if not known:
        raise FedsimError(f"redteam: no attack could be run; the first: {scored[0].error if scored else 'none fits'}")
    return max(known, key=lambda each: (min(0.0, -each.excess(goal, bound)), each.value(goal)))


def _play(table: dict[str, Any], folder: Path, workers: int) -> str:
    """Run a scenario into its folder; what went wrong, or nothing."""
    try:
        scenario = Scenario(**table)
        if workers and scenario.engine.name == "local":
            scenario = scenario.changed(**{"engine.workers": workers})
        return "" if simulate(scenario, folder, resume=True).finished else "interrupted"
    except FedsimError as error:
        return str(error).splitlines()[0]


def _defended(data: dict[str, Any], base: Scenario, defense: Any) -> Scenario:
    """The scenario with this defense; a bare name takes the options that the scenario gives it."""
    if isinstance(defense, str):
        known = [{"name": part.name, **part.options} for part in base.server.defenses if part.name == defense]
        defense = known[:1] or [defense]
    parts = defense if isinstance(defense, list) else [defense]
    try:
        return Scenario(**override(data, {"server.defenses": parts}))
    except ScenarioError as error:
        raise ScenarioError(error.faults, "--defense") from error


def _write_best(folder: Path, verdict: Verdict, plan: Plan) -> None:
    """The best static and the best adaptive attack as scenario files, on the first reporting seed."""
    for kind, scored in (("static", verdict.static), ("adaptive", verdict.adaptive)):
        scenario = scored.attempt.on(verdict.space.scenario, plan.report[0])
        write_bytes(folder / best_file(kind, verdict.defense), scenario.toml().encode())


def best_file(kind: str, defense: str) -> str:
    """Name of the scenario file of a defense's worst attack."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9_]+', '-', defense)}.toml"


def _told(verdicts: Sequence[Verdict], plan: Plan, file: str) -> dict[str, Any]:
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


def _restored(table: dict[str, Any]) -> Scored:
    def values(name: str) -> tuple[float, ...]:
        return tuple(math.nan if value is None else value for value in table[name])

    attempt = Attempt(tuple(table["attacks"]), table["schedule"])
    return Scored(attempt, values("asr"), values("accuracy"), values("lost"), table["acted"], table["error"])


def _plain(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _optuna() -> Any:
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as error:
        raise FedsimError("redteam: needs Optuna: pip install 'fedsim-flwr[redteam]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


__all__ = ["Plan", "Scored", "Verdict", "best", "best_file", "defense_name", "redteam"]
