"""LeNet-5, with the activations and pooling of today.

LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998.
"""

from __future__ import annotations

from torch import nn

from fedsim.data.examples import DataInfo
from fedsim.models.images import at_least, image_shape
from fedsim.models.mlp import outputs_of
from fedsim.registry import register

SMALLEST = 12
"""Pixels of a side at the least."""


@register("model", "lenet")
@at_least(SMALLEST)
def lenet(info: DataInfo) -> nn.Module:
    """LeNet-5 (6 and 16 channels, 120 and 84 units), ReLU, max pooling; images of 12 × 12 pixels or more.

    Images smaller than 32 × 32 are padded by 2, as the original does with its 28 × 28.

    Args:
        info: shape (C, H, W) of an image and number of classes.
    """
    channels, height, width = image_shape(info, "lenet", SMALLEST)
    pad = 2 if min(height, width) < 32 else 0
    rows, columns = (((side + 2 * pad - 4) // 2 - 4) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=pad),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * rows * columns, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, outputs_of(info)),
    )
