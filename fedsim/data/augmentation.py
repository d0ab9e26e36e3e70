"""Train-time augmentation: what is done to a mini-batch of images before each step.

Krizhevsky, Sutskever & Hinton, NeurIPS 2012 (flips, crops); He et al., CVPR 2016, 1512.03385 (padding 4 on CIFAR-10).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedsim.data.partition import known_info
from fedsim.errors import Fault
from fedsim.registry import register


class Augmentation:
    """Base of the augmentations of images (B, C, H, W)."""

    def apply(self, inputs: Tensor, generator: np.random.Generator) -> Tensor:
        """The batch as it is trained on; never changes its input."""
        raise NotImplementedError

    def check(self, scenario: Any) -> Iterable[Fault]:
        """A fault where the data set holds no images."""
        info = known_info(scenario)
        if info is not None and len(info.shape) != 3:
            accepted = f"images (C, H, W) to go with it; inputs are {info.shape}"
            yield Fault("name", getattr(self, "name", ""), accepted, ("data.dataset",))


@register("augmentation", "flip")
class Flip(Augmentation):
    """Mirrors an image left to right.

    Args:
        probability: that an image is mirrored.
    """

    probability: Annotated[float, Field(ge=0, le=1)] = 0.5

    def apply(self, inputs: Tensor, generator: np.random.Generator) -> Tensor:
        mirrored = torch.from_numpy(generator.random(len(inputs)) < self.probability).to(inputs.device)
        return torch.where(mirrored[:, None, None, None], inputs.flip(-1), inputs)


@register("augmentation", "crop")
class Crop(Augmentation):
    """Pads an image and cuts a piece of the old size out at a random place.

    Args:
        pad: pixels of zeros on each side.
    """

    pad: Annotated[int, Field(ge=1)] = 4

    def apply(self, inputs: Tensor, generator: np.random.Generator) -> Tensor:
        batch, _, height, width = inputs.shape
        places = torch.from_numpy(generator.integers(0, 2 * self.pad + 1, (2, batch))).to(inputs.device)
        padded = functional.pad(inputs, [self.pad] * 4)
        rows = places[0][:, None] + torch.arange(height, device=inputs.device)
        columns = places[1][:, None] + torch.arange(width, device=inputs.device)
        image = torch.arange(batch, device=inputs.device)[:, None, None]
        cut = padded[image, :, rows[:, :, None], columns[:, None, :]]
        return cut.permute(0, 3, 1, 2).contiguous()
