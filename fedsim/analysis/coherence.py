"""Coherence: how much the gradients of single examples have in common.

With S = Σ g_i and Q = Σ |g_i|² over m examples

    m-coherence = |S|² / Q ∈ [0, m],    α = |S|² / (mQ) ∈ [0, 1]:

1 for orthogonal gradients, m for identical ones; by how much a step on all examples helps the average example more
than a step on it alone. S, Q and m add, so that clients report α of all their examples exactly, at the price of one
scalar beside S. Between clients A = |mean G_k|² / mean |G_k|². A mini-batch of k independent examples has

    α_W = kα / (1 + (k-1)α).

Chatterjee & Zielinski, "On the Generalization Mystery in Deep Learning", 2022 (arXiv:2203.10036); "Making Coherence
Out of Nothing At All", 2020 (arXiv:2008.01217).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import FedsimError


@dataclass(frozen=True)
class Coherence:
    """NaN where all gradients are zero: there is nothing to agree on.

    Args:
        m_coherence: |S|²/Q, 0 to the number of examples.
        alpha: m_coherence as a share of the number of examples, 0 to 1.
    """

    m_coherence: float
    alpha: float


@dataclass(frozen=True)
class GradientSums:
    """What coherence is made of; sums of disjoint sets of examples add with ``+``.

    Args:
        total: S, (d,), float64.
        squares: Q.
        examples: m.
    """

    total: NDArray[np.float64]
    squares: float
    examples: int

    @classmethod
    def of(cls, per_example_gradients: Any) -> GradientSums:
        """Of gradients (m, d), numpy or torch, accumulated in float64.

        Raises:
            FedsimError: not a matrix.
        """
        gradients = _matrix(per_example_gradients)
        return cls(gradients.sum(0), float(np.einsum("md,md->", gradients, gradients)), len(gradients))

    def __add__(self, other: GradientSums) -> GradientSums:
        return GradientSums(self.total + other.total, self.squares + other.squares, self.examples + other.examples)

    def coherence(self) -> Coherence:
        """m-coherence and α of all examples together."""
        if self.examples == 0 or self.squares == 0:
            return Coherence(math.nan, math.nan)
        m_coherence = float(self.total @ self.total) / self.squares
        return Coherence(m_coherence, m_coherence / self.examples)


def coherence(per_example_gradients: Any) -> Coherence:
    """m-coherence and α of gradients (m, d), numpy or torch.

    Raises:
        FedsimError: not a matrix.
    """
    return GradientSums.of(per_example_gradients).coherence()


def between_clients(client_gradients: Any) -> float:
    """A = |mean G_k|² / mean |G_k|² of the clients' gradients (n, d): 1 if they agree, 1/n if they are orthogonal.

    It is the α of the clients' gradients taken as examples, each client counted once.

    Raises:
        FedsimError: not a matrix.
    """
    return coherence(client_gradients).alpha


def of_minibatches(alpha: float, batch_size: int) -> float:
    """α_W = kα/(1 + (k-1)α): the coherence of gradients of mini-batches of k independent examples.

    Raises:
        FedsimError: alpha outside [0, 1] or an empty batch.
    """
    if not 0 <= alpha <= 1 or batch_size < 1:
        given = f"alpha {alpha} and batch_size {batch_size}"
        raise FedsimError(f"of_minibatches: given {given}; accepted: alpha from 0 to 1, batch_size of 1 or more")
    return batch_size * alpha / (1 + (batch_size - 1) * alpha)


def _matrix(gradients: Any) -> NDArray[np.float64]:
    if hasattr(gradients, "detach"):
        gradients = gradients.detach().cpu().double().numpy()
    matrix = np.asarray(gradients, dtype=np.float64)
    if matrix.ndim != 2:
        raise FedsimError(f"coherence: given shape {matrix.shape}; accepted: (examples, parameters)")
    return matrix
