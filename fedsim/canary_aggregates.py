"""A canary behind any rule: what reclip is given is s·L·C·u, which its clip cuts to one side of the ball.

Nothing is known of what a rule makes of a record, and the claim holds for any rule: the worst one, which lets a single
record decide where the aggregate lies, stands for those in front. Where the canary is absent (``add_or_remove``) the
aggregate lies on the other side as well, at the distance 2C, which is what the claim counts as one record's
contribution there. The clip, the noise and what follows in the list are the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.canary import DIMENSIONS, LOUDNESS, direction, subject
from fedsim.canary_updates import UpdateServer
from fedsim.federation import Federation, make, setting_of
from fedsim.privacy.mechanism import Setting
from fedsim.updates import Layout
from strategies.defense import Defense
from strategies.reclip import Reclip


@dataclass
class ClippedAggregate:
    """A canary that decides the aggregate in front of reclip.

    Args:
        part: the mechanism, set up.
        setting: the run.
        defenses: the mechanism and what follows it.
        optimizer, sampler: the server's.
        dimensions: the aggregate's length.
    """

    part: Reclip
    setting: Setting
    defenses: Sequence[Defense]
    optimizer: Any
    sampler: Any
    dimensions: int

    def __post_init__(self) -> None:
        self.sampled = False
        self.direction = direction(self.dimensions)
        self.layout = Layout((("x", (self.dimensions,)),))

    @property
    def canary(self) -> str:
        return f"one {self.setting.privacy.unit} that decides on which side the aggregate in front of 'reclip' lies"

    @property
    def _replaced(self) -> bool:
        return self.setting.privacy.neighbours == "replace_one"

    @cached_property
    def noise(self) -> NDArray[np.float64]:
        (published,) = self.part.publications(self.setting)
        return np.full(self.setting.rounds, published.noise_multiplier)

    @cached_property
    def shift(self) -> NDArray[np.float64]:
        return np.ones(self.setting.rounds)

    def play(self, sign: float, seed: int) -> NDArray[np.float64]:
        server = UpdateServer(
            self.defenses, self.optimizer, self.sampler, layout=self.layout, sizes=np.ones(1), per_round=1, seed=seed,
            dtype=torch.float64,
        )  # fmt: skip
        server._vector = torch.zeros(self.dimensions, dtype=torch.float64)
        side, radius = (1.0 if sign > 0 else -1.0), self.part.radius
        row = (self.direction * (side * LOUDNESS * radius)).unsqueeze(0)
        rounds = range(1, self.setting.rounds + 1)
        seen = np.asarray([float(server.average(number, row, [0]) @ self.direction) / radius for number in rounds])
        return seen if self._replaced else (seen + 1) / 2


@subject.register
def _(mechanism: Reclip, federation: Federation) -> ClippedAggregate:
    scenario = federation.scenario
    parts = [make("defense", part) for part in scenario.server.defenses]
    place = next(i for i, each in enumerate(parts) if isinstance(each, Reclip))
    return ClippedAggregate(
        mechanism,
        setting_of(scenario, federation.shares.sizes),
        [mechanism, *parts[place + 1 :]],
        make("server_optimizer", scenario.server.optimizer),
        make("sampler", scenario.server.sampler),
        min(federation.layout.d, DIMENSIONS),
    )


__all__ = ["ClippedAggregate"]
