"""Oversized rows: finite, but so large that a sum of squares overflows.

Every coordinate of a malicious row becomes the same large number, 1e30.

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017,
arXiv:1703.02757 (arbitrary failures).
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.attack import Attack, Craft, attack


@attack("oversized")
class Oversized(Attack):
    """A huge number in every coordinate.

    Args:
        value: the number.
    """

    cost = "f·d"

    value: float = 1e30

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        return torch.full_like(rows, self.value)
