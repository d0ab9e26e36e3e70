"""The VGG9 of the backdoor papers on CIFAR-10: eight convolutions, one linear layer, no normalisation.

Simonyan & Zisserman, ICLR 2015, 1409.1556, in the form that Wang et al., "Attack of the tails", NeurIPS 2020,
2007.05084, and the multi-metric filter's paper train: 64, 128, 256 × 2, 512 × 2, 512 × 2, pooled after each group.
"""

from __future__ import annotations

from torch import nn

from fedsim.data.examples import DataInfo
from fedsim.models.images import at_least, image_shape
from fedsim.models.mlp import outputs_of
from fedsim.registry import register

GROUPS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


SMALLEST = 32
"""Pixels of a side at the least."""


@register("model", "vgg9")
@at_least(SMALLEST)
def vgg9(info: DataInfo) -> nn.Module:
    """Eight 3 × 3 convolutions in five groups with pooling, then one linear layer; images of 32 × 32 pixels or more.

    Args:
        info: shape (C, H, W) of an image and number of classes.
    """
    channels, height, width = image_shape(info, "vgg9", SMALLEST)
    layers: list[nn.Module] = []
    for group in GROUPS:
        for out in group:
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (height // 32) * (width // 32), outputs_of(info)))
