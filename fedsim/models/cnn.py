"""The convolutional network of the speed benchmark: small, two 5 × 5 convolutions, 46,730 parameters on 28 × 28 × 1.

The two-convolution network of McMahan et al., AISTATS 2017, 1602.05629, reduced to 16 and 32 channels.
"""

from __future__ import annotations

from torch import nn

from fedsim.data.examples import DataInfo
from fedsim.models.images import at_least, image_shape
from fedsim.models.mlp import Width, outputs_of
from fedsim.registry import register

SMALLEST = 16
"""Pixels of a side at the least."""


@register("model", "cnn")
@at_least(SMALLEST)
def cnn(info: DataInfo, *, width: Width = 16, hidden: Width = 64) -> nn.Module:
    """Two 5 × 5 convolutions with pooling, then two linear layers; images of 16 × 16 pixels or more.

    Args:
        info: shape (C, H, W) of an image and number of classes.
        width: channels of the first convolution; the second has twice as many.
        hidden: width of the hidden linear layer.
    """
    channels, height, breadth = image_shape(info, "cnn", SMALLEST)
    features = 2 * width * reduced(height) * reduced(breadth)
    return nn.Sequential(
        nn.Conv2d(channels, width, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs_of(info)),
    )


def reduced(size: int) -> int:
    """Pixels that are left of a side after two 5 × 5 convolutions, each halved by pooling."""
    return ((size - 4) // 2 - 4) // 2
