"""The compiled part of :mod:`fedsim.pairwise`; importing it imports numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

TILE = 2048


@numba.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _tile(a: NDArray[Any], b: NDArray[Any]) -> float:
    n = a.size
    zero = a.dtype.type(0)
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = s9 = s10 = s11 = s12 = s13 = s14 = s15 = zero
    whole = n - n % 16
    for k in range(0, whole, 16):
        s0 += abs(a[k] - b[k])
        s1 += abs(a[k + 1] - b[k + 1])
        s2 += abs(a[k + 2] - b[k + 2])
        s3 += abs(a[k + 3] - b[k + 3])
        s4 += abs(a[k + 4] - b[k + 4])
        s5 += abs(a[k + 5] - b[k + 5])
        s6 += abs(a[k + 6] - b[k + 6])
        s7 += abs(a[k + 7] - b[k + 7])
        s8 += abs(a[k + 8] - b[k + 8])
        s9 += abs(a[k + 9] - b[k + 9])
        s10 += abs(a[k + 10] - b[k + 10])
        s11 += abs(a[k + 11] - b[k + 11])
        s12 += abs(a[k + 12] - b[k + 12])
        s13 += abs(a[k + 13] - b[k + 13])
        s14 += abs(a[k + 14] - b[k + 14])
        s15 += abs(a[k + 15] - b[k + 15])
    total = 0.0
    for s in (s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15):
        total += np.float64(s)
    for k in range(whole, n):
        total += np.float64(abs(a[k] - b[k]))
    return total


@numba.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def add_distances(rows: NDArray[Any], upper: NDArray[np.float64]) -> None:
    n, d = rows.shape
    for start in range(0, d, TILE):
        stop = min(start + TILE, d)
        for i in range(n):
            a = rows[i, start:stop]
            for j in range(i + 1, n):
                upper[i, j] += _tile(a, rows[j, start:stop])
