"""The single-index model: one direction, and a Hermite polynomial of an input's length along it.

    f(x) = h_k(⟨θ, x⟩),    h_k = He_k / sqrt(k!)

Its parameters are the d numbers of θ. They start on the unit sphere, and the optimizers that walk there
(``normalized_sgd``, ``spherical_langevin``, ``spherical_sgd``; for even k ``even_sgd``, ``even_spherical_langevin``)
bring them back in each step. What a server makes of averages is shorter than 1: the first gradient of a later round is
taken there, and its step ends on the sphere.

Wei, Damian & Lee, ICLR 2026 (arXiv:2603.06028).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.data.examples import DataInfo
from fedsim.data.partition import known_info
from fedsim.data.planted import hermite
from fedsim.errors import Fault
from fedsim.models.mlp import inputs_of, outputs_of
from fedsim.optim.even_langevin import LARGEST
from fedsim.optim.langevin import normalized
from fedsim.registry import register

MEANS = ("normalized_sgd", "spherical_langevin")
"""Optimizers that send the mean of θ, and"""
EIGENVECTORS = ("even_sgd", "even_spherical_langevin")
"""those that send the top eigenvector of the mean of θθᵀ, of the same walks."""


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
    direction = nn.Linear(inputs_of(info, "single_index"), outputs_of(info), bias=False)
    with torch.no_grad():
        direction.weight.copy_(normalized(direction.weight.normal_()))
    return nn.Sequential(nn.Flatten(), direction, Hermite(exponent))


def _check(scenario: Any) -> Iterable[Fault]:
    """The estimate must be of the exponent's parity, and what it keeps must fit into memory."""
    name, exponent = scenario.client.optimizer.name, scenario.model.options["exponent"]
    if name in MEANS and exponent % 2 == 0:
        accepted = f"{_either(EIGENVECTORS)} with an even model.exponent: ±θ are alike, and a walk's mean goes to 0"
        yield Fault("/client.optimizer", name, accepted, ("model.exponent",))
    if name in EIGENVECTORS and exponent % 2:
        accepted = f"{_either(MEANS)} with an odd model.exponent: θ is not -θ, and θθᵀ does not tell them apart"
        yield Fault("/client.optimizer", name, accepted, ("model.exponent",))
    info = known_info(scenario)
    if name in EIGENVECTORS and info is not None and prod(info.shape) > LARGEST:
        accepted = f"inputs of at most {LARGEST} numbers with client.optimizer = '{name}', which keeps d × d of them"
        yield Fault("/data.dataset", scenario.data.dataset.model_dump(), accepted, ("client.optimizer",))


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(f"'{each}'" for each in names)


single_index.check, single_index.takes = _check, "numbers"  # type: ignore[attr-defined]
