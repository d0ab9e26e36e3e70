"""Tasks with a planted direction θ* on the unit sphere: tensor PCA and the single-index model.

    tensor PCA:     T = θ*^{⊗k} + Z / sqrt(n)        Z with standard normal entries; one observation
    single index:   y = h_k(θ* · x), x ~ N(0, I)      h_k = He_k / sqrt(k!); n observations

k is the information exponent: near the equator, where a random start lies, the signal has size (θ·θ*)^{k-1}.
The metric is the overlap ⟨θ, θ*⟩; for even k its sign cannot be known.

Wei, Damian & Lee, ICLR 2026 (arXiv:2603.06028); tensor PCA: Montanari & Richard, NeurIPS 2014 (arXiv:1411.1076).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor


@dataclass(frozen=True)
class SingleIndex:
    """Examples of a single-index model: inputs (n, d), targets (n,), the direction (d,) behind them."""

    inputs: Tensor
    targets: Tensor
    direction: Tensor


def unit_vectors(rows: int, d: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """(rows, d) directions, uniform on the sphere."""
    drawn = torch.randn(rows, d, generator=generator, dtype=dtype)
    unit: Tensor = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
    return unit


def hermite(k: int, z: Tensor) -> Tensor:
    """h_k(z) = He_k(z) / sqrt(k!), orthonormal under the standard normal; 0 for k < 0."""
    if k < 0:
        return torch.zeros_like(z)
    before, now = torch.zeros_like(z), torch.ones_like(z)
    for j in range(k):
        before, now = now, z * now - j * before
    return now / math.sqrt(math.factorial(k))


def single_index(
    n: int,
    d: int,
    k: int,
    generator: torch.Generator,
    *,
    direction: Tensor | None = None,
    noise: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> SingleIndex:
    """n examples y = h_k(θ* · x) + noise · N(0, 1); θ* uniform unless given."""
    theta = unit_vectors(1, d, generator, dtype)[0] if direction is None else direction.to(dtype)
    inputs = torch.randn(n, d, generator=generator, dtype=dtype)
    targets = hermite(k, inputs @ theta)
    if noise:
        targets = targets + noise * torch.randn(n, generator=generator, dtype=dtype)
    return SingleIndex(inputs, targets, theta)


def single_index_ascent(theta: Tensor, inputs: Tensor, targets: Tensor, k: int) -> Tensor:
    """(…, d) mean of y · h_k'(θ·x) · x over the batch: the way up the correlation of h_k(θ·x) with y.

    Args:
        theta: (…, d) directions.
        inputs: (…, B, d) a batch for each of them.
        targets: (…, B).
        k: information exponent; h_k' = sqrt(k) · h_{k-1}.
    """
    z = (inputs @ theta.unsqueeze(-1)).squeeze(-1)
    weights = targets * (math.sqrt(k) * hermite(k - 1, z)) / inputs.shape[-2]
    return (weights.unsqueeze(-2) @ inputs).squeeze(-2)


def tensor_pca(
    n: float,
    d: int,
    k: int,
    generator: torch.Generator,
    *,
    direction: Tensor | None = None,
    symmetric: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """The tensor (d, …, d) of order k and the direction (d,) that is planted in it.

    Args:
        n: signal-to-noise ratio: the noise has standard deviation 1 / sqrt(n).
        d: dimensions.
        k: order.
        generator: what the noise and the direction are drawn from.
        direction: θ*; uniform without.
        symmetric: the noise averaged over all orders of its indices.
        dtype: of the tensor.
    """
    theta = unit_vectors(1, d, generator, dtype)[0] if direction is None else direction.to(dtype)
    noise = torch.randn((d,) * k, generator=generator, dtype=dtype)
    if symmetric:
        orders = list(permutations(range(k)))
        noise = sum((noise.permute(order) for order in orders), torch.zeros_like(noise)) / len(orders)
    signal = theta
    for _ in range(k - 1):
        signal = signal.unsqueeze(-1) * theta
    return signal + noise / math.sqrt(n), theta


def tensor_ascent(theta: Tensor, tensor: Tensor) -> Tensor:
    """(rows, d) gradients of T(θ, …, θ) by θ, for (rows, d) directions: one contraction for each index left out."""
    k, d = tensor.ndim, tensor.shape[0]
    total = torch.zeros_like(theta)
    for left in range(k):
        contracted = theta @ tensor.movedim(left, -1).reshape(d, -1)
        for _ in range(k - 2):
            contracted = (theta.unsqueeze(1) @ contracted.view(len(theta), d, -1)).squeeze(1)
        total += contracted
    return total


def partial_trace(tensor: Tensor) -> Tensor:
    """(d,) v_j = Σ_i T_iij of an order-3 tensor: where the average of a hot trajectory points."""
    return torch.einsum("iij->j", tensor)


def overlap(theta: Tensor, direction: Tensor) -> Tensor:
    """⟨θ, θ*⟩ of (…, d) directions, each normalised."""
    norms = torch.linalg.vector_norm(theta, dim=-1).clamp_min(torch.finfo(theta.dtype).tiny)
    found: Tensor = theta @ direction / norms
    return found
