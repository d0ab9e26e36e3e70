"""The linear model without a bias: the student of linear theory, whose inputs have mean 0.

Advani & Saxe, "High-dimensional dynamics of generalization error in neural networks", 2017, 1710.03667.
"""

from __future__ import annotations

from math import prod

from torch import nn

from fedsim.data.examples import DataInfo
from fedsim.models.mlp import outputs_of
from fedsim.registry import register


@register("model", "linear")
def linear(info: DataInfo) -> nn.Module:
    """One weight for each input and output, no bias.

    Args:
        info: shape of an input and number of classes.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(info.shape), outputs_of(info), bias=False))
