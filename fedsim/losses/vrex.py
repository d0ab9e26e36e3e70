"""V-REx: the risks of the domains are the same.

The penalty is the variance of the domains' mean losses, mean_e (L_e − L̄)².

Krueger et al., "Out-of-distribution generalization via risk extrapolation", ICML 2021, arXiv 2003.00688.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def vrex_penalty(losses: Sequence[Tensor] | Tensor) -> Tensor:
    """The variance (over E, not E − 1) of the domains' losses, a scalar.

    Args:
        losses: L_e, one scalar for each domain, or (E,).
    """
    risks = losses if isinstance(losses, Tensor) else torch.stack(list(losses))
    return (risks - risks.mean()).square().mean()
