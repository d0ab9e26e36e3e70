"""A canary client in DP-FedAvg: its update is s·L·C·u, so that the clip cuts it wherever its client is drawn.

Cohorts are drawn as in the run, and rows go through the server's real stages. All other clients send zero. Where the
canary is absent (``add_or_remove``) its client sends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim import rng
from fedsim.canary import DIMENSIONS, LOUDNESS, Server, direction, subject
from fedsim.federation import Federation, make, setting_of
from fedsim.privacy.mechanism import Setting
from fedsim.updates import Layout, Updates
from strategies.defense import Defense
from strategies.dp_fedavg import DpFedAvg


class UpdateServer(Server):
    """Takes rows that are updates, of those who are in the cohort."""

    def average(self, server_round: int, rows: Tensor, clients: Sequence[int]) -> Tensor:
        """(d,) what the defenses release of the rows."""
        self.begin(server_round, self._vector)
        ones = torch.ones(len(rows), dtype=torch.float64)
        updates = Updates(rows, ones, list(clients), self._vector, layout=self.layout)
        self._vector = self._step(updates if len(rows) else self._no_rows(), self._contexts, talks=False)
        assert self.outcome.aggregate is not None
        return self.outcome.aggregate.update


@dataclass
class ClippedUpdates:
    """A canary client in DP-FedAvg.

    Args:
        part: the mechanism, set up; one of the defenses.
        setting: the run.
        defenses: the server's stages.
        optimizer, sampler: the server's.
        dimensions: the updates' length.
    """

    part: DpFedAvg
    setting: Setting
    defenses: Sequence[Defense]
    optimizer: Any
    sampler: Any
    dimensions: int

    def __post_init__(self) -> None:
        members = self.setting.sampler.options.get("clients", range(self.setting.clients))
        self.client = int(min(members, key=lambda client: self.setting.sizes[client]))
        self.layout = Layout((("x", (self.dimensions,)),))
        self.direction = direction(self.dimensions)
        self.divisor = float(self.part.divisor or self.per_round)

    @property
    def per_round(self) -> int:
        return self.setting.clients if self.setting.cohort is None else self.setting.cohort

    @property
    def canary(self) -> str:
        return f"client {self.client}, which holds {self.setting.sizes[self.client]} examples"

    @property
    def sampled(self) -> bool:
        return any(each.sampling_rate < 1 for each in self.part.publications(self.setting))

    @cached_property
    def noise(self) -> NDArray[np.float64]:
        return np.full(self.setting.rounds, self.part.noises(self.divisor)[0])

    @cached_property
    def shift(self) -> NDArray[np.float64]:
        return np.ones(self.setting.rounds)

    def play(self, sign: float, seed: int) -> NDArray[np.float64]:
        sizes = np.asarray(self.setting.sizes)
        server = UpdateServer(
            self.defenses, self.optimizer, self.sampler, layout=self.layout, sizes=sizes, per_round=self.per_round,
            seed=seed, dtype=torch.float64,
        )  # fmt: skip
        server._vector = torch.zeros(self.dimensions, dtype=torch.float64)
        place = next(i for i, each in enumerate(self.defenses) if each is self.part)
        seen = np.zeros(self.setting.rounds)
        for number in range(1, self.setting.rounds + 1):
            generator = rng.stream(seed, "server.sample", round=number)
            drawn = self.sampler.sample(number, sizes, self.per_round, generator)
            clients = sorted(int(each) for each in drawn if sign or each != self.client)
            clip = float(server.states[place].get("clip", self.part.clip))
            rows = torch.zeros(len(clients), self.dimensions, dtype=torch.float64)
            if self.client in clients:
                rows[clients.index(self.client)] = self.direction * (sign * LOUDNESS * clip)
            seen[number - 1] = float(server.average(number, rows, clients) @ self.direction) * self.divisor / clip
        return seen


@subject.register
def _(mechanism: DpFedAvg, federation: Federation) -> ClippedUpdates:
    scenario = federation.scenario
    parts = [make("defense", part) for part in scenario.server.defenses]
    return ClippedUpdates(
        mechanism,
        setting_of(scenario, federation.shares.sizes),
        [mechanism if isinstance(each, DpFedAvg) else each for each in parts],
        make("server_optimizer", scenario.server.optimizer),
        make("sampler", scenario.server.sampler),
        min(federation.layout.d, DIMENSIONS),
    )


__all__ = ["ClippedUpdates"]
