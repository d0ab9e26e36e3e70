"""Clipping the rows of a matrix: the one rule by which every per-example contribution is bounded.

A row g becomes g · min(1, C/|g|). Norms are in float64, so that in the rows' own precision a clipped row is no longer
than C(1 + 1e-6). A row whose norm is not finite, or larger than the precision's largest number, contributes zero: if
it failed the computation, one example would decide whether there is a result at all.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, 1607.00133.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedsim.blocks import exact
from fedsim.errors import FedsimError

BLOCK_NUMBERS = 1 << 20
"""Numbers whose float64 copies lie in memory at once."""


def clip_rows(matrix: Tensor, clip: float) -> Tensor:
    """Each row g of (n, d) as g · min(1, clip/|g|); rows that are not finite are zero.

    Args:
        matrix: (n, d) per-example vectors.
        clip: the largest norm C that a row keeps; inf leaves finite rows as they are.

    Raises:
        FedsimError: ``clip`` is negative or NaN.
    """
    factors, ignored = clip_factors(row_norms(matrix), clip, matrix.dtype)
    return scaled(matrix, factors, ignored)


def row_norms(matrix: Tensor) -> Tensor:
    """(n,) float64 Euclidean norms of the rows."""
    blocks = (exact(block) for block in torch.split(matrix, block_rows(matrix.shape[1])))
    return torch.cat([torch.linalg.vecdot(block, block).sqrt() for block in blocks])


def block_rows(d: int) -> int:
    """Rows of d numbers whose float64 copies lie in memory at once."""
    return max(1, BLOCK_NUMBERS // max(d, 1))


def clip_factors(norms: Tensor, clip: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What rows of these norms are multiplied by, and which of them are ignored (their factor is 0).

    Args:
        norms: (n,) float64.
        clip: C.
        dtype: precision of the rows.
    """
    check_clip(clip)
    ignored = ~(norms <= torch.finfo(dtype).max)
    factors = torch.where(norms > clip, clip / norms, torch.ones_like(norms))
    return factors.masked_fill_(ignored, 0.0), ignored


def scaled(matrix: Tensor, factors: Tensor, ignored: Tensor) -> Tensor:
    """Rows of (n, d) times their factors, in the rows' precision; ignored rows are zero, whatever they hold."""
    result = matrix * factors.to(dtype=matrix.dtype, device=matrix.device).unsqueeze(1)
    if bool(ignored.any()):
        result[ignored.to(matrix.device)] = 0.0
    return result


def check_clip(clip: float) -> None:
    """Raise unless this can be a norm."""
    if math.isnan(clip) or clip < 0:
        raise FedsimError(f"clip: given {clip!r}; accepted: a number ≥ 0, or inf for no clipping")
