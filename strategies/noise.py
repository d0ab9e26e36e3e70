"""Gaussian noise of the server: one stream a part and round, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.defense import Round


def noisy(parameters: Tensor, deviation: float, ctx: Round) -> Tensor:
    """(d,) parameters + N(0, deviation²·I)."""
    if deviation <= 0:
        return parameters
    drawn = torch.randn(parameters.shape, generator=ctx.torch_stream("noise"), dtype=parameters.dtype)
    return parameters + deviation * drawn.to(parameters.device)
