"""Langevin dynamics with weight averaging (arXiv 2603.06028)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.planted import (
    overlap,
    partial_trace,
    single_index,
    single_index_ascent,
    tensor_ascent,
    tensor_pca,
    unit_vectors,
)
from fedsim.optim.langevin import normalized_sgd, spherical_langevin
from fedsim.verify.claim import Expected, Measured, claim

PARTS = ("fedsim.optim.langevin", "fedsim.data.planted")
DRAWN = ("scaling",)
CLIENTS = 10


def federated(
    k: int, d: int, n: int, lr: float, steps: int, seed: int, clients: int = CLIENTS, one_pass: bool = False
) -> tuple[float, float]:
    """Overlap of the server's mean of averages, and of the mean of last iterates; IID shards, one example a step."""
    generator = torch.Generator().manual_seed(seed)
    data = single_index(n, d, k, generator)
    share = n // clients
    inputs = data.inputs[: share * clients].view(clients, share, d)
    targets = data.targets[: share * clients].view(clients, share)
    drawn = torch.randint(share, (steps, clients), generator=generator)
    if one_pass:
        steps = share
        drawn = torch.arange(steps)[:, None].expand(steps, clients)
    rows = torch.arange(clients)

    def ascent(theta: Tensor, t: int) -> Tensor:
        return single_index_ascent(theta, inputs[rows, drawn[t]][:, None], targets[rows, drawn[t]][:, None], k)

    start = unit_vectors(1, d, generator).expand(clients, d)
    pooled = normalized_sgd(ascent, start, lr=lr, steps=steps, exponent=k).pooled()
    found = overlap(pooled.direction, data.direction), overlap(pooled.last, data.direction)
    return abs(float(found[0])) if k % 2 == 0 else float(found[0]), abs(float(found[1]))


@claim(
    {
        "average": Expected("overlap of the average", "> .9", 0.9),
        "last": Expected("overlap of the last iterate", "far less", None, 0.7),
    },
    source="k = 3 in short: d = 20, n = 6000, η = .15, 3000 steps, 10 clients",
)
def third_order_short(seed: int) -> Measured:
    """The method in seconds."""
    average, last = federated(3, 20, 6000, 0.15, 3000, seed)
    return Measured({"average": average, "last": last})


@claim(
    {
        "average": Expected("overlap of the mean of client averages", ".964", 0.95),
        "last": Expected("overlap of the mean of last iterates", ".309", None, 0.4),
        "online": Expected("plain SGD, one pass, averaged: the control, which averaging helps too", ".86"),
    },
    source="k = 3, d = 50, n = 25,000, η = .1, 20,000 steps, 10 clients",
    quick=False,
)
def third_order(seed: int) -> Measured:
    """Odd exponent: the average itself."""
    average, last = federated(3, 50, 25_000, 0.1, 20_000, seed)
    online, _ = federated(3, 50, 25_000, 0.1, 0, seed, one_pass=True)
    return Measured({"average": average, "last": last, "online": online})


@claim(
    {"average": Expected("overlap of the top eigenvector", ".995", 0.99)},
    source="k = 4, d = 30, n = 9000, η = .05, 15,000 steps, 10 clients",
    quick=False,
)
def fourth_order(seed: int) -> Measured:
    """Even exponent: the top eigenvector of the mean of θθᵀ."""
    return Measured({"average": federated(4, 30, 9000, 0.05, 15_000, seed)[0]})


@claim(
    {
        "trace": Expected("overlap of hot trajectories' average with the partial trace Σ_i T_iij", "→ 1", 0.98),
        "direction": Expected("tensor PCA, d = 20, n = 4000: overlap with the planted direction", "high", 0.8),
    },
    source="spherical Langevin on tensor PCA, k = 3",
)  # fmt: skip
def tensors(seed: int) -> Measured:
    """The exact target of the average, and a recovery."""
    generator = torch.Generator().manual_seed(seed + 2)
    tensor, _ = tensor_pca(50.0, 8, 3, generator, symmetric=True, dtype=torch.float64)
    target = partial_trace(tensor)
    hot = spherical_langevin(
        lambda theta: tensor_ascent(theta, tensor),
        unit_vectors(3000, 8, generator, torch.float64),
        inverse_temperature=1.0,
        h=0.1 / 8,
        steps=500,
        exponent=3,
        generator=generator,
    )
    large, direction = tensor_pca(4000.0, 20, 3, generator)
    cold = spherical_langevin(
        lambda theta: tensor_ascent(theta, large),
        unit_vectors(20, 20, generator),
        inverse_temperature=6.0,
        h=0.2 / 20,
        steps=1500,
        exponent=3,
        generator=generator,
    )
    trace = float(overlap(hot.pooled().direction, target / target.norm()))
    return Measured({"trace": trace, "direction": float(overlap(cold.pooled().direction, direction))})


@claim(
    {
        "slope": Expected("log–log slope over d of the n at which the average has overlap ½", "k/2 = 1.5", 1.0, 2.0),
        "last_at": Expected("overlap of the last iterate there, mean over d", "far below", None, 0.45),
    },
    source="n ≳ d^{k/2}; d = 20, 35, 60, 100",
    seeds=1,
    quick=False,
)  # fmt: skip
def scaling(seed: int) -> Measured:
    """The smallest n that suffices, by interpolation in log n over factors of d^{3/2}."""
    dimensions, needed, lasts = (20, 35, 60, 100), [], []
    series: dict[str, list[float]] = {}
    for d in dimensions:
        sizes = [CLIENTS * round(factor * d**1.5 / CLIENTS) for factor in (1, 2, 4, 8, 16)]
        curve = []
        for n in sizes:
            pairs = [federated(3, d, n, 0.5 / math.sqrt(d), 6000, 100 * seed + each) for each in range(4)]
            curve.append((float(np.mean([a for a, _ in pairs])), float(np.mean([b for _, b in pairs]))))
        averages = np.maximum.accumulate([average for average, _ in curve])
        needed.append(float(np.exp(np.interp(0.5, averages, np.log(sizes)))))
        lasts.append(float(np.interp(math.log(needed[-1]), np.log(sizes), [last for _, last in curve])))
        series |= {f"n {d}": [float(n) for n in sizes], f"average {d}": [a for a, _ in curve]}
        series[f"last {d}"] = [b for _, b in curve]
    slope = float(np.polyfit(np.log(dimensions), np.log(needed), 1)[0])
    series |= {"d": [float(d) for d in dimensions], "needed": needed}
    return Measured({"slope": slope, "last_at": float(np.mean(lasts))}, series)


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    left, right = figure.subplots(1, 2)
    series = found["scaling"][0].series
    for number, d in enumerate(series["d"]):
        name = f"{d:g}"
        left.semilogx(series[f"n {name}"], series[f"average {name}"], f"C{number}", label=f"d = {name}")
        left.semilogx(series[f"n {name}"], series[f"last {name}"], f"C{number}--", linewidth=1)
    left.set(xlabel="n", ylabel="overlap (dashed: last iterate)")
    left.legend(fontsize=6)
    slope = found["scaling"][0].values["slope"]
    right.loglog(series["d"], series["needed"], "o-", label=f"slope {slope:.2f}")
    right.set(xlabel="d", ylabel="n at overlap ½")
    right.legend(fontsize=7)
