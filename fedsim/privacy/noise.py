"""Gaussian noise as it is added to what leaves: where it is drawn, and how it is rounded.

In simulation it comes from the scenario's seeded streams, so that runs repeat. A seed in a scenario file is no secret:
whoever knows it can subtract the noise. In deployment it comes from the operating system's entropy.

Sums of floating-point numbers give away, in their last bits, what was added to what: not every result can come from
every value (Mironov). The sum is formed in float64 and then rounded to a fixed grid of 2^k ≤ sd/1024, which hides
these bits; where the value itself lies on the grid then depends on them only if the sum falls within a rounding error
of a grid cell's border, about once in 2^40. That is a mitigation, no proof: a proof needs discrete noise.

Mironov, "On Significance of the Least Significant Bits for Differential Privacy", CCS 2012.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GRID = 10
"""The rounding's grid is at most 2^-GRID of the noise's standard deviation."""


def noised(values: Tensor, sd: float, generator: np.random.Generator | None) -> Tensor:
    """The (d,) values plus N(0, sd²) on each, rounded to the grid.

    Args:
        values: any device and floating dtype, which the result has, too.
        sd: above 0.
        generator: the scenario's stream; None draws from the operating system's entropy.
    """
    drawn = from_entropy(len(values)) if generator is None else generator.standard_normal(len(values))
    grid = 2.0 ** (math.floor(math.log2(sd)) - GRID)
    # A power of two: dividing by it before the sum rounds no bit otherwise than dividing after it.
    exact = torch.from_numpy(drawn).mul_(sd / grid).add_(values.detach().cpu(), alpha=1 / grid)
    return exact.round_().mul_(grid).to(values)


def from_entropy(count: int) -> NDArray[np.float64]:
    """Standard normal numbers, each from 52 bits of the operating system's own; the largest is 8.2."""
    from scipy.special import ndtri

    # One bit more, and half a step above the largest would be rounded to probability 1, which is infinity.
    bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(12)
    return np.asarray(ndtri((bits.astype(np.float64) + 0.5) * 2.0**-52), dtype=np.float64)
