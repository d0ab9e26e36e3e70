"""Training of a chunk of clients as one (k, d) tensor, whichever engine gives the gradients.

Clients are sorted by their number of steps, longest first, so that those still at work are a prefix of the rows.
In each step, neighbours whose batches have the same size go through the engine together: no batch is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from attacks.attack import Compromised, LocalStep
from fedsim.blocks import has_float64
from fedsim.client.apart import Apart, TakesApart
from fedsim.client.hooks import HONEST, Hooks
from fedsim.client.job import Job, as_index, augment
from fedsim.client.memory import collect, restore
from fedsim.client.objective import Aside, References
from fedsim.client.randomness import step_noise
from fedsim.client.searched import Batch, Searched
from fedsim.client.workload import Workload


class Engine(TakesApart, Protocol):
    """What gives the gradients of r clients at once; ``flat_inputs`` if it takes (r, B, features)."""

    flat_inputs: bool

    def views(self, rows: Tensor) -> Any:
        """Whatever the engine reads parameters from or writes gradients to, as views into (r, d) rows."""

    def gradient(self, weights: Any, gradients: Any, inputs: Tensor, targets: Tensor, aside: Aside) -> Tensor:
        """Write the gradients of the mean objectives; (r,) sums of the losses over each client's batch."""

    def logits(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """(r, B, …) outputs for (r, d) rows, differentiable."""


@dataclass(frozen=True)
class Run:
    """Rows ``start`` to ``stop`` in one step, all with batches of ``size``."""

    start: int
    stop: int
    size: int


def scaled(before: Tensor, step: Tensor, after: Tensor, scale: Tensor) -> Tensor:
    """Parameters after a step that a step control scales; those with the factor 1 stay bit for bit."""
    factor = scale.to(before)
    return torch.where(factor < 1, before + factor * step, after)


def rank(job: Job) -> tuple[int, int, int]:
    """Sort key of the clients in a chunk: most steps first, then the fuller last batch."""
    return (-job.steps, -(job.sizes[-1] if job.sizes else 0), job.client)


def runs(jobs: Sequence[Job]) -> list[list[Run]]:
    """For each step, the runs of neighbours whose batches have the same size; finished clients are left out."""
    found = []
    for step in range(jobs[0].steps):
        active = [job.sizes[step] for job in jobs if job.steps > step]
        start, here = 0, []
        for size, members in groupby(active):
            stop = start + len(list(members))
            here.append(Run(start, stop, size))
            start = stop
        found.append(here)
    return found


class Batches:
    """The batches of a chunk, step after step: all clients' examples of a step, gathered at once."""

    def __init__(self, workload: Workload, jobs: Sequence[Job], flat: bool) -> None:
        self.workload, self.jobs = workload, jobs
        self.source = jobs[0].source if all(job.source is jobs[0].source for job in jobs) else None
        pieces: list[Any] = []
        self.bounds = [0]
        cursors = [0] * len(jobs)
        for step in range(jobs[0].steps):
            total = 0
            for i, job in enumerate(jobs):
                if job.steps <= step:
                    break
                size = job.sizes[step]
                pieces.append(job.order[cursors[i] : cursors[i] + size])
                cursors[i] += size
                total += size
            self.bounds.append(self.bounds[-1] + total)
        self.index = as_index(np.concatenate(pieces), workload.device)
        self.plain = self.source is not None and not workload.augmentations
        self.flat = flat
        if self.source is not None:
            self.targets = workload.targets(self.source.targets.index_select(0, self.index))
        if self.plain and self.source is not None:
            inputs = self.source.inputs
            self.inputs = inputs.flatten(1) if flat else inputs
            largest = max(b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False))
            self.buffer = torch.empty((largest, *self.inputs.shape[1:]), dtype=inputs.dtype, device=inputs.device)

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs (N, …) and targets (N, …) of the clients at work, in the order of their rows."""
        start, stop = self.bounds[step : step + 2]
        index = self.index[start:stop]
        if self.plain:
            inputs = torch.index_select(self.inputs, 0, index, out=self.buffer[: stop - start])
            return self.workload.inputs(inputs), self.targets[start:stop]
        parts, targets, position = [], [], 0
        for job in self.jobs:
            if job.steps <= step:
                break
            own = index[position : position + job.sizes[step]]
            position += job.sizes[step]
            parts.append(augment(self.workload, job.source.inputs.index_select(0, own), job))
            targets.append(job.source.targets.index_select(0, own))
        inputs = self.workload.inputs(torch.cat(parts))
        return inputs.flatten(1) if self.flat else inputs, self.workload.targets(torch.cat(targets))


class Stepper:
    """A torch optimizer on the first rows of a (k, d) tensor; rows that are done leave it with their state.

    Args:
        part: the optimizer part.
        rows: (k, d) parameters.
        gradient: (k, d) gradients.
        scale: factor of the learning rate.
        streams: gives each row's stream of noise.
        jobs: of the rows.
        remembering: whether their optimizers' states are kept over rounds.
    """

    def __init__(
        self,
        part: Any,
        rows: Tensor,
        gradient: Tensor,
        scale: float,
        streams: Callable[[], list[torch.Generator]],
        jobs: Sequence[Job] = (),
        remembering: bool = False,
    ) -> None:
        self.part, self.rows, self.gradient, self.jobs, self.remembering = part, rows, gradient, jobs, remembering
        self.parameter = nn.Parameter(rows)
        self.parameter.grad = gradient
        self.optimizer: torch.optim.Optimizer = part.build([self.parameter], scale)
        if hasattr(self.optimizer, "use_streams"):
            self.optimizer.use_streams(streams())
        if remembering:
            restore(self.optimizer, [self.parameter], [job.memory for job in jobs])

    def step(self, active: int) -> None:
        if active < len(self.parameter):
            self._narrow(active)
        self.optimizer.step()

    def leave(self, active: int = 0) -> None:
        """Rows from ``active`` on are done: they become what their optimizer uploads, if not the last iterate."""
        if hasattr(self.optimizer, "upload"):
            self.rows[active : len(self.parameter)] = self.optimizer.upload(self.parameter)[active:]
        told = self.part.diagnostics(self.optimizer, self.parameter) if hasattr(self.part, "diagnostics") else []
        for i, job in enumerate(self.jobs[active : len(self.parameter)], start=active):
            job.told |= told[i] if told else {}
            if self.remembering:
                state = self.optimizer.state[self.parameter]
                job.memory = collect(state, 0, self.parameter.shape, lambda value, row=i: value[row])  # type: ignore[misc]

    def _narrow(self, active: int) -> None:
        self.leave(active)
        before, after = self.parameter, nn.Parameter(self.rows[:active])
        after.grad = self.gradient[:active]
        state = self.optimizer.state.pop(before, {})
        shape = before.shape
        self.optimizer.state[after] = {
            key: value[:active] if isinstance(value, Tensor) and value.shape[: len(shape)] == shape else value
            for key, value in state.items()
        }
        self.optimizer.param_groups[0]["params"] = [after]
        self.parameter = after


class Chunk:
    """k clients in training.

    Args:
        engine: what gives the gradients; this thread's own.
        workload: what is trained.
        jobs: the clients' work, sorted by :func:`rank`, one step each at least; all honest or all malicious.
        vector: (d,) received parameters.
        hooks: what the attacks do if the clients are malicious.
        scale: factor of the learning rate in this round.
        proximal: FedProx's mu.
        references: what the server told for each regularizer.
    """

    def __init__(
        self,
        engine: Engine,
        workload: Workload,
        jobs: Sequence[Job],
        vector: Tensor,
        hooks: Hooks,
        scale: float,
        proximal: float,
        references: References = (),
    ) -> None:
        self.engine, self.workload, self.jobs, self.vector = engine, workload, jobs, vector
        self.scale, self.proximal = scale, proximal / workload.objective.divisor(references)
        self.compromised: tuple[Compromised, ...] = tuple(
            job.compromised for job in jobs if job.compromised is not None
        )
        self.hooks = hooks if self.compromised else HONEST
        present = [job.present for job in jobs if job.present is not None]
        self.aside = Aside(torch.stack(present) if present else None, references)
        self.runs = runs(jobs)
        self.batches = Batches(workload, jobs, engine.flat_inputs)
        self.rows = torch.empty((len(jobs), len(vector)), dtype=vector.dtype, device=vector.device).copy_(vector)
        wide = torch.float64 if has_float64(vector.device) else torch.float32
        self.totals = torch.zeros(len(jobs), dtype=wide, device=vector.device)

    def train(self) -> tuple[Tensor, list[float]]:
        """(k, d) deltas and mean training losses, in the order of the jobs."""
        rate = self._plain_rate()
        if self.workload.searches:
            self._search()
        elif rate is None:
            self._with_optimizer()
        else:
            self._descend(rate)
        self.rows.sub_(self.vector)
        totals = self.totals.tolist()
        return self.rows, [total / len(job.order) for total, job in zip(totals, self.jobs, strict=True)]

    def _plain_rate(self) -> float | None:
        """The learning rate if steps can go straight into the weights."""
        plain = self.workload.clip_norm is None and not self.proximal and not self.hooks.objectives
        plain = plain and self.workload.objective.plain and self.workload.step_control is None
        if not plain or not hasattr(self.engine, "descend"):
            return None
        rate = getattr(self.workload.optimizer, "plain_rate", None)
        found: float | None = rate(self.scale) if rate is not None else None
        return found if self.workload.precision != "bfloat16" else None

    def _descend(self, rate: float) -> None:
        descend: Callable[..., Tensor] = self.engine.descend  # type: ignore[attr-defined]
        views: dict[Run, Any] = {}
        for step, here in enumerate(self.runs):
            inputs, targets, position = *self.batches.step(step), 0
            for run in here:
                if run not in views:
                    views[run] = self.engine.views(self.rows[run.start : run.stop])
                x, y, position = self._cut(inputs, targets, position, run)
                self.totals[run.start : run.stop] += descend(views[run], x, y, rate)
            self._after(step, here[-1].stop)

    def _with_optimizer(self) -> None:
        gradient = torch.zeros_like(self.rows)
        optimizer, streams = self.workload.optimizer, lambda: [step_noise(self.workload, job) for job in self.jobs]
        remembering = self.workload.optimizer_state == "persist"
        stepper = Stepper(optimizer, self.rows, gradient, self.scale, streams, self.jobs, remembering)
        self.workload.objective.divide_decay(stepper.optimizer, self.aside.references)
        apart = Apart(self.engine, self.workload, self.rows, gradient) if self.workload.apart else None
        sums = torch.zeros(len(self.jobs), dtype=self.rows.dtype, device=self.rows.device)
        views: dict[Run, Any] = {}
        for step, here in enumerate(self.runs):
            inputs, targets, position = *self.batches.step(step), 0
            seen: list[tuple[slice, Tensor]] = []
            for run in here:
                rows = slice(run.start, run.stop)
                if run not in views:
                    views[run] = (self.engine.views(self.rows[rows]), self.engine.views(gradient[rows]))
                x, y, position = self._cut(inputs, targets, position, run)
                weights, gradients = views[run]
                if apart is not None:
                    sums[rows] = apart.take(run.start, run.stop, x, y, self.aside)
                else:
                    sums[rows] = self.engine.gradient(weights, gradients, x, y, self.aside.rows(run.start, run.stop))
                seen.append((rows, x))
            active = here[-1].stop
            if apart is not None:
                apart.finish(stepper.optimizer, active)
            self.totals[:active] += sums[:active]
            self._shape(step, active, gradient[:active], sums[:active])
            if self.workload.step_control is None:
                stepper.step(active)
            else:
                before = self.rows[:active].clone()
                stepper.step(active)
                self._control(before, seen)
            self._after(step, active)
        stepper.leave()

    def _search(self) -> None:
        optimizer = self.workload.optimizer.build_rows([job.memory for job in self.jobs], self.vector.device)
        for step, here in enumerate(self.runs):
            inputs, targets, position = *self.batches.step(step), 0
            batches = []
            for run in here:
                x, y, position = self._cut(inputs, targets, position, run)
                batches.append(Batch(run.start, x, y))
            active = here[-1].stop
            further = self._further(step, active)
            searched = Searched(self.engine, batches, self.aside, self.rows.dtype, further)  # type: ignore[arg-type]
            self.rows[:active] = optimizer.step(searched, self.rows[:active])
            self.totals[:active] += searched.losses
            self._after(step, active)
        if self.workload.optimizer_state == "persist":
            for row, job in enumerate(self.jobs):
                job.memory = optimizer.memory(row)

    def _further(self, step: int, active: int) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """The attacks' objectives and the proximal term, for an optimizer that evaluates the objectives itself."""
        if not self.hooks.objectives and not self.proximal:
            return None
        at = self._local_step(step, active)

        def total(losses: Tensor, rows: Tensor, parameters: Tensor) -> Tensor:
            held = tuple(at.clients[row] for row in rows.tolist()) if at.clients else ()
            losses = self.hooks.total(losses, parameters, replace(at, last=at.last[rows], clients=held))
            if self.proximal:
                losses = losses + 0.5 * self.proximal * (parameters - self.vector).square().sum(1)
            return losses

        return total

    @torch.no_grad()
    def _control(self, before: Tensor, seen: Sequence[tuple[slice, Tensor]]) -> None:
        """Scale each client's step by its own factor, over its own batch."""
        for rows, inputs in seen:
            step = self.rows[rows] - before[rows]
            scale = self.workload.step_control.scale(self.engine.logits, before[rows], step, inputs, batch_dims=1)
            self.rows[rows] = scaled(before[rows], step, self.rows[rows], scale[:, None])

    def _cut(self, inputs: Tensor, targets: Tensor, position: int, run: Run) -> tuple[Tensor, Tensor, int]:
        """The run's part of a step's batch as (r, B, …)."""
        count, end = run.stop - run.start, position + (run.stop - run.start) * run.size
        x, y = inputs[position:end], targets[position:end]
        return x.view(count, run.size, *x.shape[1:]), y.view(count, run.size, *y.shape[1:]), end

    def _shape(self, step: int, active: int, gradient: Tensor, sums: Tensor) -> None:
        """Attack's objective, proximal term and clipping, on the gradients of the tasks' losses."""
        rows = self.rows[:active]
        if self.hooks.objectives:
            sizes = sums.new_tensor([job.sizes[step] for job in self.jobs[:active]])
            self.hooks.objective(sums / sizes, rows, gradient, self._local_step(step, active))
        if self.proximal:
            gradient.add_(rows - self.vector, alpha=self.proximal)
        if self.workload.clip_norm is not None:
            norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient.mul_((self.workload.clip_norm / (norms + 1e-6)).clamp_(max=1.0))

    def _after(self, step: int, active: int) -> None:
        if self.hooks.followers:
            self.hooks.after_step(self.rows[:active], self._local_step(step, active))

    def _local_step(self, step: int, active: int) -> LocalStep:
        last = torch.tensor([job.steps == step + 1 for job in self.jobs[:active]], device=self.vector.device)
        return LocalStep(self.vector, step + 1, last, self.compromised[:active])
