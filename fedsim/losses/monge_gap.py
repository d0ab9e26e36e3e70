"""The Monge gap: how far a map is from moving its points as cheaply as it could.

    M^c_ρ(T) = E_{x∼ρ} c(x, T(x)) − W_c(ρ, T♯ρ)  ≥ 0,

and 0 iff T is c-optimal. W_c is exact, the best assignment of the sample, whose gradient goes through the fixed
permutation (no floor); or entropic, ⟨P, C⟩ − ε H(P) at the fixed plan, whose gap does not fall below about ε log n.

For T(x) = M x + b, ρ = N(0, I) and c = |x − y|² the gap of the distributions is 2(‖M‖_* − tr M):
:func:`linear_monge_gap`.

Uscidda & Cuturi, "The Monge gap: a regularizer to learn all transport maps", ICML 2023, arXiv 2302.04953.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.losses.sinkhorn import Cost, cost_matrix, default_epsilon, entropic_cost, pair_costs

MAX_EXACT = 4096
"""Points that the exact method takes: its time grows with their cube (256 points: milliseconds)."""


def monge_gap(
    source: Tensor,
    mapped: Tensor,
    *,
    cost: Cost = "squared_euclidean",
    method: Literal["exact", "entropic"] = "exact",
    epsilon: float | None = None,
) -> Tensor:
    """The gap on a sample, a scalar, in units of the cost; differentiable in both arguments.

    Args:
        source: x, (n, d).
        mapped: T(x), (n, d), row by row.
        cost: ``squared_euclidean``, ``euclidean``, ``manhattan``, ``cosine``, or a function of points (…, d), (…, d).
        method: ``exact``, meant for n ≤ 256, or ``entropic``.
        epsilon: ε of the entropic method; by default 0.05 · std of the costs.

    Raises:
        FedsimError: shapes that differ, an unknown cost or method, an ε for the exact method, values not finite.
    """
    if source.ndim != 2 or source.shape != mapped.shape or not len(source):
        given = f"{tuple(source.shape)} and {tuple(mapped.shape)}"
        raise FedsimError(f"Monge gap: given points {given}; accepted: (n, d) and (n, d), n at least 1")
    moved = pair_costs(source, mapped, cost).mean()
    if method == "exact":
        if epsilon is not None:
            raise FedsimError(f"epsilon: given {epsilon} to the exact method, which has none; accepted: entropic")
        if len(source) > MAX_EXACT:
            raise FedsimError(f"Monge gap: given {len(source)} points; accepted: {MAX_EXACT}, more by 'entropic'")
        return moved - pair_costs(source, mapped[best_assignment(source, mapped, cost)], cost).mean()
    if method == "entropic":
        costs = cost_matrix(source, mapped, cost)
        return moved - entropic_cost(costs, default_epsilon(costs) if epsilon is None else epsilon)
    raise FedsimError(f"method: given {method!r}; accepted: exact, entropic")


def best_assignment(source: Tensor, target: Tensor, cost: Cost = "squared_euclidean") -> Tensor:
    """The permutation σ of least Σ c(x_i, y_σ(i)), (n,) int64.

    Raises:
        FedsimError: a cost that is not finite.
    """
    from scipy.optimize import linear_sum_assignment

    with torch.no_grad():
        costs = cost_matrix(source.double(), target.double(), cost).cpu().numpy()
    try:
        _, columns = linear_sum_assignment(costs)
    except ValueError as error:
        raise FedsimError(f"Monge gap: costs that are not finite; accepted: finite points ({error})") from error
    return torch.as_tensor(columns, dtype=torch.long, device=source.device)


def linear_monge_gap(matrix: Tensor) -> Tensor:
    """2(‖M‖_* − tr M): the gap of x → M x + b under N(0, I) and squared Euclidean cost.

    Args:
        matrix: M, (d, d).
    """
    gap: Tensor = 2 * (torch.linalg.matrix_norm(matrix, ord="nuc") - matrix.trace())
    return gap
