"""The multilayer perceptron.

McMahan et al., AISTATS 2017, 1602.05629, use two hidden layers of 200 on MNIST; one of 64 is enough for many studies.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from fedsim.data.examples import DataInfo
from fedsim.errors import FedsimError
from fedsim.registry import register

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}
Width = Annotated[int, Field(ge=1)]


@register("model", "mlp")
def mlp(
    info: DataInfo,
    *,
    hidden: list[Width] = [64],  # noqa: B006
    activation: Literal["relu", "tanh", "sigmoid", "gelu", "elu", "silu", "softplus"] = "relu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    weights: Literal["torch", "glorot"] = "torch",
) -> nn.Module:
    """Fully connected layers with an activation between them.

    Args:
        info: shape of an input and number of classes (one output for a regression).
        hidden: widths of the hidden layers; an empty list is a linear model.
        activation: between the layers.
        dropout: probability that a hidden unit is dropped in training.
        weights: how they are drawn: as PyTorch does, uniformly within 1/√inputs, biases alike; or Glorot & Bengio's
            uniform distribution (AISTATS 2010, eq. 16), within √(6/(inputs + outputs)), biases 0.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    widths = [inputs_of(info, "mlp"), *hidden]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(widths[-1], outputs_of(info)))
    if weights == "glorot":
        for each in layers:
            if isinstance(each, nn.Linear):
                nn.init.xavier_uniform_(each.weight)
                nn.init.zeros_(each.bias)
    return nn.Sequential(*layers)


@register("model", "logistic")
def logistic(info: DataInfo) -> nn.Module:
    """One linear layer: logistic regression, or linear regression where the target is a number.

    Args:
        info: shape of an input and number of classes.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs_of(info, "logistic"), outputs_of(info)))


mlp.takes = logistic.takes = "numbers"  # type: ignore[attr-defined]


def inputs_of(info: DataInfo, model: str) -> int:
    """Numbers of an input of this data set.

    Raises:
        FedsimError: it has none, but codes.
    """
    if info.vocabulary:
        given = f"codes of a vocabulary of {info.vocabulary}"
        raise FedsimError(f"model '{model}': given {given}; accepted: numbers (char_transformer takes codes)")
    return prod(info.shape)


def outputs_of(info: DataInfo) -> int:
    """Outputs of a model for this data set: its classes, or one number."""
    return info.num_classes or 1
