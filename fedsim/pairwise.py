"""Manhattan distances between all rows of a matrix: Σ_k |x_ik − x_jk| as (n, n) float64.

The one distance that no Gram matrix gives, and the filter's bottleneck. On the CPU a numba kernel goes over tiles of
columns that stay in the cache, blocks of tiles on as many threads as there are cores; elsewhere torch does it in
blocks on the device. Sums have one fixed order: lanes in a tile, tiles in order, blocks in order. Therefore
neither the number of threads nor a kernel taken from numba's cache changes a bit.

float32 rows are subtracted in float32, and so are two absolute differences added, before they enter float64 sums: two
roundings, a relative error under 1.2e-7 at worst and about 1e-9 on data. Up to ``EXACT_COLUMNS`` columns, and for
float64 rows, everything is float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.blocks import exact_rows, sum_blocks

BLOCK = 1 << 13
EXACT_COLUMNS = 1 << 17


def manhattan(rows: Tensor) -> Tensor:
    """(n, n) float64 Manhattan distances between the rows of a (n, d) tensor, on the CPU."""
    if rows.device.type != "cpu":
        return _by_torch(rows)
    from fedsim.manhattan_kernel import add_distances

    n, d = rows.shape
    single = rows.dtype == torch.float32 and d > EXACT_COLUMNS and rows.stride(1) == 1

    def block(columns: slice) -> Tensor:
        values = rows[:, columns].detach() if single else exact_rows(rows, columns)
        upper = np.zeros((n, n))
        add_distances(values.numpy(), upper)
        return torch.from_numpy(upper)

    total = sum_blocks(block, n, d, columns=BLOCK)
    if total is None:
        return torch.zeros(n, n, dtype=torch.float64)
    if single and not bool(total.isfinite().all()):
        return _by_torch(rows)
    return total + total.T


def _by_torch(rows: Tensor) -> Tensor:
    """The same in float64 by torch, on the rows' device."""

    def block(columns: slice) -> Tensor:
        piece = exact_rows(rows, columns)
        return torch.stack([(piece - row).abs().sum(dim=1) for row in piece])

    total = sum_blocks(block, *rows.shape, parallel=rows.device.type == "cpu")
    return torch.zeros(len(rows), len(rows), dtype=torch.float64) if total is None else total.cpu()
