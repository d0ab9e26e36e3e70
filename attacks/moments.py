"""Mean and standard deviation of rows, accumulated in float64 block by block, so that no wide copy is made."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.blocks import exact, map_blocks


def mean(rows: Tensor) -> Tensor:
    """(d,) float64 mean of (n, d) rows."""
    on_cpu = rows.device.type == "cpu"
    return torch.cat(map_blocks(lambda columns: exact(rows[:, columns]).mean(0), rows.shape[1], parallel=on_cpu))


def deviation(rows: Tensor, correction: int) -> Tensor:
    """(d,) float64 standard deviation of (n, d) rows, the sum of squares divided by n − correction."""

    def block(columns: slice) -> Tensor:
        return exact(rows[:, columns]).std(0, correction=correction)

    return torch.cat(map_blocks(block, rows.shape[1], parallel=rows.device.type == "cpu"))


def repeated(row: Tensor, rows: Tensor) -> Tensor:
    """A (d,) row in the place of each of these (f, d) rows, in their precision."""
    return row.to(dtype=rows.dtype).to(rows.device).expand_as(rows).clone()
