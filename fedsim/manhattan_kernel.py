"""The compiled part of :mod:`fedsim.pairwise`; importing it imports numba.

Two rows against two: four sums grow at once in four vectors of ``LANES`` float64 numbers, each element read once for
two of them. The vectors are written out as LLVM vectors: left to itself the compiler vectorises a sum only where it
may reorder it (``fastmath``), and then a kernel read from numba's cache and a fresh one give different bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

TILE = 2048
"""Columns of one tile: four rows of it, 32 KiB in float32, stay in the processor's first cache."""

LANES = 8


def _compiled(function: Callable[..., Any]) -> Any:
    njit: Any = numba.njit
    options = {"nogil": True, "fastmath": False, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no place to write a cache to
        return njit(**options)(function)


def _emit_four_sums(typing_context: Any, like: Any, a: Any, b: Any, c: Any, d: Any, count: Any, sums: Any) -> Any:
    """sums[0…3] = Σ|a − c|, Σ|a − d|, Σ|b − c|, Σ|b − d| over the first ``count`` numbers at these addresses.

    ``count`` is a positive multiple of ``2 · LANES``, ``like`` an array whose numbers have the same type.
    """
    single = like.dtype == types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.FloatType() if single else ir.DoubleType()
        double, index = ir.DoubleType(), ir.IntType(64)
        vector, sums_vector = ir.VectorType(number, LANES), ir.VectorType(double, LANES)
        name = f"llvm.fabs.v{LANES}f{32 if single else 64}"
        declare: Any = cgutils.get_or_insert_function
        absolute = declare(builder.module, ir.FunctionType(vector, [vector]), name)
        rows = [builder.inttoptr(address, number.as_pointer()) for address in arguments[1:5]]
        target = builder.inttoptr(arguments[6], double.as_pointer())

        before = builder.block
        body, after = builder.append_basic_block("sums.body"), builder.append_basic_block("sums.after")
        builder.branch(body)
        builder.position_at_end(body)
        position = builder.phi(index)
        position.add_incoming(ir.Constant(index, 0), before)
        old = [builder.phi(sums_vector) for _ in range(4)]
        for each in old:
            each.add_incoming(ir.Constant(sums_vector, [0.0] * LANES), before)

        def distances(half: int) -> list[Any]:
            place = builder.add(position, ir.Constant(index, half * LANES))
            values = [builder.load(builder.bitcast(builder.gep(row, [place]), vector.as_pointer())) for row in rows]
            for value in values:
                value.align = 4 if single else 8
            a, b, c, d = values
            return [builder.call(absolute, [builder.fsub(x, y)]) for x, y in ((a, c), (a, d), (b, c), (b, d))]

        steps = [builder.fadd(x, y) for x, y in zip(distances(0), distances(1), strict=True)]
        if single:
            steps = [builder.fpext(step, sums_vector) for step in steps]
        new = [builder.fadd(sum_, step) for sum_, step in zip(old, steps, strict=True)]
        following = builder.add(position, ir.Constant(index, 2 * LANES))
        position.add_incoming(following, body)
        for each, value in zip(old, new, strict=True):
            each.add_incoming(value, body)
        builder.cbranch(builder.icmp_signed("<", following, arguments[5]), body, after)

        builder.position_at_end(after)
        for place, value in enumerate(new):
            total = ir.Constant(double, 0.0)
            for lane in range(LANES):
                total = builder.fadd(total, builder.extract_element(value, ir.Constant(ir.IntType(32), lane)))
            builder.store(total, builder.gep(target, [ir.Constant(index, place)]))
        return context.get_dummy_value()

    return types.void(like, a, b, c, d, count, sums), generate


_four_sums: Any = intrinsic(_emit_four_sums)


@_compiled
def add_distances(rows: NDArray[Any], upper: NDArray[np.float64]) -> None:
    """Add Σ_k |rows_ik − rows_jk| to ``upper``[i, j] for i < j; each row of ``rows`` is contiguous."""
    n, d = rows.shape
    sums = np.zeros(4)
    target = np.int64(sums.ctypes.data)
    first, stride, size = np.int64(rows.ctypes.data), np.int64(rows.strides[0]), np.int64(rows.itemsize)
    last = n - 1
    for start in range(0, d, TILE):
        width = min(TILE, d - start)
        whole = width - width % (2 * LANES)
        base = first + start * size
        for j in range(0, n, 2):
            j_2 = min(j + 1, last)
            for i in range(0, j + 1, 2):
                i_2 = min(i + 1, last)
                if whole > 0:
                    _four_sums(
                        rows,
                        base + i * stride,
                        base + i_2 * stride,
                        base + j * stride,
                        base + j_2 * stride,
                        np.int64(whole),
                        target,
                    )
                else:
                    sums[:] = 0.0
                for k in range(start + whole, start + width):
                    sums[0] += np.float64(abs(rows[i, k] - rows[j, k]))
                    sums[1] += np.float64(abs(rows[i, k] - rows[j_2, k]))
                    sums[2] += np.float64(abs(rows[i_2, k] - rows[j, k]))
                    sums[3] += np.float64(abs(rows[i_2, k] - rows[j_2, k]))
                if i < j:
                    upper[i, j] += sums[0]
                    if i_2 > i:
                        upper[i_2, j] += sums[2]
                    if j_2 > j:
                        upper[i_2, j_2] += sums[3]
                if j_2 > j:
                    upper[i, j_2] += sums[1]
