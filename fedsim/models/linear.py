"""The linear model without a bias: the student of linear theory, whose inputs have mean 0.

Advani & Saxe, "High-dimensional dynamics of generalization error in neural networks", 2017, 1710.03667.
"""

from __future__ import annotations

from torch import nn

from fedsim.data.examples import DataInfo
from fedsim.models.mlp import inputs_of, outputs_of
from fedsim.registry import register


@register("model", "linear")
def linear(info: DataInfo) -> nn.Module:
    """One weight for each input and output, no bias.

    Args:
        info: shape of an input and number of classes.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs_of(info, "linear"), outputs_of(info), bias=False))


linear.takes = "numbers"  # type: ignore[attr-defined]
