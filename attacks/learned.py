"""A trigger whose values are learnt: a patch that starts as noise and is optimised against the model.

The attack that uses it keeps the pattern and learns it anew in every round (:mod:`attacks.a3fl`); alone it is a patch
of uniform noise in [0, 1], drawn once by ``seed``.

Zhang et al., "A3FL: Adversarially Adaptive Backdoor Attacks to Federated Learning", NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attacks.trigger import Corner, Position, Trigger, make_trigger, trigger
from fedsim import rng


@trigger("learned")
class Learned(Trigger):
    """A patch with values of its own for every pixel and channel.

    Args:
        size: pixels of each side, or [rows, columns].
        corner: the corner of the image that it lies in.
        margin: pixels between it and the image's edges.
        position: [row, column] of its upper left pixel, in place of a corner.
        seed: the noise that it starts as.
    """

    cost = "C·rows·columns; learning it is the attack's"
    sees = "its options; what the attack learns from its data and model"

    value: ClassVar[float] = 0.0  # type: ignore[misc]

    size: Annotated[int, Field(ge=1)] | Position = 4
    corner: Corner = "bottom_right"
    margin: Annotated[int, Field(ge=0)] = 0
    position: Position | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    def pixels(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        place = {"size": self.size, "corner": self.corner, "margin": self.margin, "position": self.position}
        return make_trigger({"name": "patch", **place}).pixels(shape)

    def placed_by(self) -> str:
        return "size" if self.position is None else "position"

    def start(self, shape: Sequence[int]) -> Tensor:
        """(C, pixels) values that the pattern starts with on images of this shape (C, H, W)."""
        generator = rng.torch_stream(self.seed, "trigger.learned")
        return torch.rand((shape[0], len(self.pixels(shape))), generator=generator)

    def stamp(self, inputs: Tensor, part: int = 0, parts: int = 1) -> Tensor:
        return self.stamp_with(self.start(inputs.shape[1:]), inputs, part, parts)

    def stamp_with(self, pattern: Tensor, inputs: Tensor, part: int = 0, parts: int = 1) -> Tensor:
        """A copy of the images with this pattern (C, pixels), differentiable by the pattern."""
        pixels = self.pixels(inputs.shape[1:])
        chosen = slice(len(pixels) * part // parts, len(pixels) * (part + 1) // parts)
        rows = torch.tensor([row for row, _ in pixels[chosen]], dtype=torch.long, device=inputs.device)
        columns = torch.tensor([column for _, column in pixels[chosen]], dtype=torch.long, device=inputs.device)
        stamped = inputs.clone()
        stamped[:, :, rows, columns] = pattern[:, chosen].to(inputs).expand(len(inputs), -1, -1)
        return stamped
