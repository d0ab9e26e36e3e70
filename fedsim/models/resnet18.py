"""ResNet-18 with the stem for small images: one 3 × 3 convolution, no pooling; 11.2 million parameters.

Batch normalisation keeps statistics of each client's data, which federated averaging mixes badly; group normalisation
has the same number of parameters and keeps none.

He, Zhang, Ren & Sun, CVPR 2016, 1512.03385; group normalisation in federated learning: Hsieh et al., ICML 2020,
1910.00189.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fedsim.data.examples import DataInfo
from fedsim.errors import FedsimError
from fedsim.models.images import at_least, buffered, image_shape
from fedsim.models.mlp import outputs_of
from fedsim.registry import register

WIDTHS = (64, 128, 256, 512)


SMALLEST = 8
"""Pixels of a side at the least."""


@register("model", "resnet18")
@at_least(SMALLEST)
@buffered(lambda options: options.get("norm") == "batch")
def resnet18(
    info: DataInfo, *, norm: Literal["group", "batch"] = "group", groups: Annotated[int, Field(ge=1)] = 32
) -> nn.Module:
    """Four stages of two residual blocks; images of 8 × 8 pixels or more.

    Args:
        info: shape (C, H, W) of an image and number of classes.
        norm: normalisation after each convolution.
        groups: channels are normalised in this many groups (norm = "group"); divides 64.
    """
    channels, _, _ = image_shape(info, "resnet18", SMALLEST)
    if norm == "group" and WIDTHS[0] % groups:
        raise FedsimError(f"model 'resnet18': groups: given {groups}; accepted: a divisor of {WIDTHS[0]}")
    return ResNet(channels, outputs_of(info), 0 if norm == "batch" else groups)


class ResNet(nn.Module):
    """Stem, stages, mean over the image, linear head; ``groups`` = 0 is batch normalisation."""

    def __init__(self, channels: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = normalisation(WIDTHS[0], groups)
        blocks: list[nn.Module] = []
        before = WIDTHS[0]
        for width in WIDTHS:
            blocks += [Block(before, width, groups, 1 if width == before else 2), Block(width, width, groups, 1)]
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTHS[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(functional.relu(self.norm(self.conv(images))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class Block(nn.Module):
    """Two 3 × 3 convolutions and a way around them."""

    def __init__(self, before: int, width: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.norm1 = normalisation(width, groups)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = normalisation(width, groups)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), normalisation(width, groups))

    def forward(self, inputs: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(inputs)))))
        return functional.relu(inner + self.shortcut(inputs))


def normalisation(channels: int, groups: int) -> nn.Module:
    """Group normalisation, or batch normalisation for ``groups`` = 0."""
    return nn.GroupNorm(groups, channels) if groups else nn.BatchNorm2d(channels)
