"""Maps for three costs, one of them not Euclidean."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedsim.losses import fit_monge_map, monge_gap
from fedsim.losses.sinkhorn import sinkhorn_divergence
from fedsim.verify.claim import Expected, Measured, claim

COSTS = ("squared_euclidean", "euclidean", "manhattan")


@claim(
    {
        f"{cost}_{what}": Expected(f"{cost.replace('_', ' ')}: {text}", expected, low, high)
        for cost in COSTS
        for what, text, expected, low, high in (
            ("gap", "Monge gap over the mean cost of a move, fitted with the gap, %", "near 0", None, 5.0),
            ("without", "the same, fitted without", "> 0", None, None),
            ("divergence", "divergence left to the target over that before, %, with the gap", "near 0", None, None),
            ("floor", "the same of a second sample of the target: what 256 points leave", "–", None, None),
            ("over", "divergence left over what a second sample leaves", "1", None, 1.25),
        )
    }
    | {
        "squared_euclidean_divergence": Expected(
            "squared euclidean: divergence left to the target over that before, %, with the gap", "near 0", None, 5.0
        )
    }
    | {
        f"{cost}_gain": Expected(f"{cost.replace('_', ' ')}: gap without over gap with", "> 1", 2.0, None)
        for cost in COSTS
    },
    source="two rings of a different centre in d = 2, a fresh sample of 256; MLP 64-64 from a random start, 400 steps",
    quick=False,
    paper="monge_gap",
)
def costs(seed: int) -> Measured:
    """Each cost has its own cheapest map; without the gap the divergence is content with any."""

    def ring(n: int, number: int, radius: float, x: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(100 * seed + number)
        angle = 6.2831853 * torch.rand(n, generator=generator)
        points = radius * torch.stack([angle.cos(), angle.sin()], 1) + torch.tensor([x, 0.0])
        return points + 0.15 * torch.randn(n, 2, generator=generator)

    source, fresh = ring(2048, 0, 1.0, 0.0), ring(256, 2, 1.0, 0.0)
    target, aim, second = ring(2048, 1, 2.0, 3.0), ring(256, 3, 2.0, 3.0), ring(256, 4, 2.0, 3.0)
    values: dict[str, float] = {}
    series: dict[str, list[float]] = {f"ring {axis}": fresh[:60, axis].tolist() for axis in (0, 1)}
    for cost in COSTS:
        kind: Any = cost
        shares = {}
        for name, weight in (("without", 0.0), ("gap", 1.0)):
            torch.manual_seed(seed)
            layers = (nn.Linear(2, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))
            model = nn.Sequential(*layers)
            generator = torch.Generator().manual_seed(seed)
            fit_monge_map(model, source, target, gap_weight=weight, cost=kind, generator=generator)
            with torch.no_grad():
                mapped = model(fresh)
                order = {"squared_euclidean": 2.0, "euclidean": 2.0, "manhattan": 1.0}[cost]
                moved = (mapped - fresh).norm(p=order, dim=1)
                mean = float((moved.square() if cost == "squared_euclidean" else moved).mean())
                shares[name] = 100 * float(monge_gap(fresh, mapped, cost=kind)) / mean
                before = sinkhorn_divergence(fresh, aim, cost=kind)
                left, floor = (
                    100 * float(sinkhorn_divergence(each, aim, cost=kind) / before) for each in (mapped, second)
                )
            series |= {f"{cost} {name} {axis}": mapped[:60, axis].tolist() for axis in (0, 1)}
        values |= {f"{cost}_gap": shares["gap"], f"{cost}_without": shares["without"]}
        values |= {f"{cost}_divergence": left, f"{cost}_floor": floor, f"{cost}_over": left / floor}
        values[f"{cost}_gain"] = shares["without"] / max(shares["gap"], 1e-3)
    return Measured(values, series)
