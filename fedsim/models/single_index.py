"""The single-index model: one direction, and a Hermite polynomial of an input's length along it.

    f(x) = h_k(⟨θ, x⟩),    h_k = He_k / sqrt(k!)

Its parameters are the d numbers of θ. They start on the unit sphere, and the optimizers that walk there
(``normalized_sgd``, ``spherical_langevin``, ``spherical_sgd``) bring them back in each step. What a server makes of
averages is shorter than 1: the first gradient of a later round is taken there, and its step ends on the sphere.

Wei, Damian & Lee, ICLR 2026 (arXiv:2603.06028).
"""

from __future__ import annotations

from math import prod
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.data.examples import DataInfo
from fedsim.data.planted import hermite
from fedsim.models.mlp import outputs_of
from fedsim.optim.langevin import normalized
from fedsim.registry import register


class Hermite(nn.Module):
    """h_k, number by number.

    Args:
        exponent: k.
    """

    def __init__(self, exponent: int) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, inputs: Tensor) -> Tensor:
        return hermite(self.exponent, inputs)

    def extra_repr(self) -> str:
        return f"exponent={self.exponent}"


@register("model", "single_index")
def single_index(info: DataInfo, *, exponent: Annotated[int, Field(ge=1)] = 3) -> nn.Module:
    """A Hermite polynomial of an input's product with a direction, which is all that is learned; it starts anywhere.

    Args:
        info: shape of an input and number of classes, each of which has a direction of its own.
        exponent: k, that of the data set ``planted``.
    """
    direction = nn.Linear(prod(info.shape), outputs_of(info), bias=False)
    with torch.no_grad():
        direction.weight.copy_(normalized(direction.weight.normal_()))
    return nn.Sequential(nn.Flatten(), direction, Hermite(exponent))
