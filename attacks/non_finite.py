"""Non-finite rows: what a broken or hostile client sends.

Every coordinate of a malicious row becomes NaN or infinity. A server that does not look averages it into the model.

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017,
arXiv:1703.02757 (arbitrary failures).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from attacks.attack import Attack, Craft, attack


@attack("non_finite")
class NonFinite(Attack):
    """NaN or infinity in every coordinate.

    Args:
        value: ``nan`` or ``inf``.
    """

    cost = "f·d"
    finite = False

    value: Literal["nan", "inf"] = "nan"

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        return torch.full_like(rows, float(self.value))
