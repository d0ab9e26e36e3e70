"""Mean and standard deviation of rows, accumulated in float64 block by block, so that no wide copy is made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedsim.blocks import exact, map_blocks, sum_blocks


def mean(rows: Tensor) -> Tensor:
    """(d,) float64 mean of (n, d) rows."""
    on_cpu = rows.device.type == "cpu"
    return torch.cat(map_blocks(lambda columns: exact(rows[:, columns]).mean(0), rows.shape[1], parallel=on_cpu))


def deviation(rows: Tensor, correction: int) -> Tensor:
    """(d,) float64 standard deviation of (n, d) rows, the sum of squares divided by n − correction."""

    def block(columns: slice) -> Tensor:
        piece = exact(rows[:, columns])
        return (piece - piece.mean(0)).square_().sum(0).div_(len(rows) - correction).sqrt_()

    return torch.cat(map_blocks(block, rows.shape[1], parallel=rows.device.type == "cpu"))


def centred_sum(function: Callable[[Tensor, slice], Tensor], rows: Tensor, center: Tensor) -> Tensor:
    """Σ over blocks of columns of ``function(rows − center, columns)``, the rows' block in float64."""
    total = sum_blocks(
        lambda columns: function(exact(rows[:, columns]) - center[columns], columns),
        rows.shape[1],
        parallel=rows.device.type == "cpu",
    )
    return torch.zeros(len(rows), dtype=torch.float64) if total is None else total


def centred_mix(weights: Tensor, rows: Tensor, center: Tensor) -> Tensor:
    """(d,) float64 Σ_i weights_i · (row_i − center)."""
    on_cpu = rows.device.type == "cpu"
    return torch.cat(
        map_blocks(
            lambda columns: weights @ (exact(rows[:, columns]) - center[columns]), rows.shape[1], parallel=on_cpu
        )
    )


def repeated(row: Tensor, rows: Tensor) -> Tensor:
    """A (d,) row in the place of each of these (f, d) rows, in their precision."""
    return row.to(dtype=rows.dtype).to(rows.device).expand_as(rows).clone()
