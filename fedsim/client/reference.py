"""The reference path: one client at a time in plain PyTorch. It defines what local training means.

The fast paths are held equal to this one by tests. It is itself the fastest for convolutions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from attacks.attack import LocalStep
from fedsim import rng
from fedsim.blocks import has_float64
from fedsim.client.chunk import scaled
from fedsim.client.hooks import HONEST, Hooks
from fedsim.client.job import Job, as_index, augment
from fedsim.client.memory import collect, restore
from fedsim.client.objective import Aside, References
from fedsim.client.per_example import combined_gradient
from fedsim.client.randomness import step_noise
from fedsim.client.replica import Replica


def train(
    replica: Replica,
    job: Job,
    vector: Tensor,
    hooks: Hooks,
    scale: float,
    proximal: float,
    references: References = (),
) -> tuple[Tensor, float]:
    """Train one client from ``vector`` (d + b,); its (d + b,) delta and its mean training loss."""
    workload = replica.workload
    replica.load(vector).train()
    hooks = hooks if job.compromised is not None else HONEST
    received = vector[: workload.layout.d]
    start = replica.flat.clone() if proximal else None
    proximal /= workload.objective.divisor(references)
    optimizer = workload.optimizer.build([replica.whole] if replica.one_vector else replica.parameters, scale)
    workload.objective.divide_decay(optimizer, references)
    if hasattr(optimizer, "use_streams"):
        optimizer.use_streams([step_noise(workload, job)])
    parameters = optimizer.param_groups[0]["params"]
    if workload.optimizer_state == "persist":
        restore(optimizer, parameters, [job.memory], replica.write if replica.one_vector else None)
    aside = Aside(job.present, references)
    order = as_index(job.order, workload.device)
    wide = torch.float64 if has_float64(workload.device) else torch.float32
    total = torch.zeros((), dtype=wide, device=workload.device)
    position = 0
    private = hasattr(workload.optimizer, "noisy_gradients")
    noisy = workload.optimizer.noisy_gradients(replica.module, workload.example_loss) if private else None
    noise = rng.normal_stream(workload.seed, "privacy.noise", round=job.round, client=job.client)
    with contextlib.nullcontext() if private else replica.randomness(job):
        for step, size in enumerate(job.sizes, start=1):
            chosen = order[position : position + size]
            position += size
            inputs = replica.batch(augment(workload, job.source.inputs.index_select(0, chosen), job))
            targets = workload.targets(job.source.targets.index_select(0, chosen))
            if getattr(workload.optimizer, "evaluates", False):
                pull = None if start is None else (start, proximal)
                attacked = partial(_attacked, hooks, _local_step(job, received, step)) if hooks.objectives else None
                total += _searched(replica, optimizer, (inputs, targets), aside, pull, attacked) * size
                if hooks.followers:
                    _after_step(replica, job, received, hooks, step)
                continue
            if noisy is not None:
                divisor = min(workload.batch_size, job.num_examples)
                replica.write(replica.gradient, noisy(inputs, targets, divisor, noise))
                loss = _told(replica, job, inputs, targets)
            elif workload.apart == "examples":
                loss = combined_gradient(replica, inputs, targets, aside)
            elif workload.objective.objectives > 1 and hasattr(optimizer, "backward"):
                with replica.autocast():
                    losses = workload.objective.losses(replica.module(inputs), inputs, targets)
                optimizer.backward(losses)
                loss = losses.sum()
            else:
                replica.gradient.zero_()
                with replica.autocast():
                    total_loss, loss = replica.objective(inputs, targets, aside)
                total_loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * size
            if hooks.objectives:
                _objective(replica, job, received, loss, hooks, step)
            if start is not None:
                replica.gradient.add_(replica.flat - start, alpha=proximal)
            if workload.clip_norm is not None:
                nn.utils.clip_grad_norm_(replica.parameters, workload.clip_norm)
            if workload.step_control is None:
                optimizer.step()
            else:
                _controlled(replica, optimizer, inputs)
            if hooks.followers:
                _after_step(replica, job, received, hooks, step)
    if hasattr(optimizer, "upload"):
        with torch.no_grad():
            for each in parameters:
                each.copy_(optimizer.upload(each))
    if hasattr(workload.optimizer, "diagnostics"):
        job.told = dict(*workload.optimizer.diagnostics(optimizer))
    if workload.optimizer_state == "persist":
        read = replica.read if replica.one_vector else (lambda value: value)
        job.memory = {}
        for i, each in enumerate(parameters):
            job.memory |= collect(optimizer.state[each], i, each.shape, read)
    return replica.delta(vector), float(total) / max(position, 1)


def _searched(
    replica: Replica,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    aside: Aside,
    pull: tuple[Tensor, float] | None,
    attacked: Callable[[Tensor, Tensor], Tensor] | None,
) -> Tensor:
    """A step of an optimizer that evaluates the batch's objective itself; the batch's mean loss before it.

    In evaluation mode: all evaluations of a step must be of one function.

    Args:
        replica: holds the model.
        optimizer: takes a closure without a backward.
        batch: inputs and targets.
        aside: what the objective needs beside them.
        pull: where the round began, and the weight of the proximal term.
        attacked: (objective, parameters (d,)) → what a malicious client minimises.
    """
    losses = []

    def closure() -> Tensor:
        total, loss = replica.objective(*batch, aside)
        losses.append(loss.detach())
        if attacked is not None:
            total = attacked(total, torch.cat([each.reshape(-1) for each in replica.parameters]))
        if pull is not None:
            apart = torch.cat([each.reshape(-1) for each in replica.parameters]) - replica.read(pull[0])
            total = total + 0.5 * pull[1] * apart.square().sum()
        return total

    with replica.evaluating():
        optimizer.step(closure)  # type: ignore[arg-type]
    return losses[0]


def _attacked(hooks: Hooks, at: LocalStep, total: Tensor, parameters: Tensor) -> Tensor:
    """The attacks' objective in place of a client's, each of what the one before left."""
    return hooks.total(total[None], parameters[None], at)[0]


def _told(replica: Replica, job: Job, inputs: Tensor, targets: Tensor) -> Tensor:
    """A batch's mean loss, as far as anybody asks for it."""
    workload, module = replica.workload, replica.module
    if not len(inputs) or (workload.secrecy == "server" and job.compromised is None):
        return replica.gradient.new_zeros(())
    with torch.no_grad():
        return workload.objective.mean_loss(module(inputs), targets)


@torch.no_grad()
def _controlled(replica: Replica, optimizer: torch.optim.Optimizer, inputs: Tensor) -> None:
    """A step, scaled by the step control."""
    before = replica.flat.clone()
    optimizer.step()
    step = replica.flat - before
    with replica.evaluating():
        scale = replica.workload.step_control.scale(replica.logits, before, step, inputs)
    replica.flat.copy_(scaled(before, step, replica.flat, scale))


def _objective(replica: Replica, job: Job, received: Tensor, loss: Tensor, hooks: Hooks, step: int) -> None:
    gradient = replica.read(replica.gradient)[None]
    hooks.objective(loss.detach()[None], replica.read(replica.flat)[None], gradient, _local_step(job, received, step))
    if replica.reordered:
        replica.write(replica.gradient, gradient[0])


def _after_step(replica: Replica, job: Job, received: Tensor, hooks: Hooks, step: int) -> None:
    parameters = replica.read(replica.flat)[None]
    hooks.after_step(parameters, _local_step(job, received, step))
    if replica.reordered:
        replica.write(replica.flat, parameters[0])


def _local_step(job: Job, received: Tensor, step: int) -> LocalStep:
    assert job.compromised is not None
    last = torch.tensor([step == job.steps], device=received.device)
    return LocalStep(received, step, last, (job.compromised,))
