"""Manhattan distances between all rows of a matrix: Σ_k |x_ik − x_jk| as (n, n) float64.

The one distance that no Gram matrix gives, and the filter's bottleneck. On the CPU a numba kernel goes over tiles of
columns that stay in the cache; elsewhere torch does, in blocks, on the device. Sums have one fixed order: 16 lanes in
a tile, tiles in order, blocks of tiles in order. Therefore neither the number of threads nor a kernel taken from
numba's cache changes a bit, and the compiler may use vectors of any width without reordering anything.

float32 rows are subtracted in float32 and each tile is summed in float32 lanes (relative error under 1e-7) where
there are more than ``EXACT_COLUMNS`` columns; everything else is float64 throughout.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.blocks import exact, sum_blocks

TILE = 2048
"""Columns of one tile: with float32 8 KiB a row."""
BLOCK = 16 * TILE
EXACT_COLUMNS = 4096
_compiling = threading.Lock()


def manhattan(rows: Tensor) -> Tensor:
    """(n, n) float64 Manhattan distances between the rows of a (n, d) float32 or float64 tensor, on the CPU."""
    n, d = rows.shape
    if rows.device.type != "cpu":
        total = sum_blocks(lambda columns: _on_device(rows[:, columns]), d, parallel=False)
        return torch.zeros(n, n, dtype=torch.float64) if total is None else total.cpu()
    if rows.dtype not in (torch.float32, torch.float64) or d <= EXACT_COLUMNS:
        rows = rows.double()
    if rows.stride(1) != 1 and d > 1:
        rows = rows.contiguous()
    values = rows.detach().numpy()
    kernel = _kernel()

    def block(columns: slice) -> Tensor:
        partial = np.zeros((n, n))
        kernel(values[:, columns], partial)
        return torch.from_numpy(partial)

    total = sum_blocks(block, d, BLOCK)
    upper = torch.zeros(n, n, dtype=torch.float64) if total is None else total
    return upper + upper.T


def _on_device(block: Tensor) -> Tensor:
    block = exact(block)
    return torch.stack([(block - row).abs().sum(dim=1) for row in block])


@cache
def _kernel() -> Callable[[NDArray[Any], NDArray[np.float64]], None]:
    with _compiling:
        from fedsim.manhattan_kernel import add_distances

        return add_distances
