"""The red team: attacks tuned to a defense, inside a stated threat model, judged on seeds that the tuning never saw.

Optuna's TPE proposes attacks out of a :class:`~fedsim.bench.space.Space`; each is run on the tuning seeds. The goal
``asr`` maximises the attack success rate while the main accuracy lost against the same run without attack stays within
``bound``; ``damage`` maximises that loss. The best of what was tried and the best static attack (defaults, as papers
set them) are chosen alike, by the tuning seeds, and both are then run on the reporting seeds: what is printed was not
what was maximised.

Everything lies in one folder, the study as a journal, each run under its key; a search that was stopped goes on where
it was, in the middle of a run, and ends as if it had not been. The seed of each proposal depends on its number alone,
so that the same call with as many ``jobs`` finds the same.

Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019; Bergstra et al., "Algorithms
for Hyper-Parameter Optimization", NeurIPS 2011; adaptive attackers as a standard of evaluation: Tramèr et al., "On
Adaptive Attacks to Adversarial Example Defenses", NeurIPS 2020, arXiv:2002.08347.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import registry, rng
from fedsim.bench.cell import Cell, finished, measured
from fedsim.bench.locks import held
from fedsim.bench.space import Attempt, Goal, Space, has_trigger
from fedsim.bench.verdict import Plan, Say, Scored, Verdict, best, mean, restored, told
from fedsim.errors import DataMissing, FedsimError, RecordError, ScenarioError, one_line
from fedsim.federation import key
from fedsim.launch import twin
from fedsim.record import make_folder, write_json
from fedsim.scenario import Scenario, override, read
from fedsim.simulation import simulate

if TYPE_CHECKING:
    import optuna


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
        FedsimError: Optuna is not installed, or another process searches in the folder.
        KeyboardInterrupt: it was stopped after a round; the same call goes on.
    """
    _optuna()
    data = {key: value for key, value in read(file, None, sets).items() if key != "matrix"}
    adversary = data.get("adversary") or {}
    if goal != "asr" and (adversary.get("fraction") or adversary.get("count")) and not adversary.get("attacks"):
        data["adversary"] = {**adversary, "attacks": ["sign_flip"]}  # stands in for what the search puts in its place
    base = Scenario(**data)
    own = [part.name for part in base.adversary.attacks]
    wanted: Goal = goal or ("asr" if any(map(has_trigger, own)) else "damage")
    seeds = range(base.seed, base.seed + tune + report)
    folder = Path(out)
    plan = Plan(folder, budget, wanted, bound, tuple(seeds[:tune]), tuple(seeds[tune:]), jobs, say)
    make_folder(folder)
    scenarios = [_defended(data, base, defense) for defense in defenses] or [base]
    spaces = [Space.of(scenario, wanted, attacks, str(file)) for scenario in scenarios]
    verdicts = []
    with ExitStack() as stack:
        if not stack.enter_context(held(folder / "redteam.lock")):
            raise FedsimError(
                f"red team: {folder} is searched by another process; accepted: a folder that none searches, or the "
                "same call once it has ended"
            )
        pool = None
        if jobs > 1:
            from multiprocessing import get_context

            pool = stack.enter_context(ProcessPoolExecutor(jobs, get_context("spawn"), _end_with_caller))
        for space in spaces:
            verdicts.append(_Hunt(space, plan, pool).verdict())
            write_json(folder / "redteam.json", told(verdicts, plan, str(file)))
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
        static, adaptive = self.score([static.attempt, adaptive.attempt], plan.report)
        for scored in (static, adaptive):
            if scored.error:
                raise FedsimError(
                    f"redteam: {self.defense}: what was best on the tuning seeds cannot be run on a reporting seed: "
                    f"{scored.error}; accepted: attacks and defenses that run; mended, the same call goes on"
                )
        floors = [self.calm[seed]["asr"] for seed in plan.report if self.calm[seed]["asr"] is not None]
        return Verdict(
            self.defense, self.space, statics, trials, static, adaptive, mean(floors) if floors else math.nan
        )

    def search(self) -> list[Scored]:
        """The trials of the study, in order; those that are missing are run."""
        optuna = _optuna()
        study = self._study()
        for params in self.space.first(self.plan.budget):
            study.enqueue_trial(params, skip_if_exists=True)
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
        return [restored(trial.user_attrs["scored"]) for trial in study.trials if "scored" in trial.user_attrs]

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
            try:
                errors = list(self.pool.map(_play, work.values(), work, [1] * len(work)))
            except BrokenProcessPool as error:
                raise FedsimError(
                    f"red team: one of {self.plan.jobs} processes was ended from outside, most often for want of "
                    "memory; accepted: fewer --jobs. What was searched is kept: the same call goes on"
                ) from error
            except KeyboardInterrupt:  # SIGTERM reaches this process alone; runs go on from their last whole round
                for process in multiprocessing.active_children():
                    process.terminate()
                raise
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
        storages = _optuna().storages
        folder = self.plan.out / "studies"
        make_folder(folder)
        name = self._fingerprint()
        file = folder / f"{self.defense.replace('/', '-')}-{name}"
        _drop_a_cut_line(file)
        backend = storages.journal.JournalFileBackend(str(file))
        storage = storages.JournalStorage(backend)
        found: optuna.Study = _optuna().create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True, sampler=self._sampler(0)
        )
        return found

    def _fingerprint(self) -> str:
        """What a study is a search of: threat model, space, goal, seeds; another budget goes on with it."""
        import hashlib

        table = self.space.scenario.table()
        table.pop("title"), table.pop("engine")
        what = [table, repr(self.space.slots), self.space.goal, self.plan.bound, self.plan.tune, *self._files()]
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def _files(self) -> list[dict[str, str]]:
        """Content of the plug-ins and files that attacks and scenario name, as their runs' keys hold it."""
        parts = [{"name": name, **fixed} for _, _, fitting in self.space.slots for name, (fixed, _) in fitting.items()]
        attempts = [Attempt((part,), {"name": "every_round"}) for part in parts] + self.space.statics()[:1]
        seed = self.space.scenario.seed
        found: dict[str, str] = {}
        for attempt in attempts:
            found |= key(attempt.on(self.space.scenario, seed), "")["files"]
        return [found] if found else []

    def _sampler(self, number: int) -> optuna.samplers.TPESampler:
        seed = rng.integer(self.space.scenario.seed, "redteam", round=number) % 2**31
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: optuna.samplers.TPESampler = _optuna().samplers.TPESampler(
                seed=seed,
                n_startup_trials=10,
                multivariate=True,
                group=True,
                constant_liar=True,
                constraints_func=lambda trial: trial.user_attrs["constraints"],
            )
            return found

    def _tell(self, study: optuna.Study, trial: Any, scored: Scored) -> None:
        optuna = _optuna()
        goal, bound = self.space.goal, self.plan.bound
        attributes = {"scored": scored.table(), "constraints": [max(scored.excess(goal, bound), -1.0)]}
        if scored.error:
            attributes["constraints"] = [1.0]
        for attribute, value in attributes.items():
            study._storage.set_trial_user_attr(trial._trial_id, attribute, value)
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
        reached = f"ASR {mean(scored.asr):.3f}, " if self.space.goal == "asr" else ""
        over = "" if scored.excess(self.space.goal, self.plan.bound) <= 0 else " (over the bound)"
        self.plan.say(f"{self.defense}  {what}  {reached}accuracy lost {mean(scored.lost):+.3f}{over}  {said}")


def _end_with_caller() -> None:
    """A process of the pool whose caller was killed would wait for work for ever."""
    import multiprocessing
    import os
    import threading

    caller = multiprocessing.parent_process()

    def watch() -> None:
        if caller is not None:
            caller.join()
            os._exit(1)  # a run goes on from its last whole round

    threading.Thread(target=watch, daemon=True).start()


def _drop_a_cut_line(file: Path) -> None:
    """A full disk or a kill may have cut the journal's last line, and Optuna would write on behind it."""
    if not file.is_file():
        return
    whole = file.read_bytes().rfind(b"\n") + 1
    if whole < file.stat().st_size:
        os.truncate(file, whole)


def _play(table: dict[str, Any], folder: Path, workers: int) -> str:
    """Run a scenario into its folder; what went wrong, or nothing."""
    try:
        scenario = Scenario(**table)
        if workers and scenario.engine.name == "local":
            scenario = scenario.changed(**{"engine.workers": workers})
        return "" if simulate(scenario, folder, resume=True).finished else "interrupted"
    except (OSError, MemoryError, RecordError, DataMissing):
        # A full disk or a machine without memory or data says nothing of the attack: the search stops and can go on.
        raise
    except FedsimError as error:
        return str(error).splitlines()[0]
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}{registry.where(error)}: {one_line(error)}"


def _defended(data: dict[str, Any], base: Scenario, defense: Any) -> Scenario:
    """The scenario with this defense; a bare name takes the options that the scenario gives it."""
    if isinstance(defense, str):
        known = [{"name": part.name, **part.options} for part in base.server.defenses if part.name == defense]
        defense = [*known, defense][0]
    parts = defense if isinstance(defense, list) else [defense]
    try:
        return Scenario(**override(data, {"server.defenses": parts}))
    except ScenarioError as error:
        raise ScenarioError(error.faults, "--defense") from error


def _optuna() -> Any:
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as error:
        raise FedsimError("redteam: needs Optuna: pip install 'fedsim-flwr[redteam]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


__all__ = ["defense_name", "redteam"]
