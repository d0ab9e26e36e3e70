"""Learning-rate schedules over rounds: what the clients' learning rate is multiplied with.

Step and exponential decay as in torch.optim.lr_scheduler; cosine from Loshchilov & Hutter, "SGDR: Stochastic Gradient
Descent with Warm Restarts", ICLR 2017 (arXiv:1608.03983), without restarts; linear warm-up from Goyal et al.,
"Accurate, Large Minibatch SGD", 2017 (arXiv:1706.02677).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, ClassVar

from pydantic import Field

from fedsim.registry import register

lr_schedule = partial(register, "lr_schedule")

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@lr_schedule("constant")
class Constant:
    """The same rate in every round."""

    def factor(self, round: int, rounds: int) -> float:
        return 1.0


@lr_schedule("exponential")
class Exponential:
    """gamma^(round - 1).

    Args:
        gamma: factor of each round.
    """

    gamma: Annotated[float, Field(gt=0, le=1)] = 0.99

    def factor(self, round: int, rounds: int) -> float:
        return float(self.gamma ** (round - 1))


@lr_schedule("step")
class Step:
    """gamma^⌊(round - 1) / every⌋.

    Args:
        every: rounds between two drops.
        gamma: factor of each drop.
    """

    every: Count = 10
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1

    def factor(self, round: int, rounds: int) -> float:
        return float(self.gamma ** ((round - 1) // self.every))


@lr_schedule("cosine")
class Cosine:
    """Half a cosine from 1 in the first round to ``floor`` in the last.

    Args:
        floor: factor of the last round.
    """

    depends_on_rounds: ClassVar[bool] = True

    floor: Share = 0.0

    def factor(self, round: int, rounds: int) -> float:
        done = min(1.0, (round - 1) / max(1, rounds - 1))
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


@lr_schedule("warmup")
class Warmup:
    """Linear from 1 / warmup in the first round to 1, and 1 from then on.

    Args:
        warmup: rounds until the full rate.
    """

    warmup: Count = 5

    def factor(self, round: int, rounds: int) -> float:
        return min(1.0, round / self.warmup)
