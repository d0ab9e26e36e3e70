"""Dropout from a stream of its own; torch's layers draw from one global generator that all threads share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.client.job import Job
from fedsim.client.workload import Workload

GLOBAL = threading.Lock()
"""Held while a model runs that draws from torch's global generator in a way that no stream can replace."""

_FEATURES = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class StreamDropout(nn.Module):
    """Dropout whose mask comes from a given generator.

    Args:
        p: probability that a number (or, by channel, a whole channel) is dropped.
        channels: drop whole channels, as Dropout1d, 2d, 3d do.
    """

    def __init__(self, p: float, channels: bool) -> None:
        super().__init__()
        self.p, self.channels = p, channels
        self.generator: torch.Generator | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or not self.p:
            return inputs
        if self.p == 1.0:
            return inputs * 0.0
        shape = (*inputs.shape[:2], *(1 for _ in inputs.shape[2:])) if self.channels else inputs.shape
        uniform = torch.rand(shape, generator=self.generator, device=inputs.device, dtype=torch.float32)
        return inputs * (uniform >= self.p).to(inputs.dtype) / (1.0 - self.p)


def step_noise(workload: Workload, job: Job) -> torch.Generator:
    """The stream behind what a client's optimizer draws in a round."""
    purpose = "client.optimizer_noise"
    return rng.torch_stream(workload.seed, purpose, round=job.round, client=job.client, device=workload.device)


def replace_dropout(module: nn.Module) -> list[StreamDropout]:
    """Put :class:`StreamDropout` in place of torch's dropout layers, in place."""
    found = []
    for parent in module.modules():
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout or type(child) in _FEATURES:
                mine = StreamDropout(float(vars(child)["p"]), type(child) in _FEATURES)
                setattr(parent, name, mine)
                found.append(mine)
    return found


@contextlib.contextmanager
def seeded_globally(seed: int) -> Iterator[None]:
    """torch's global generator as after a seed, and as it was afterwards; one thread at a time."""
    with GLOBAL, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def uses_global_generator(module: nn.Module, inputs: Tensor) -> bool:
    """Whether a training pass draws from torch's global generator; the module's buffers may change."""
    with GLOBAL, torch.random.fork_rng(), torch.no_grad():
        before = torch.random.get_rng_state()
        module.train()(inputs)
        return not torch.equal(before, torch.random.get_rng_state())
