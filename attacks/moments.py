"""Mean and standard deviation of rows, accumulated in float64 block by block, so that no wide copy is made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedsim.blocks import exact, has_float64, map_blocks, sum_blocks


def mean(rows: Tensor) -> Tensor:
    """(d,) float64 mean of (n, d) rows."""
    return _by_coordinate(lambda piece, columns: piece.mean(0), rows)


def deviation(rows: Tensor, correction: int) -> Tensor:
    """(d,) float64 standard deviation of (n, d) rows, the sum of squares divided by n − correction."""

    def block(piece: Tensor, columns: slice) -> Tensor:
        return (piece - piece.mean(0)).square_().sum(0).div_(len(rows) - correction).sqrt_()

    return _by_coordinate(block, rows)


def centred_sum(function: Callable[[Tensor, slice], Tensor], rows: Tensor, center: Tensor) -> Tensor:
    """Σ over blocks of columns of ``function(rows − center, columns)``, the rows' block in float64."""
    total = sum_blocks(
        lambda columns: function(exact(rows[:, columns]) - center[columns], columns),
        *rows.shape,
        parallel=rows.device.type == "cpu",
    )
    return torch.zeros(len(rows), dtype=torch.float64) if total is None else total


def centred_mix(weights: Tensor, rows: Tensor, center: Tensor) -> Tensor:
    """(d,) float64 Σ_i weights_i · (row_i − center)."""
    return _by_coordinate(lambda piece, columns: weights @ (piece - center[columns]), rows)


def _by_coordinate(function: Callable[[Tensor, slice], Tensor], rows: Tensor) -> Tensor:
    """(d,) float64, block by block from float64 copies of the rows' blocks."""
    device = rows.device if has_float64(rows.device) else "cpu"
    result = torch.empty(rows.shape[1], dtype=torch.float64, device=device)

    def block(columns: slice) -> None:
        result[columns] = function(exact(rows[:, columns]), columns)

    map_blocks(block, *rows.shape, parallel=rows.device.type == "cpu")
    return result


def repeated(row: Tensor, rows: Tensor) -> Tensor:
    """A (d,) row in the place of each of these (f, d) rows, in their precision."""
    return row.to(dtype=rows.dtype).to(rows.device).expand_as(rows).clone()
