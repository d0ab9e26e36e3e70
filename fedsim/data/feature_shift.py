"""Feature shift: every client sees the same classes through a glass of its own.

Over an iid division, client i's images are rotated, noised or recoloured by a strength that is its own:

- ``rotation``: by an angle uniform in ±strength degrees;
- ``noise``: Gaussian noise of a standard deviation uniform in [0, strength] is added, then clipped to [0, 1];
- ``colour``: each channel is scaled by a gain uniform in 1 ± strength about its middle and shifted by an offset uniform
  in ±strength / 2, then clipped to [0, 1] (for grey images: contrast and brightness).

Li et al., "Federated learning on non-IID data silos", ICDE 2022, 2102.02079 (noise); Hendrycks & Dietterich, ICLR 2019,
1903.12261 (the corruptions).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedsim import rng
from fedsim.data.examples import DataInfo, Dataset, Examples, Shares
from fedsim.data.iid import Iid
from fedsim.data.partition import Partition
from fedsim.errors import Fault
from fedsim.registry import register


@register("partition", "feature_shift")
class FeatureShift(Partition):
    """An iid division in which each client's images are shifted in a way of its own.

    Args:
        shift: what happens to the images.
        strength: degrees for a rotation, standard deviation for noise, gain for colour; by default 45, 0.2 and 0.5.
        examples: examples that each client draws from the whole set, as in ``iid``; by default the set is dealt out.
    """

    shift: Literal["rotation", "noise", "colour"] = "rotation"
    strength: Annotated[float, Field(ge=0)] | None = None
    examples: Annotated[int, Field(ge=1)] | None = None
    images = True
    skew = "features"

    def __post_init__(self) -> None:
        self.shares_examples = self.examples is not None

    def faults(self, info: DataInfo, clients: int) -> Iterable[Fault]:
        yield from super().faults(info, clients)
        yield from (f for f in Iid(examples=self.examples).faults(info, clients) if f.key == "examples")

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        self.refuse(dataset, clients)
        return Iid(examples=self.examples).assign(dataset, clients, seed)

    def view(self, examples: Examples, client: int, seed: int) -> Examples:
        strength = (
            {"rotation": 45.0, "noise": 0.2, "colour": 0.5}[self.shift] if self.strength is None else self.strength
        )
        draw = rng.stream(seed, f"partition.feature_shift.{self.shift}", client=client)
        inputs = examples.inputs
        if self.shift == "rotation":
            return Examples(rotate(inputs, draw.uniform(-strength, strength)), examples.targets)
        if self.shift == "noise":
            generator = rng.torch_stream(seed, "partition.feature_shift.pixels", client=client)
            noise = torch.randn(inputs.shape, generator=generator).to(inputs) * draw.uniform(0, strength)
            return Examples((inputs + noise).clamp_(0, 1), examples.targets)
        channels = (inputs.shape[1], 1, 1)
        gain = torch.from_numpy(draw.uniform(1 - strength, 1 + strength, channels)).to(inputs)
        offset = torch.from_numpy(draw.uniform(-strength / 2, strength / 2, channels)).to(inputs)
        return Examples(((inputs - 0.5) * gain + 0.5 + offset).clamp_(0, 1), examples.targets)


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Images (n, C, H, W) turned counter-clockwise about their centre, bilinear, zeros where nothing was."""
    if not len(images):
        return images
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]).to(images)
    grid = functional.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
