"""Factors on the clients' learning rate over the rounds of a run.

Each part's ``factor(round, rounds)`` multiplies the optimizer's learning rate; round counts from 1. A part that looks
at ``rounds`` says so (``depends_on_rounds``), since a run of it can't be continued with more rounds.

Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, arXiv:1608.03983 (cosine);
Goyal et al., "Accurate, Large Minibatch SGD", arXiv:1706.02677 (warm-up).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field

from fedsim.registry import register


@register("lr_schedule", "constant")
class Constant:
    """The same learning rate in every round."""

    def factor(self, round: int, rounds: int) -> float:
        return 1.0


@register("lr_schedule", "exponential")
class Exponential:
    """gamma^(round - 1).

    Args:
        gamma: factor from one round to the next.
    """

    gamma: Annotated[float, Field(gt=0, le=1)] = 0.998

    def factor(self, round: int, rounds: int) -> float:
        return float(self.gamma ** (round - 1))


@register("lr_schedule", "step")
class Step:
    """gamma to the number of milestones that are past.

    Args:
        milestones: rounds after which the learning rate falls.
        gamma: factor at each milestone.
    """

    milestones: list[int]
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1

    def factor(self, round: int, rounds: int) -> float:
        return float(self.gamma ** sum(round > milestone for milestone in self.milestones))


@register("lr_schedule", "cosine")
class Cosine:
    """From 1 in the first round down to ``floor`` in the last, along half a cosine.

    Args:
        floor: factor in the last round.
    """

    depends_on_rounds: ClassVar[bool] = True

    floor: Annotated[float, Field(ge=0, le=1)] = 0.0

    def factor(self, round: int, rounds: int) -> float:
        share = (round - 1) / max(1, rounds - 1)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * share)) / 2


@register("lr_schedule", "warm_up")
class WarmUp:
    """Linear from 1/rounds_up to 1 over the first rounds, then constant.

    Args:
        rounds_up: rounds until the full learning rate.
    """

    rounds_up: Annotated[int, Field(ge=1)] = 5

    def factor(self, round: int, rounds: int) -> float:
        return min(1.0, round / self.rounds_up)
