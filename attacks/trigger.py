"""Triggers: what a backdoor stamps on an image.

A trigger sets some pixels of an image (C, H, W) to a value, in all channels; a part of a trigger (DBA) is a trigger
itself. Rows count from the top, columns from the left.

Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017, arXiv:1708.06733.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim import registry
from fedsim.data.partition import known_info
from fedsim.errors import Fault
from fedsim.registry import register

if TYPE_CHECKING:
    pass

trigger = partial(register, "trigger")

Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right"]
Position = Annotated[list[int], Field(min_length=2, max_length=2)]


class Trigger:
    """Base of all triggers: say which pixels, and their value."""

    cost: ClassVar[str] = ""
    """What it costs an image (C, H, W), for the catalogue."""
    sees: ClassVar[str] = ""
    """What it is made from, for the catalogue."""

    value: float | list[float]

    def pixels(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """(row, column) of every pixel that the trigger sets on an image of this shape (C, H, W)."""
        raise NotImplementedError

    def check(self, shape: Sequence[int]) -> Iterable[Fault]:
        """What about the trigger does not fit images of this shape (keys relative to the trigger)."""
        if len(shape) != 3:
            yield Fault(
                "name",
                getattr(self, "name", type(self).__name__),
                f"images (C, H, W) with it; inputs are {tuple(shape)}",
            )
            return
        channels, height, width = shape
        pixels = self.pixels(shape)
        if not pixels:
            yield Fault("name", getattr(self, "name", type(self).__name__), "one pixel or more")
        outside = [list(p) for p in pixels if not (0 <= p[0] < height and 0 <= p[1] < width)]
        if outside:
            accepted = f"pixels inside of the image, {height} rows by {width} columns; {outside[0]} is not"
            yield Fault(self.placed_by(), getattr(self, self.placed_by(), outside[0]), accepted)
        if isinstance(self.value, list) and len(self.value) != channels:
            yield Fault("value", self.value, f"one value, or one for each of {channels} channels")

    def placed_by(self) -> str:
        """The option to name where a pixel lies outside."""
        return "position"

    def stamp(self, inputs: Tensor, part: int = 0, parts: int = 1) -> Tensor:
        """A copy of the images (n, C, H, W) with the trigger, or with one of its parts, on each.

        A trigger of p pixels is cut in order into ``parts`` runs of equal length (the first p mod parts get one more).
        """
        stamped = inputs.clone()
        pixels = self.pixels(inputs.shape[1:])
        start, stop = (len(pixels) * part) // parts, (len(pixels) * (part + 1)) // parts
        chosen = pixels[start:stop]
        if chosen:
            rows = torch.tensor([row for row, _ in chosen], device=inputs.device)
            columns = torch.tensor([column for _, column in chosen], device=inputs.device)
            value = torch.as_tensor(self.value, dtype=inputs.dtype, device=inputs.device)
            stamped[:, :, rows, columns] = value[:, None] if value.ndim else value
        return stamped


class WholeImage(Trigger):
    """Base of triggers that change every pixel: say what becomes of the images."""

    value: ClassVar[float] = 0.0  # type: ignore[misc]

    def pixels(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        return [(row, column) for row in range(shape[1]) for column in range(shape[2])]

    def changed(self, inputs: Tensor) -> Tensor:
        """The images (n, C, H, W) as the whole trigger leaves them."""
        raise NotImplementedError

    def stamp(self, inputs: Tensor, part: int = 0, parts: int = 1) -> Tensor:
        changed = self.changed(inputs)
        if parts == 1:
            return changed
        height, width = inputs.shape[2:]
        pixels = torch.arange(height * width, device=inputs.device).view(height, width)
        size = height * width
        inside = (pixels >= size * part // parts) & (pixels < size * (part + 1) // parts)
        return torch.where(inside, changed, inputs)


@trigger("patch")
class Patch(Trigger):
    """A filled rectangle.

    Args:
        size: pixels of each side, or [rows, columns].
        corner: the corner of the image that it lies in.
        margin: pixels between it and the image's edges.
        position: [row, column] of its upper left pixel, in place of a corner.
        value: what its pixels are set to, one number or one a channel.
    """

    cost = "C·rows·columns"
    sees = "its options"

    size: Annotated[int, Field(ge=1)] | Position = 3
    corner: Corner = "bottom_right"
    margin: Annotated[int, Field(ge=0)] = 0
    position: Position | None = None
    value: float | list[float] = 1.0

    def pixels(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        _, height, width = shape
        rows, columns = (self.size, self.size) if isinstance(self.size, int) else self.size
        if self.position is not None:
            top, left = self.position
        else:
            top = self.margin if self.corner.startswith("top") else height - rows - self.margin
            left = self.margin if self.corner.endswith("left") else width - columns - self.margin
        return [(row, column) for row in range(top, top + rows) for column in range(left, left + columns)]

    def placed_by(self) -> str:
        return "size" if self.position is None else "position"


@trigger("pixels")
class Pixels(Trigger):
    """Single pixels, anywhere.

    Args:
        positions: [row, column] of each pixel; negative ones count from the lower right.
        value: what they are set to, one number or one a channel.
    """

    cost = "C·pixels"
    sees = "its options"

    positions: list[Position] = field(default_factory=lambda: [[-2, -2], [-2, -4], [-4, -2], [-3, -3]])
    value: float | list[float] = 1.0

    def pixels(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        _, height, width = shape
        return [(row + height * (row < 0), column + width * (column < 0)) for row, column in self.positions]

    def placed_by(self) -> str:
        return "positions"


@trigger("bars")
class Bars(Trigger):
    """Four bars of one pixel's height, in two rows and two columns: DBA's trigger, a bar for each of four attackers.

    Args:
        length: pixels of a bar (the paper's size; 4 on MNIST).
        gap: pixels between bars, to the right and downwards (2 on MNIST).
        position: [row, column] of the first pixel.
        value: what the pixels are set to, one number or one a channel.
    """

    cost = "4·C·length"
    sees = "its options"

    length: Annotated[int, Field(ge=1)] = 3
    gap: Annotated[int, Field(ge=0)] = 1
    position: Position = field(default_factory=lambda: [0, 0])
    value: float | list[float] = 1.0

    def pixels(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        top, left = self.position
        return [
            (top + down * (1 + self.gap), left + right * (self.length + self.gap) + column)
            for down in range(2)
            for right in range(2)
            for column in range(self.length)
        ]


def make_trigger(given: str | dict[str, Any]) -> Trigger:
    """The trigger behind a name or a table with ``name`` and options.

    Raises:
        ScenarioError: unknown names or options.
    """
    table = {"name": given} if isinstance(given, str) else dict(given)
    built: Trigger = registry.make("trigger", str(table.pop("name", "patch")), **table)
    return built


data_info = known_info
"""What the scenario's data set says of itself before it is read; None where it cannot."""
