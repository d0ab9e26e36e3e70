"""Learning a transport map with the Monge gap.

    min_T  S_ε(T♯μ, ν) + λ · M^c_μ(T)

The Sinkhorn divergence brings the points to ν, by whatever way; the gap makes it the cheapest way. Without the gap
(λ = 0) the divergence is content with a map that swaps classes, and finds one from a random start.

The map is in residual form, T(x) = x + MLP(x), and the identity at the start: a client's personal adapter from its own
features to a reference sample that the server holds. Limits: the two samples need comparable shares of the classes, and
a rotation is not recovered, since it is no cheapest way.

Uscidda & Cuturi, "The Monge gap: a regularizer to learn all transport maps", ICML 2023, arXiv 2302.04953.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from fedsim.errors import FedsimError
from fedsim.losses.monge_gap import monge_gap
from fedsim.losses.sinkhorn import Cost, sinkhorn_divergence


class MongeMap(nn.Module):
    """T(x) = x + MLP(x) with GELUs, the identity at the start: (…, d) → (…, d).

    Args:
        features: d.
        hidden: widths of the hidden layers.
    """

    def __init__(self, features: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        widths = [features, *hidden]
        layers: list[nn.Module] = []
        for inward, outward in pairwise(widths):
            layers += [nn.Linear(inward, outward), nn.GELU()]
        last = nn.Linear(widths[-1], features)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.displacement = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = x + self.displacement(x)
        return moved


@dataclass(frozen=True)
class MongeFit:
    """What a fit went through, one number a step.

    Args:
        divergences: S_ε of the batches.
        gaps: Monge gaps of the batches; 0 where λ = 0.
    """

    divergences: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


def fit_monge_map(
    model: nn.Module,
    source: Tensor,
    target: Tensor,
    *,
    gap_weight: float = 1.0,
    cost: Cost = "squared_euclidean",
    method: Literal["exact", "entropic"] = "exact",
    epsilon: float | None = None,
    steps: int = 400,
    batch_size: int = 128,
    lr: float = 1e-2,
    generator: torch.Generator | None = None,
) -> MongeFit:
    """Train a map in place, by Adam, on batches drawn without replacement; labels are not needed.

    Args:
        model: T, (n, d) → (n, d).
        source: sample of μ, (n, d).
        target: sample of ν, (m, d).
        gap_weight: λ; 0 leaves the gap out.
        cost: as of :func:`~fedsim.losses.monge_gap.monge_gap`.
        method: of the gap.
        epsilon: ε of the divergence and of an entropic gap; by default 0.05 · std of the costs of each.
        steps: of Adam.
        batch_size: points of either sample in a step; all of them if there are fewer.
        lr: first learning rate of Adam; it falls to 0 as a cosine.
        generator: of the batches, on the CPU.

    Raises:
        FedsimError: samples of different dimension, a λ below 0.
    """
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        given = f"{tuple(source.shape)} and {tuple(target.shape)}"
        raise FedsimError(f"Monge map: given samples {given}; accepted: (n, d) and (m, d)")
    if gap_weight < 0:
        raise FedsimError(f"gap_weight: given {gap_weight}; accepted: 0 and up")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    fit = MongeFit()
    for _ in range(steps):
        x, y = (_batch(each, batch_size, generator) for each in (source, target))
        mapped = model(x)
        divergence = sinkhorn_divergence(mapped, y, cost=cost, epsilon=epsilon)
        gap = torch.zeros_like(divergence)
        if gap_weight:
            of_gap = epsilon if method == "entropic" else None
            gap = monge_gap(x, mapped, cost=cost, method=method, epsilon=of_gap)
        optimizer.zero_grad(set_to_none=True)
        (divergence + gap_weight * gap).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        fit.divergences.append(float(divergence.detach()))
        fit.gaps.append(float(gap.detach()))
    return fit


def _batch(sample: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    if size >= len(sample):
        return sample
    return sample[torch.randperm(len(sample), generator=generator)[:size].to(sample.device)]
