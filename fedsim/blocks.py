"""Sums over the columns of wide matrices, block by block, with bits that do not depend on the number of threads.

A block is computed by one thread with torch's own threads off, and the blocks' results are added in order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from fedsim import runtime

BLOCK = 1 << 14
"""Columns of one block: a float64 copy of 100 rows of it stays in the processor's cache hierarchy."""

SERIAL_BLOCKS = 4
"""Up to this many blocks handing them to threads costs more than it saves."""

_pools: dict[int, ThreadPoolExecutor] = {}
_inside = threading.local()
_making = threading.Lock()


def _in_pool() -> None:
    _inside.pool = True
    runtime.worker_thread()


def _pool(workers: int) -> ThreadPoolExecutor:
    with _making:
        if workers not in _pools:
            _pools[workers] = ThreadPoolExecutor(workers, thread_name_prefix="fedsim-sums", initializer=_in_pool)
        return _pools[workers]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)


def map_blocks(
    function: Callable[[slice], Tensor], d: int, block: int = BLOCK, *, parallel: bool = True
) -> list[Tensor]:
    """``function`` of every block of columns, in order of the blocks; each block is computed by one thread.

    Args:
        function: takes the block's slice of columns.
        d: number of columns.
        block: columns of one block.
        parallel: as many blocks at a time as there are cores; False where a device other than the CPU does the work.
    """
    pieces = [slice(start, min(start + block, d)) for start in range(0, d, block)]
    workers = runtime.cores()
    if not parallel or len(pieces) <= SERIAL_BLOCKS or workers == 1 or getattr(_inside, "pool", False):
        with runtime.one_thread():
            return [function(piece) for piece in pieces]
    return list(_pool(workers).map(function, pieces))


def sum_blocks(
    function: Callable[[slice], Tensor], d: int, block: int = BLOCK, *, parallel: bool = True
) -> Tensor | None:
    """The blocks' results added in order; None for d = 0."""
    total: Tensor | None = None
    for piece in map_blocks(function, d, block, parallel=parallel):
        total = piece if total is None else total + piece
    return total


def exact(block: Tensor) -> Tensor:
    """A block in float64, on its own device where that has float64, else on the CPU."""
    return (block.cpu() if block.device.type == "mps" else block).double()


def gram(rows: Tensor, center: Tensor | None = None) -> Tensor:
    """(n, n) float64 inner products of the rows of (n, d), taken off ``center`` (d,) where one is given."""

    def block(columns: slice) -> Tensor:
        piece = exact(rows[:, columns])
        if center is not None:
            piece = piece - exact(center[columns])
        return piece @ piece.T

    total = sum_blocks(block, rows.shape[1], parallel=rows.device.type == "cpu")
    return torch.zeros(len(rows), len(rows), dtype=torch.float64) if total is None else total.cpu()


CANCELLED = 1e-6
"""A squared distance below this share of the squares that it is the difference of is computed from differences."""


def squared_distances(
    gram: Tensor,
    rows: Callable[[Tensor, slice], Tensor],
    d: int,
    *,
    scale: Tensor | None = None,
    parallel: bool = True,
) -> Tensor:
    """(n, n) float64 squared Euclidean distances, accurate also between rows that nearly agree.

    G_ii + G_jj − 2 G_ij, and where that cancels the same of the rows' differences to one of them: rows that are
    close to each other form a group, whose first row is taken off the others, as often as it needs.

    Args:
        gram: (n, n) float64 inner products of the rows.
        rows: (positions, columns) -> float64 block of these rows.
        d: number of columns.
        scale: (n,) the squares that ``gram``'s diagonal was itself computed from, where larger than the diagonal.
        parallel: see :func:`map_blocks`.
    """
    squares = gram.diagonal()
    magnitude = squares if scale is None else torch.maximum(scale, squares)
    distances = (squares[:, None] + squares[None, :] - 2 * gram).clamp(min=0)
    distances.fill_diagonal_(0)
    close = distances < CANCELLED * (magnitude[:, None] + magnitude[None, :])
    for group in _groups(close.fill_diagonal_(False)):

        def differences(index: Tensor, columns: slice, group: Tensor = group) -> Tensor:
            return rows(group[1:][index], columns) - rows(group[:1], columns)

        def block(columns: slice, group: Tensor = group) -> Tensor:
            piece = rows(group[1:], columns) - rows(group[:1], columns)
            return piece @ piece.T

        inner = sum_blocks(block, d, parallel=parallel)
        if inner is None:
            continue
        inner = inner.cpu()
        exact_ones = torch.zeros(len(group), len(group), dtype=torch.float64)
        exact_ones[0, 1:] = exact_ones[1:, 0] = inner.diagonal()
        exact_ones[1:, 1:] = squared_distances(inner, differences, d, parallel=parallel)
        here = close[group[:, None], group[None, :]]
        distances[group[:, None], group[None, :]] = torch.where(
            here, exact_ones, distances[group[:, None], group[None, :]]
        )
    return distances


def _groups(close: Tensor) -> list[Tensor]:
    """Connected components with at least two rows, each ascending."""
    left = set(close.any(dim=1).nonzero().flatten().tolist())
    groups = []
    while left:
        reached, edge = set(), [min(left)]
        while edge:
            row = edge.pop()
            if row not in reached:
                reached.add(row)
                edge += close[row].nonzero().flatten().tolist()
        left -= reached
        groups.append(torch.tensor(sorted(reached), dtype=torch.long))
    return groups
