"""Learning the transport maps of many clients at once: the loop of :func:`~fedsim.losses.monge_map.fit_monge_map`.

Nearly all of a step is Sinkhorn's iteration, two small products again and again. Here those of all clients are one
batched product each; a client whose marginals are met leaves, its plan stays as it is. All else is a client's own: its
batches, its costs, its optimizer. Each map is the one that the client would have learned alone, to rounding, and its
bits do not depend on who learns beside it: kernels of one size go together, in whole lines of memory, filled up by
points that exchange mass with themselves alone.

Uscidda & Cuturi, "The Monge gap: a regularizer to learn all transport maps", ICML 2023, arXiv 2302.04953.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedsim.errors import FedsimError
from fedsim.losses.monge_gap import monge_gap
from fedsim.losses.monge_map import _batch
from fedsim.losses.sinkhorn import ABSORB, Cost, cost_matrix, default_epsilon, entropic_self_cost, pair_costs

LINE = 8
"""Numbers of 64 bits in a line of memory: what a sum's bits depend on besides the numbers is where they lie."""
KERNELS = 4 * 2**20
"""Bytes of kernels that are worked on at once; they should stay near the processor."""


@dataclass
class Learner:
    """One client's part of the fit.

    Args:
        model: T, trained in place.
        source: sample of μ, (n, d).
        target: sample of ν, (m, d).
        generator: of its batches, on the CPU.
    """

    model: nn.Module
    source: Tensor
    target: Tensor
    generator: torch.Generator


def fit_monge_maps(
    learners: Sequence[Learner],
    *,
    gap_weight: float = 1.0,
    cost: Cost = "squared_euclidean",
    method: Literal["exact", "entropic"] = "exact",
    epsilon: float | None = None,
    steps: int = 400,
    batch_size: int = 128,
    lr: float = 1e-2,
) -> None:
    """Train each client's map in place; options as of :func:`~fedsim.losses.monge_map.fit_monge_map`.

    Args:
        learners: the clients.
        batch_size: points of either sample in a step; of a client whose smaller sample has fewer, as many.

    Raises:
        FedsimError: as of :func:`~fedsim.losses.sinkhorn.entropic_cost`.
    """
    optimizers = [torch.optim.Adam(each.model.parameters(), lr=lr) for each in learners]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, steps) for each in optimizers]
    for _ in range(steps):
        losses: list[Tensor] = []
        problems: list[tuple[Tensor, float]] = []
        weights: list[float] = []
        for each in learners:
            size = min(batch_size, len(each.source), len(each.target))
            x, y = (_batch(sample, size, each.generator) for sample in (each.source, each.target))
            mapped = each.model(x)
            between = cost_matrix(mapped, y, cost)
            regular = default_epsilon(between) if epsilon is None else epsilon
            # The divergence's third term is of the target alone, and moves no map.
            loss = -entropic_self_cost(cost_matrix(mapped, mapped, cost), regular) / 2
            problems.append((between, regular))
            weights.append(1.0)
            if gap_weight and method == "exact":
                loss = loss + gap_weight * monge_gap(x, mapped, cost=cost)
            elif gap_weight:
                loss = loss + gap_weight * pair_costs(x, mapped, cost).mean()
                moves = cost_matrix(x, mapped, cost)
                problems.append((moves, default_epsilon(moves) if epsilon is None else epsilon))
                weights.append(-gap_weight)
            losses.append(loss)
        plans = entropic_plans([costs.detach() for costs, _ in problems], [regular for _, regular in problems])
        for (costs, _), plan, weight in zip(problems, plans, weights, strict=True):
            losses.append(weight * (plan.to(costs) * costs).sum())
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()


def entropic_plans(
    costs: Sequence[Tensor], epsilons: Sequence[float], *, tolerance: float = 1e-5, max_iterations: int = 5000
) -> list[Tensor]:
    """The plans P of :func:`~fedsim.losses.sinkhorn.entropic_cost`, (n, n) float64, of many problems at once.

    Args:
        costs: (n, n) of each problem, as many points on either side.
        epsilons: ε of each.
        tolerance: L1 error of the marginals at which a problem's iteration ends.
        max_iterations: after these it ends in any case.

    Raises:
        FedsimError: after ``max_iterations`` a problem's marginals are off by more than 1 %.
    """
    plans: list[Tensor] = [torch.empty(0)] * len(costs)
    groups: dict[int, list[int]] = {}
    for i, each in enumerate(costs):
        groups.setdefault(len(each), []).append(i)
    for n, members in groups.items():
        size = -(-n // LINE) * LINE
        at_once = max(1, KERNELS // (8 * size * size))
        for start in range(0, len(members), at_once):
            here = members[start : start + at_once]
            chosen = [costs[i] for i in here], [epsilons[i] for i in here]
            for i, plan in zip(here, _plans(*chosen, tolerance, max_iterations), strict=True):
                plans[i] = plan
    return plans


def _plans(costs: Sequence[Tensor], epsilons: Sequence[float], tolerance: float, most: int) -> list[Tensor]:
    """The plans of k problems of one size, from costs and potentials in units of ε.

    f is log n above the potential, so that n P = exp(f + g - C): rows and columns are to have the sum 1.
    """
    n, k = len(costs[0]), len(costs)
    size = -(-n // LINE) * LINE
    scaled = torch.full((k, size, size), torch.inf, dtype=torch.float64, device=costs[0].device)
    scaled.diagonal(dim1=1, dim2=2)[:, n:] = 0
    for into, each, epsilon in zip(scaled, costs, epsilons, strict=True):
        into[:n, :n] = each.double() / epsilon
    f, g = _update(scaled, scaled.new_zeros(k, size))
    kernel, left, scalings, done = _kernel(scaled, f, g), list(range(k)), ABSORB, 1
    plans: list[Tensor] = [torch.empty(0)] * k
    while left:
        u, v = _scale(kernel, scalings)
        finite = (u.isfinite() & v.isfinite()).all(1, keepdim=True)
        kept = (f, g) if scalings == ABSORB or bool(finite.all()) else _update(scaled, g)
        f = torch.where(finite, f + u.log(), kept[0])
        g = torch.where(finite, g + v.log(), kept[1])
        # The next kernel comes from scalings, not from an update, whose step is then the first scaling.
        kernel, done, scalings = _kernel(scaled, f, g), done + scalings, ABSORB + 1
        errors = ((kernel.sum(2) - 1).abs().sum(1) / n).tolist()
        stay = [i for i, error in enumerate(errors) if error > tolerance and done < most]
        for i, error in enumerate(errors):
            if i in stay:
                continue
            if not error <= 0.01:
                said = f"Sinkhorn: marginals off by {error:.2g} after {done} iterations"
                raise FedsimError(f"{said}; accepted: 0.01, by a larger epsilon")
            plans[left[i]] = kernel[i, :n, :n] / n
        if len(stay) < len(left):
            left = [left[i] for i in stay]
            scaled, f, g, kernel = (each[stay] for each in (scaled, f, g, kernel))
    return plans


def _scale(kernel: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """Sinkhorn's scalings (k, n) of kernels (k, n, n) whose rows and columns are to have the sum 1."""
    k, n, _ = kernel.shape
    turned, u, v = kernel.mT.contiguous(), kernel.new_empty(k, 1, n), kernel.new_ones(k, 1, n)
    for _ in range(times):
        torch.bmm(v, turned, out=u).reciprocal_()
        torch.bmm(u, kernel, out=v).reciprocal_()
    return u.squeeze(1), v.squeeze(1)


def _kernel(scaled: Tensor, f: Tensor, g: Tensor) -> Tensor:
    exponents: Tensor = f[:, :, None] + g[:, None]
    return exponents.sub_(scaled).exp_()


def _update(scaled: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Both potentials, from the second one, in the log domain."""
    f = -(g[:, None] - scaled).logsumexp(2)
    return f, -(f[:, :, None] - scaled).logsumexp(1)
