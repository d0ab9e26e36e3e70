"""The reference path: one client at a time in plain PyTorch. It defines what local training means.

Each worker thread has a replica of the module; its parameters are views into one vector, so that a row-wise
optimizer steps the vector. The fast paths are held equal to this one by tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from attacks.attack import LocalStep
from fedsim import rng
from fedsim.client.hooks import Hooks
from fedsim.client.job import Job, as_index, augment
from fedsim.client.randomness import GLOBAL, replace_dropout, uses_global_generator
from fedsim.client.task import mean_loss
from fedsim.client.workload import Workload

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


class Replica:
    """One thread's own module, its parameters views into the vector ``flat`` (d,), its gradients into ``gradient``."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.module = workload.fresh_module()
        self.dropouts = replace_dropout(self.module)
        layout = workload.layout
        self.flat = torch.empty(layout.d, dtype=workload.dtype, device=workload.device)
        self.gradient = torch.zeros_like(self.flat)
        self.parameters = list(self.module.parameters())
        named = dict(self.module.named_parameters())
        gradients = layout.views(self.gradient)
        for name, view in layout.views(self.flat).items():
            named[name].data = view
            if named[name].requires_grad:
                named[name].grad = gradients[name]
        self.whole = nn.Parameter(self.flat)
        self.whole.grad = self.gradient
        self.channels_last = any(isinstance(each, _CONVOLUTIONS) for each in self.module.modules())
        self.one_vector = workload.optimizer.row_wise and all(each.requires_grad for each in self.parameters)
        self._global_draws: bool | None = None

    def load(self, vector: Tensor) -> nn.Module:
        """The module with a received (d + b,) vector in it."""
        d = self.workload.layout.d
        with torch.no_grad():
            self.flat.copy_(vector[:d])
            position = d
            for buffer in self.module.buffers():
                part = vector[position : position + buffer.numel()].view(buffer.shape)
                buffer.copy_(part if buffer.is_floating_point() else part.round())
                position += buffer.numel()
        return self.module

    def vector(self) -> Tensor:
        """The module's parameters and buffers as a new (d + b,) vector."""
        return torch.cat(
            [self.flat, *(each.detach().reshape(-1).to(self.flat.dtype) for each in self.module.buffers())]
        )

    def batch(self, inputs: Tensor) -> Tensor:
        inputs = self.workload.inputs(inputs)
        if self.channels_last and inputs.ndim == 4:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def autocast(self) -> AbstractContextManager[Any]:
        if self.workload.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.workload.device).type, dtype=torch.bfloat16)

    def randomness(self, job: Job, inputs: Tensor) -> AbstractContextManager[Any]:
        """The client's own stream behind whatever the model draws."""
        seed, key = self.workload.seed, {"round": job.round, "client": job.client}
        for each in self.dropouts:
            each.generator = rng.torch_stream(seed, "client.dropout_layer", device=self.workload.device, **key)
        if self._global_draws is None:
            before = [buffer.clone() for buffer in self.module.buffers()]
            self._global_draws = uses_global_generator(self.module, inputs)
            with torch.no_grad():
                for buffer, value in zip(self.module.buffers(), before, strict=True):
                    buffer.copy_(value)
        if not self._global_draws:
            return contextlib.nullcontext()
        return _seeded_globally(rng.integer(seed, "client.global_generator", **key))


def train(
    replica: Replica, job: Job, vector: Tensor, hooks: Hooks, scale: float, proximal: float
) -> tuple[Tensor, float]:
    """Train one client from ``vector``; its (d + b,) delta and its mean training loss."""
    workload, module = replica.workload, replica.load(vector).train()
    received = vector[: workload.layout.d]
    optimizer = workload.optimizer.build([replica.whole] if replica.one_vector else replica.parameters, scale)
    order = as_index(job.order, workload.device)
    first = replica.batch(job.source.inputs[order[: job.sizes[0]]])
    total = torch.zeros((), dtype=torch.float64, device=workload.device)
    position = 0
    with replica.randomness(job, first):
        for step, size in enumerate(job.sizes, start=1):
            chosen = order[position : position + size]
            position += size
            inputs = replica.batch(augment(workload, job.source.inputs[chosen], job))
            targets = workload.targets(job.source.targets[chosen])
            replica.gradient.zero_()
            with replica.autocast():
                loss = mean_loss(module(inputs), targets, workload.num_classes)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * size
            shape_gradient(replica, job, received, loss, hooks, step, proximal)
            optimizer.step()
            if job.compromised is not None and hooks:
                hooks.after_step(replica.flat[None], _local_step(job, received, step))
    return replica.vector().sub_(vector), float(total) / position


def shape_gradient(
    replica: Replica, job: Job, received: Tensor, loss: Tensor, hooks: Hooks, step: int, proximal: float
) -> None:
    """Attack's objective, proximal term and clipping, on the gradient of the task's loss."""
    if job.compromised is not None:
        hooks.objective(
            loss.detach()[None], replica.flat[None], replica.gradient[None], _local_step(job, received, step)
        )
    if proximal:
        replica.gradient.add_(replica.flat - received, alpha=proximal)
    if replica.workload.clip_norm is not None:
        nn.utils.clip_grad_norm_(replica.parameters, replica.workload.clip_norm)


def _local_step(job: Job, received: Tensor, step: int) -> LocalStep:
    clients: Sequence[Any] = (job.compromised,)
    return LocalStep(received, step, torch.tensor([step == job.steps], device=received.device), tuple(clients))


@contextlib.contextmanager
def _seeded_globally(seed: int) -> Any:
    with GLOBAL, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
