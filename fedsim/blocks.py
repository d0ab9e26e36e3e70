"""Sums over the columns of wide matrices, block by block, with bits that do not depend on the number of threads.

A block is computed by one thread with torch's own threads off, a run of blocks is added in order, and so are the runs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from fedsim import runtime

BLOCK_NUMBERS = 1 << 18
"""Numbers of one block: 2 MiB in float64, which stay in a core's cache."""

RUN = 8
"""Blocks that are handed to a thread at once."""

SERIAL_NUMBERS = 1 << 21
"""Up to this many numbers handing blocks to threads costs more than it saves."""

_pools: dict[int, ThreadPoolExecutor] = {}
_making = threading.Lock()
_thread = threading.local()
T = TypeVar("T")


def _in_pool() -> None:
    _thread.pool = True
    runtime.worker_thread()


def _pool(workers: int) -> ThreadPoolExecutor:
    with _making:
        if workers not in _pools:
            _pools[workers] = ThreadPoolExecutor(workers, thread_name_prefix="fedsim-sums", initializer=_in_pool)
        return _pools[workers]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)


def width(n: int) -> int:
    """Columns of a block of n rows: a power of two that depends on nothing else, so that sums have one order."""
    return 1 << max((BLOCK_NUMBERS // max(n, 1)).bit_length() - 1, 8)


def _for_runs(work: Callable[[list[slice]], T], n: int, d: int, columns: int | None, parallel: bool) -> Iterable[T]:
    step = columns or width(n)
    pieces = [slice(start, min(start + step, d)) for start in range(0, d, step)]
    runs = [pieces[first : first + RUN] for first in range(0, len(pieces), RUN)]
    workers = runtime.cores()
    serial = not parallel or workers == 1 or n * d <= SERIAL_NUMBERS or getattr(_thread, "pool", False)
    if not serial:
        return _pool(workers).map(work, runs)
    with runtime.one_thread():
        return [work(run) for run in runs]


def map_blocks(
    function: Callable[[slice], object], n: int, d: int, *, columns: int | None = None, parallel: bool = True
) -> None:
    """Call ``function`` with the slice of columns of every block; each block is computed by one thread.

    Args:
        function: works on a block, and writes its result where no other block does.
        n: rows.
        d: columns.
        columns: of one block; :func:`width` if absent.
        parallel: on as many threads as there are cores; False where a device other than the CPU does the work.
    """

    def work(run: list[slice]) -> None:
        for piece in run:
            function(piece)

    for _ in _for_runs(work, n, d, columns, parallel):
        pass


def sum_blocks(
    function: Callable[[slice], Tensor], n: int, d: int, *, columns: int | None = None, parallel: bool = True
) -> Tensor | None:
    """The sum of ``function`` over all blocks, in one order, whatever the threads; None for d = 0.

    Args:
        function: gives a block's part of the sum, as a tensor that is not written to later.
        n, d, columns, parallel: see :func:`map_blocks`.
    """

    def work(run: list[slice]) -> Tensor:
        total = function(run[0])
        for piece in run[1:]:
            total = total + function(piece)
        return total

    total: Tensor | None = None
    for part in _for_runs(work, n, d, columns, parallel):
        total = part if total is None else total + part
    return total


def has_float64(device: torch.device | str) -> bool:
    """Whether the device computes in float64."""
    return torch.device(device).type != "mps"


def exact(block: Tensor) -> Tensor:
    """A block in float64, on its own device where that has float64, else on the CPU."""
    return (block if has_float64(block.device) else block.cpu()).double()


def scratch(slot: str, n: int, columns: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(n, columns) of this thread's own memory on the CPU, overwritten by whoever next asks for the same slot.

    Blocks that are allocated and freed by the hundred leave the heap in pieces (glibc's aligned allocation), which
    can take more memory than the updates.
    """
    slots: dict[tuple[str, torch.dtype], Tensor] = _thread.__dict__.setdefault("scratch", {})
    numbers = n * columns
    kept = slots.get((slot, dtype))
    if kept is None or len(kept) < numbers:
        kept = slots[slot, dtype] = torch.empty(max(numbers, BLOCK_NUMBERS), dtype=dtype)
    return kept[:numbers].view(n, columns)


def exact_rows(rows: Tensor, columns: slice, only: Tensor | None = None, extra: int = 0) -> Tensor:
    """A block of (n, d) rows in float64, (n + extra, w), that may be changed.

    On the CPU it lies in :func:`scratch`, so that it lasts until the thread's next block.

    Args:
        rows: (n, d).
        columns: the block's.
        only: positions of the rows that are wanted, all if absent.
        extra: further rows that the block gets, holding anything.
    """
    block = rows[:, columns]
    n, w = len(rows) if only is None else len(only), block.shape[1]
    if rows.device.type != "cpu":
        chosen = exact(block if only is None else block[only.to(rows.device)])
        return torch.cat([chosen, chosen.new_zeros(extra, w)]) if extra else chosen.clone()
    result = scratch("float64", n + extra, w)
    if only is None:
        result[:n].copy_(block)
    else:
        chosen = scratch("chosen", n, w, rows.dtype)
        result[:n].copy_(torch.index_select(block, 0, only, out=chosen))
    return result


def gram(rows: Tensor, center: Tensor | None = None) -> Tensor:
    """(n, n) float64 inner products of the rows of (n, d), taken off ``center`` (d,) where one is given."""

    def block(columns: slice) -> Tensor:
        piece = exact_rows(rows, columns)
        if center is not None:
            piece -= exact(center[columns])
        return piece @ piece.T

    n, d = rows.shape
    total = sum_blocks(block, n, d, parallel=rows.device.type == "cpu")
    return torch.zeros(n, n, dtype=torch.float64) if total is None else total.cpu()


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
        rows: (positions, columns) -> float64 block of these rows, which may be changed until the next call.
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
            both = rows(torch.cat([group[:1], group[1:][index]]), columns)
            both[1:] -= both[:1]
            return both[1:]

        def block(columns: slice, group: Tensor = group) -> Tensor:
            piece = differences(torch.arange(len(group) - 1), columns, group)
            return piece @ piece.T

        inner = sum_blocks(block, len(group), d, parallel=parallel)
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
