"""Coordinate-wise order statistics of rows, by a sorting network on whole blocks of columns.

Batcher's odd-even merge sort compares rows i and j with one ``minimum`` and one ``maximum`` over a block; of the
network only what the wanted ranks need is kept. No sorting loop per coordinate, the same bits whatever the order of
the rows, on every device. Many rows go to ``torch.sort``, whose cost grows slower.

Batcher, "Sorting networks and their applications", AFIPS 1968.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fedsim.blocks import exact, map_blocks, scratch

NETWORK_ROWS = 256
"""Above this many rows ``torch.sort`` is faster."""

COLUMNS = 1 << 14
"""Columns of one block: rows of 64 KiB, for which a call of torch costs little and the cache is large enough."""


def mean_of_ranks(rows: Tensor, first: int, last: int) -> Tensor:
    """(d,) mean, in every coordinate, of the values with ranks ``first`` … ``last`` (0 is the smallest, both included).

    Args:
        rows: (n, d) finite values.
        first: lowest rank that counts.
        last: highest rank that counts.
    """
    n, d = rows.shape
    result = torch.empty(d, dtype=rows.dtype, device=rows.device)

    def block(columns: slice) -> None:
        ranked = ranks(rows[:, columns], first, last)
        if last == first:
            result[columns] = ranked[0]
        else:
            total = exact(ranked[0])
            for values in ranked[1:]:
                total += exact(values)
            result[columns] = total.div_(last - first + 1).to(dtype=rows.dtype, device=rows.device)

    map_blocks(block, n, d, columns=COLUMNS, parallel=rows.device.type == "cpu")
    return result


def ranks(block: Tensor, first: int, last: int) -> Sequence[Tensor]:
    """The ranks ``first`` … ``last`` of a block (n, w), each (w,), valid until this thread asks for others."""
    n, w = block.shape
    if n > NETWORK_ROWS:
        return block.sort(dim=0).values[first : last + 1].unbind()
    if block.device.type == "cpu":
        places = scratch("ranks", n + 1, w, block.dtype)
    else:
        places = torch.empty(n + 1, w, dtype=block.dtype, device=block.device)
    places[:n].copy_(block)
    *rows, free = places.unbind()
    for low, high, wants_low, wants_high in _network(n, first, last):
        a, b = rows[low], rows[high]
        if wants_low and wants_high:
            torch.minimum(a, b, out=free)
            torch.maximum(a, b, out=b)
            rows[low], free = free, a
        elif wants_low:
            torch.minimum(a, b, out=a)
        else:
            torch.maximum(a, b, out=b)
    return rows[first : last + 1]


@lru_cache(maxsize=256)
def _network(n: int, first: int, last: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """Comparators (low, high, low's result is needed, high's is needed) that put the wanted ranks in place."""
    wanted, kept = set(range(first, last + 1)), []
    for low, high in reversed(_odd_even_merge_sort(n)):
        wants_low, wants_high = low in wanted, high in wanted
        if wants_low or wants_high:
            kept.append((low, high, wants_low, wants_high))
            wanted |= {low, high}
    return tuple(reversed(kept))


def _odd_even_merge_sort(n: int) -> list[tuple[int, int]]:
    """Knuth, The Art of Computer Programming 3, algorithm 5.2.2M, for any n."""
    comparators: list[tuple[int, int]] = []
    top = 1 << max((n - 1).bit_length() - 1, 0)
    p = top
    while p > 0 and n > 1:
        q, r, distance = top, 0, p
        while distance > 0:
            comparators += [(i, i + distance) for i in range(n - distance) if i & p == r]
            distance, q, r = q - p, q >> 1, p
        p >>= 1
    return comparators
