"""Gaussian noise in place of the update, or on top of it.

A malicious client sends N(0, s²) in each coordinate (``mode = "alone"``), or Δ + N(0, s²) (``"added"``).

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017,
arXiv:1703.02757.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Craft, attack


@attack("gaussian")
class Gaussian(Attack):
    """Random numbers, each client its own.

    Args:
        scale: s, standard deviation of each coordinate.
        mode: noise ``alone``, or ``added`` to the client's update.
    """

    cost = "f·d"

    scale: Annotated[float, Field(gt=0)] = 1.0
    mode: Literal["alone", "added"] = "alone"

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        noise = ctx.noise("gaussian") * self.scale
        return noise if self.mode == "alone" else rows + noise
