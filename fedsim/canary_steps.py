"""A canary example in DP-SGD: its gradient is s·L·C·u in every step, so that the clip cuts it wherever it is drawn.

The client with the fewest examples draws its Poisson batches, sums, clips and adds noise as in training; each step's
noisy gradient is a release. The gradients of all other examples are zero, and so is the canary's where it is absent.
Optimizer and server come after the noise, and are left out. A canary is in few of a large client's batches: the bound
is then far below the claim, which is the worst client's at that.

Nasr et al., "Tight Auditing of Differentially Private Machine Learning", USENIX Security 2023, arXiv 2302.07956.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim import rng
from fedsim.canary import DIMENSIONS, LOUDNESS, Probe, direction, subject
from fedsim.errors import FedsimError
from fedsim.federation import Federation, setting_of
from fedsim.optim.dp_sgd import DpSgd
from fedsim.privacy.local_steps import participation
from fedsim.privacy.mechanism import Setting


@dataclass
class NoisySteps:
    """A canary in DP-SGD.

    Args:
        part: the optimizer, set up.
        setting: the run.
        dimensions: the probe's parameters.
    """

    part: DpSgd
    setting: Setting
    dimensions: int

    def __post_init__(self) -> None:
        counts, _ = participation(self.setting)
        taking = [client for client, n in enumerate(self.setting.sizes) if n and counts[client]]
        if not taking:
            raise FedsimError(
                "audit: given a run that no client with examples takes part in; accepted: one that some do"
            )
        self.client = min(taking, key=lambda client: self.setting.sizes[client])
        self.count = int(self.setting.sizes[self.client])
        training = self.setting.client
        self.batch = training.batch_size
        self.rounds = int(counts[self.client])
        self.steps = training.steps or (training.epochs or 1) * -(-self.count // self.batch)
        self.module = Probe(self.dimensions)
        self.direction = direction(self.dimensions)
        self.marks = torch.zeros(self.count, 1, dtype=torch.float64)
        self.marks[-1] = 1.0

    @property
    def canary(self) -> str:
        return f"one example of client {self.client}, which holds {self.count} examples"

    @property
    def sampled(self) -> bool:
        return self.batch < self.count

    @cached_property
    def noise(self) -> NDArray[np.float64]:
        return np.full(self.rounds * self.steps, self.part.noise_multiplier)

    @cached_property
    def shift(self) -> NDArray[np.float64]:
        return np.ones(self.rounds * self.steps)

    def play(self, sign: float, seed: int) -> NDArray[np.float64]:
        self.module.raw = self.direction * (sign * LOUDNESS * self.part.clip)
        gradient = self.part.noisy_gradients(self.module, _no_loss)
        divisor = min(self.batch, self.count)
        seen = []
        for number in range(1, self.rounds + 1):
            key = {"round": number, "client": self.client}
            draws = rng.stream(seed, "client.shuffle", **key)
            noise = rng.normal_stream(seed, "privacy.noise", **key)
            order, sizes = self.part.batches(self.count, self.steps, self.batch, draws)
            for chosen in torch.split(torch.from_numpy(order), sizes):
                inputs = self.marks[chosen]
                seen.append(float(gradient(inputs, inputs[:, 0], divisor, noise) @ self.direction))
        return np.asarray(seen) * (divisor / self.part.clip)


def _no_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Nobody asks: the probe says itself what the gradients are."""
    raise AssertionError("the audit's probe has no loss")


@subject.register
def _(mechanism: DpSgd, federation: Federation) -> NoisySteps:
    setting = setting_of(federation.scenario, federation.shares.sizes)
    return NoisySteps(mechanism, setting, min(federation.layout.d, DIMENSIONS))


__all__ = ["NoisySteps"]
