"""A worker thread's own module: parameters in one vector, streams behind random layers, the fastest layout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.client.job import Job, as_index
from fedsim.client.objective import Aside, tap
from fedsim.client.randomness import replace_dropout, seeded_globally, uses_global_generator
from fedsim.client.workload import Workload
from fedsim.errors import FedsimError
from fedsim.functional import functional_call

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


class Replica:
    """A module whose parameters are views into ``flat`` (d,), its gradients into ``gradient`` (d,).

    With 2-d convolutions, inputs and kernels lie channels-last in memory, kernels in ``flat`` as well: an elementwise
    optimizer does not mind, and whatever leaves or enters goes through :meth:`read` and :meth:`write`.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.module = workload.fresh_module()
        self.dropouts = replace_dropout(self.module)
        pool_first(self.module)
        self._objective = workload.objective
        self._tap = tap(self._objective, self.module)
        self.channels_last = any(isinstance(each, _CONVOLUTIONS) for each in self.module.modules())
        self.flat = torch.empty(workload.layout.d, dtype=workload.dtype, device=workload.device)
        self.gradient = torch.zeros_like(self.flat)
        self.parameters = list(self.module.parameters())
        self._views = self._named(self.flat)
        gradients = self._named(self.gradient)
        for name, parameter in self.module.named_parameters():
            parameter.data = self._views[name]
            if parameter.requires_grad:
                parameter.grad = gradients[name]
        self.reordered = any(not view.is_contiguous() for view in self._views.values())
        self.whole = nn.Parameter(self.flat)
        self.whole.grad = self.gradient
        elementwise = workload.optimizer.row_wise or hasattr(workload.optimizer, "noisy_gradients")
        elementwise = elementwise and workload.apart != "objectives"
        self.one_vector = elementwise and all(each.requires_grad for each in self.parameters)
        self._global_draws: bool | None = None

    def _named(self, vector: Tensor) -> dict[str, Tensor]:
        """Each parameter as a view into a vector in this replica's own order."""
        views = {}
        for name, start, stop, shape in self.workload.layout.slices:
            if stop > len(vector):
                break
            piece = vector[start:stop]
            if self.channels_last and len(shape) == 4:
                out, channels, height, width = shape
                views[name] = piece.view(out, height, width, channels).permute(0, 3, 1, 2)
            else:
                views[name] = piece.view(shape)
        return views

    def read(self, vector: Tensor) -> Tensor:
        """A vector in this replica's own order as the (d,) that is exchanged; the same tensor if the orders agree."""
        if not self.reordered:
            return vector
        return torch.cat([view.reshape(-1) for view in self._named(vector).values()])

    def write(self, into: Tensor, exchanged: Tensor) -> None:
        """Copy a (d,) vector as it is exchanged into one in this replica's own order."""
        if not self.reordered:
            into.copy_(exchanged)
            return
        views = self._named(into)
        for name, start, stop, shape in self.workload.layout.slices:
            if name in views:
                views[name].copy_(exchanged[start:stop].view(shape))

    def load(self, vector: Tensor) -> nn.Module:
        """The module with a received (d + b,) vector in it."""
        position = self.workload.layout.d
        with torch.no_grad():
            self.write(self.flat, vector[:position])
            for buffer in self.module.buffers():
                part = vector[position : position + buffer.numel()].view(buffer.shape)
                buffer.copy_(part if buffer.is_floating_point() else part.round())
                position += buffer.numel()
        return self.module

    def delta(self, vector: Tensor) -> Tensor:
        """What the module's parameters and buffers are more than a (d + b,) vector, as a new one."""
        buffers = [each.detach().reshape(-1).to(self.flat.dtype) for each in self.module.buffers()]
        return torch.cat([self.read(self.flat), *buffers]).sub_(vector)

    def batch(self, inputs: Tensor) -> Tensor:
        """Inputs where and how the module wants them."""
        inputs = self.workload.inputs(inputs)
        if self.channels_last and inputs.ndim == 4:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def objective(self, inputs: Tensor, targets: Tensor, aside: Aside) -> tuple[Tensor, Tensor]:
        """What is minimised on a batch, and its part that is the loss."""
        outputs = self.module(inputs)
        if self._objective.objectives > 1:
            losses = self._objective.losses(outputs, inputs, targets)
            return losses.sum(), losses.sum()
        features = None if self._tap is None else self._tap.pop()
        return self._objective.total(outputs, features, targets, aside)

    def features(self) -> Tensor:
        """What the head was given in the last pass.

        Raises:
            FedsimError: the workload has no regularizers, for which it is kept.
        """
        if self._tap is None:
            raise FedsimError("no features are kept where the workload has no regularizers")
        return self._tap.pop()

    def logits(self, flat: Tensor, inputs: Tensor) -> Tensor:
        """Outputs for a (d,) vector in this replica's own order, differentiable by it."""
        outputs: Tensor = functional_call(self.module, self._named(flat), (inputs,))
        return outputs

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The module in evaluation mode: no statistics move, no random number is drawn."""
        self.module.eval()
        try:
            yield
        finally:
            self.module.train()

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where the workload asks for it."""
        if self.workload.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.workload.device).type, dtype=torch.bfloat16)

    def randomness(self, job: Job) -> AbstractContextManager[Any]:
        """The client's own stream behind whatever the module draws in training."""
        seed, key = self.workload.seed, {"round": job.round, "client": job.client}
        for each in self.dropouts:
            each.generator = rng.torch_stream(seed, "client.dropout_layer", device=self.workload.device, **key)
        if self._global_draws is None:
            before = [buffer.clone() for buffer in self.module.buffers()]
            inputs = job.source.inputs.index_select(0, as_index(job.order[: job.sizes[0]], self.workload.device))
            self._global_draws = uses_global_generator(self.module, self.batch(inputs))
            with torch.no_grad():
                for buffer, value in zip(self.module.buffers(), before, strict=True):
                    buffer.copy_(value)
        if not self._global_draws:
            return contextlib.nullcontext()
        return seeded_globally(rng.integer(seed, "client.global_generator", **key))


def pool_first(module: nn.Module) -> None:
    """Let max-pooling go before the ReLU in front of it, in place: the same bits on fewer numbers.

    Both keep the order of numbers, and where a window has nothing above zero neither passes a gradient.
    """
    for parent in module.modules():
        if type(parent) is not nn.Sequential:
            continue
        names = list(parent._modules)
        for first, second in pairwise(names):
            relu, pool = parent._modules[first], parent._modules[second]
            plain = type(relu) is nn.ReLU and type(pool) is nn.MaxPool2d and not pool.return_indices
            if plain and not any(each._forward_hooks or each._forward_pre_hooks for each in (relu, pool) if each):
                parent._modules[first], parent._modules[second] = pool, relu
