"""A run: the round loop, and what it leaves behind.

A round is: configure → train (the adversary in between) → aggregate → evaluate → record.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim import notebook, registry, runtime
from fedsim.data.describe import labels_of, partition_table
from fedsim.data.examples import Shares
from fedsim.errors import Fault, ResumeError, ScenarioError
from fedsim.federation import Federation, build, key, named_arrays
from fedsim.flower import Flat, flatten
from fedsim.grids.adversarial import AdversarialGrid
from fedsim.measures import Evaluator, round_line
from fedsim.observers.watch import Watch
from fedsim.record import Recorder, write_bytes, write_json
from fedsim.remarks import remarks
from fedsim.resume import check_continues, refuse_occupied
from fedsim.scenario import Scenario
from fedsim.updates import Aggregate
from strategies.defense import overrides
from strategies.strategy import DefendedStrategy, Outcome

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("fedsim")

Progress = Callable[[dict[str, Any]], None]

SAMPLES = 8
"""Triggered images that a run keeps for its report."""
SHOWN = 200
"""Clients whose part of the data the report shows."""


@dataclass
class Result:
    """What a run found.

    Args:
        scenario: the resolved scenario.
        lines: one dict a round (round 0 is the initial model).
        client_lines: one dict a client and round.
        parameters: the final model, name → tensor.
        digest: sha256 of the final model and of the rounds without timings; equal for equal runs.
        notes: what a reader must know, e.g. that a defense never changed an aggregate.
        finished: False where the run was interrupted.
        folder: the run's folder, or None.
        key: the run's key.
        observations: what observers found out, one dict each.
    """

    scenario: Scenario
    lines: list[dict[str, Any]]
    client_lines: list[dict[str, Any]]
    parameters: dict[str, torch.Tensor]
    digest: str
    notes: list[str] = field(default_factory=list)
    finished: bool = True
    folder: Path | None = None
    key: str = ""
    observations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rounds(self) -> pd.DataFrame:
        """A frame with one row a round."""
        import pandas as pd

        return pd.DataFrame(self.lines)

    @property
    def clients(self) -> pd.DataFrame:
        """A frame with one row a client and round; scores in columns ``score.NAME``."""
        import pandas as pd

        flat = [
            {k: v for k, v in line.items() if k != "scores"} | {f"score.{k}": v for k, v in line["scores"].items()}
            for line in self.client_lines
        ]
        return pd.DataFrame(flat)

    def plot(self, ax: Any = None) -> Any:
        """Draw accuracy and attack success over the rounds; returns the matplotlib Axes."""
        return notebook.plot(self.lines, ax, self.scenario.title)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        facts = {"digest": f"{self.digest[:12]}…", **({} if self.folder is None else {"folder": str(self.folder)})}
        if not self.finished:
            facts["state"] = "interrupted"
        return notebook.as_html(self.scenario.title or "Run", self.lines, facts, self.notes)

    def __repr__(self) -> str:
        last = self.lines[-1] if self.lines else {}
        shown = [f"{name}={last[name]:.3f}" for name in ("accuracy", "asr") if last.get(name) is not None]
        return f"Result(rounds={last.get('round', 0)}, {', '.join(shown)}, digest={self.digest[:12]}…)"


def simulate(
    scenario: Scenario,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    grid: Grid | None = None,
    deployed: bool = False,
) -> Result:
    """Run a scenario.

    Args:
        scenario: what to run.
        out: the run's folder; None keeps everything in memory.
        resume: continue the run in ``out``, if there is one; a finished one is returned as it is.
        progress: called with each round's line.
        grid: a Flower grid whose nodes are there already; None makes the one that the scenario names.
        deployed: whether those nodes are others' machines, where noise comes from the operating system's entropy.

    Raises:
        ScenarioError: the scenario is a matrix, or claims a privacy that it does not give.
        ResumeError: ``out`` holds another run, or one that is not to be continued.
        DataMissing: the data set is not on this machine.
        RecordError: the folder cannot be written.
    """
    if scenario.matrix:
        raise ScenarioError(
            [Fault("matrix", list(scenario.matrix), "none in a single run; `fedsim bench FILE` runs a matrix")]
        )
    folder = None if out is None else Path(out)
    if folder is not None and not resume:
        refuse_occupied(folder)
    federation = build(scenario, deployed)
    keys = key(scenario, federation.dataset.fingerprint)
    watch = federation.watch()
    evaluator = federation.evaluator()
    strategy = federation.strategy(evaluator)
    inner = federation.engine() if grid is None else grid
    try:
        adversarial = federation.adversarial(inner, strategy)
        run = _Run(federation, strategy, adversarial, inner, evaluator, watch, keys, folder, progress)
        with runtime.one_thread():
            run.open(resume)
            run.play()
            return run.result()
    finally:
        evaluator.close()
        close = getattr(inner, "close", None)
        if grid is None and close is not None:
            close()


class _Run:
    def __init__(
        self,
        federation: Federation,
        strategy: Strategy,
        grid: AdversarialGrid,
        inner: Grid,
        evaluator: Evaluator,
        watch: Watch,
        keys: dict[str, Any],
        folder: Path | None,
        progress: Progress | None,
    ) -> None:
        self.federation, self.scenario = federation, federation.scenario
        self.strategy, self.grid, self.inner, self.evaluator = strategy, grid, inner, evaluator
        self.keys, self.folder, self.progress = keys, folder, progress
        self.arrays: ArrayRecord = Flat(federation.initial, federation.layout)
        self.triggered = federation.triggered()
        self.next_round = 0
        self.finished = False
        self.selects = isinstance(strategy, DefendedStrategy) and any(
            overrides(part, "select") for part in strategy.defenses
        )
        self.recorder = Recorder(None)
        self.watch = watch
        self._recording = 0.0

    def open(self, resume: bool) -> None:
        """Start the folder, or pick up the run in it."""
        if resume and self.folder is not None and (self.folder / "state.json").exists():
            check_continues(self.folder, self.keys, self.scenario)
            self.recorder, done, model, state = Recorder.resume(self.folder)
            self._check_memory(state, done)
            layout = self.federation.layout
            vector = layout.flatten({k: torch.from_numpy(np.array(v)) for k, v in model.items()}, self.federation.dtype)
            self.arrays = Flat(vector, layout)
            self.strategy.load_state_dict(state["strategy"])  # type: ignore[attr-defined]
            self.grid.load_state_dict(state["adversary"])
            if isinstance(state["clients"], dict) and hasattr(self.inner, "client_state"):
                self.inner.client_state.update(state["clients"])
            if self.watch:
                self.watch.load_state_dict(state["observers"])
            self.next_round = done + 1
        else:
            self.recorder = Recorder.start(self.folder)
        if self.folder is not None:
            described = {
                **self.keys,
                "title": self.scenario.title,
                "runtime": runtime.describe(),
                "engine": self.scenario.table()["engine"],
                **({"facts": self.federation.dataset.facts} if self.federation.dataset.facts else {}),
            }
            write_json(self.folder / "run.json", described)
            write_bytes(self.folder / "scenario.toml", self.scenario.toml().encode())
            self._describe_data()
            if self.federation.guarantee is not None:
                from fedsim.privacy import proof

                diagnostics = getattr(self.federation.estimator, "diagnostics", ())
                proven = proof.record(self.scenario, self.federation.guarantee, diagnostics)
                write_json(self.folder / "privacy.json", proven)

    @property
    def _remembered_elsewhere(self) -> str:
        """The parts whose memory lies on nodes that are not ours, where no checkpoint gets at it."""
        if self.scenario.guest or hasattr(self.inner, "client_state"):
            return ""
        names = [part.name for part in self.scenario.server.defenses if registry.get("defense", part.name).handlers]
        names += ["client.optimizer_state"] if self.scenario.client.optimizer_state == "persist" else []
        names += ["client.adapter"] if self.scenario.client.adapter is not None else []
        return ", ".join(names)

    def _check_memory(self, state: dict[str, Any], done: int) -> None:
        guarantee, trust = self.federation.guarantee, self.scenario.privacy.trust
        if guarantee and not guarantee.none and self.federation.deployed and trust != "central" and self._left(done):
            raise ResumeError(
                f"{self.folder}: given --resume with privacy.trust = '{trust}' in a deployment; accepted: a run from "
                "its start, since the clients would draw noise anew for a round that they may have sent already"
            )
        parts = self._remembered_elsewhere or (state["clients"] if isinstance(state["clients"], str) else "")
        if parts and self._left(done):
            raise ResumeError(
                f"{self.folder}: given --resume of a run with '{parts}'; accepted: a run from its start, since what "
                "this part keeps on the clients lies on Flower's own nodes, or the whole run on fedsim's engines"
            )

    def _left(self, done: int) -> bool:
        return done < self.scenario.rounds

    def play(self) -> None:
        """The rounds that are left."""
        with interruptible() as interrupted:
            if self.next_round == 0:
                self._measure_start()
                self.next_round = 1
            while self.next_round <= self.scenario.rounds and not interrupted.is_set():
                self._round(self.next_round)
                self.next_round += 1
        self.finished = self.next_round > self.scenario.rounds

    def _round(self, server_round: int) -> None:
        strategy, grid, timeout = self.strategy, self.grid, self.scenario.server.timeout
        grid.attacking, grid.acted = [], False
        began = time.perf_counter()
        config = ConfigRecord({"scale": self.federation.scale(server_round)})
        messages = strategy.configure_train(server_round, self.arrays, config, grid)
        replies = list(grid.send_and_receive(messages=messages, timeout=timeout))
        caught = self.watch.catch(server_round, self._vector(), replies, grid.client_of) if self.watch else None
        trained = time.perf_counter()
        arrays, _ = strategy.aggregate_train(server_round, replies)
        self.arrays = self.arrays if arrays is None else arrays
        aggregated = time.perf_counter()
        measured = self._evaluate(server_round)
        evaluated = time.perf_counter()
        outcome = strategy.outcome if isinstance(strategy, DefendedStrategy) else _guest_outcome(strategy, server_round)
        line, clients = round_line(outcome, grid.attacking, self.selects)
        line |= measured
        line["attack_acted"] = grid.acted
        line["epsilon"] = self._epsilon(server_round)
        line["seconds"] = {
            "train": trained - began,
            "aggregate": aggregated - trained,
            "evaluate": evaluated - aggregated,
            "record": self._recording,
        }
        if caught is not None:
            self.watch.show(caught, self._vector(), grid.attacking)
            line["seconds"]["observe"] = self.watch.seconds
            evaluated = time.perf_counter()
        self._record(line, clients)
        self._recording = time.perf_counter() - evaluated
        if self.progress is not None:
            self.progress(line)

    def _evaluate(self, server_round: int) -> dict[str, Any]:
        due = server_round % self.scenario.evaluate.every == 0 or server_round == self.scenario.rounds
        if not due:
            nothing = ["accuracy", "loss", "asr", "asr_low", "asr_high", "asr_eligible"]
            nothing += ["gradient_norm"] * self.scenario.evaluate.gradient_norm
            return dict.fromkeys([*nothing, *getattr(self.federation.source, "measures", ())])
        strategy, grid = self.strategy, self.grid
        messages = list(strategy.configure_evaluate(server_round, self.arrays, ConfigRecord(), grid))
        if messages:
            strategy.aggregate_evaluate(
                server_round, grid.send_and_receive(messages=messages, timeout=self.scenario.server.timeout)
            )
        if self.federation.adversary.learns:
            self.triggered = self.federation.triggered()
        return self._measured()

    def _measured(self) -> dict[str, Any]:
        vector, dataset = self._vector(), self.federation.dataset
        found = self.evaluator.measure(vector, dataset.test, self.triggered)
        if self.scenario.evaluate.gradient_norm:
            found["gradient_norm"] = self.evaluator.gradient_norm(vector, dataset.train, self.federation.shares)
        if hasattr(self.federation.source, "measure"):
            found |= self.federation.source.measure(self.federation.layout.views(vector))
        return found

    def _measure_start(self) -> None:
        line, _ = round_line(Outcome(0), [], self.selects)
        line |= self._measured()
        line |= {"attack_acted": False, "epsilon": self._epsilon(0), "seconds": {}}
        self._record(line, [])
        if self.progress is not None:
            self.progress(line)

    def _epsilon(self, server_round: int) -> float | None:
        """What is spent after a round; None where nothing is claimed."""
        guarantee = self.federation.guarantee
        return None if guarantee is None else guarantee.after(server_round)

    def _vector(self) -> torch.Tensor:
        return flatten(self.arrays, self.federation.layout, self.federation.dtype)

    def _record(self, line: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        states = getattr(self.inner, "client_state", {})
        held = {client: content for client, content in sorted(states.items()) if len(content)}
        state = {
            "strategy": self.strategy.state_dict(),  # type: ignore[attr-defined]
            "adversary": self.grid.state_dict(),
            "clients": self._remembered_elsewhere or held,
        }
        if self.watch:
            state["observers"] = self.watch.state_dict()
        self.recorder.write(line, clients, named_arrays(self._vector(), self.federation.layout), state)

    def result(self) -> Result:
        """What the run found so far, its summary written."""
        model = named_arrays(self._vector(), self.federation.layout)
        digest = self.recorder.digest(model)
        notes = remarks(self.recorder.rounds, self.scenario)
        guarantee = self.federation.guarantee
        if guarantee is not None and guarantee.none:
            notes.insert(0, f"Privacy: NONE, this run guarantees nothing to anybody: {guarantee.reasons[0]}.")
        notes += [f"Privacy: {remark}." for remark in guarantee.remarks] if guarantee is not None else []
        notes += self.watch.notes(self.finished)
        notes += [str(incident) for incident in getattr(self.inner, "incidents", [])]
        if self.folder is not None:
            summary = _summary(self.folder)
            summary |= {"key": self.keys["key"], "digest": digest, "rounds": self.next_round - 1}
            summary |= {"finished": self.finished, "notes": notes}
            write_json(self.folder / "summary.json", summary)
            for name, content in self.watch.files().items():
                write = write_bytes if isinstance(content, bytes) else write_json
                write(self.folder / name, content)
        parameters = {name: torch.from_numpy(array.copy()) for name, array in model.items()}
        return Result(
            self.scenario,
            self.recorder.rounds,
            self.recorder.clients,
            parameters,
            digest,
            notes,
            self.finished,
            self.folder,
            self.keys["key"],
            self.watch.observations,
        )

    def _describe_data(self) -> None:
        assert self.folder is not None
        dataset, shares = self.federation.dataset, self.federation.shares
        shown = min(SHOWN, len(shares))
        some = Shares(shares.indices[: shares.offsets[shown]], shares.offsets[: shown + 1])
        described = {"labels": labels_of(dataset), "clients": list(range(shown))}
        write_json(self.folder / "partition.json", described | {"counts": partition_table(dataset, some).tolist()})
        if self.triggered is not None and self.triggered.inputs.ndim == 4 and len(self.triggered):
            import io

            target = int(self.triggered.targets[0])
            eligible = dataset.test.take((dataset.test.targets != target).nonzero().flatten())
            paired = len(eligible) == len(self.triggered)
            content = io.BytesIO()
            np.savez(
                content,
                clean=(eligible.inputs if paired else self.triggered.inputs)[:SAMPLES].cpu().numpy(),
                triggered=self.triggered.inputs[:SAMPLES].cpu().numpy(),
                labels=(eligible.targets if paired else self.triggered.targets)[:SAMPLES].cpu().numpy(),
                target=np.array(target),
            )
            write_bytes(self.folder / "samples.npz", content.getvalue())


def _guest_outcome(strategy: Any, server_round: int) -> Outcome:
    """What a stock Flower strategy did, its weights unknown."""
    faults = [*sorted(strategy.faults.items()), *strategy.ignored]
    outcome = Outcome(server_round, list(strategy.cohort), [], faults, strategy.updates, acted=strategy.failure is None)
    if strategy.failure is not None:
        outcome.faults.append((-1, f"round skipped: {strategy.failure}"))
    elif strategy.updates is not None:
        updates = strategy.updates
        unknown = torch.full((len(updates),), torch.nan, dtype=torch.float64)
        outcome.aggregate = Aggregate(torch.zeros_like(updates.reference), unknown)
    return outcome


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    return dict(json.loads(path.read_text())) if path.exists() else {"floor": None}


_whole: ContextVar[bool] = ContextVar("whole", default=False)


@contextmanager
def whole_or_none() -> Iterator[None]:
    """Within it Ctrl-C ends at once, and no run gives a result that it cut off.

    For who makes one number of many runs: an unfinished one would pass for a finding, and the others would follow.

    Raises:
        KeyboardInterrupt: there was a Ctrl-C, even where what is within made another error of it, or nothing.
    """
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    heard = threading.current_thread() is threading.main_thread()

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        if not callable(before):
            raise KeyboardInterrupt
        before(number, frame)

    token = _whole.set(True)
    if heard:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        if heard:
            signal.signal(signal.SIGINT, before)
        _whole.reset(token)
        if asked.is_set():
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that the round is finished and recorded; a second one ends at once."""
    asked = threading.Event()
    if _whole.get() or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        log.warning("stopping after this round; Ctrl-C once more ends at once")

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


__all__ = ["Result", "interruptible", "simulate", "whole_or_none"]
