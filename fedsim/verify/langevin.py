"""Langevin dynamics with weight averaging (arXiv 2603.06028)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedsim.data.planted import (
    hermite,
    overlap,
    partial_trace,
    single_index,
    single_index_ascent,
    tensor_ascent,
    tensor_pca,
    unit_vectors,
)
from fedsim.errors import FedsimError
from fedsim.optim.langevin import normalized_sgd, spherical_langevin, spherical_step
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, Row, claim, curves_of, seed_mean

PARTS = ("fedsim.optim.langevin", "fedsim.data.planted")
MORE = ("fedsim.verify.in_a_federation",)
SIZE = (9, 3.4)
CLIENTS = 10


def federated(
    k: int,
    d: int,
    n: int,
    lr: float,
    steps: int,
    seed: int,
    clients: int = CLIENTS,
    one_pass: bool = False,
    batch: int = 1,
) -> tuple[float, float]:
    """Overlap of the server's mean of averages, and of the mean of last iterates; IID shards, a batch a step."""
    generator = torch.Generator().manual_seed(seed)
    data = single_index(n, d, k, generator)
    share = n // clients
    inputs = data.inputs[: share * clients].view(clients, share, d)
    targets = data.targets[: share * clients].view(clients, share)
    drawn = torch.randint(share, (steps, clients, batch), generator=generator)
    if one_pass:
        steps = share
        drawn = torch.arange(steps)[:, None, None].expand(steps, clients, 1)
    rows = torch.arange(clients)[:, None]

    def ascent(theta: Tensor, t: int) -> Tensor:
        return single_index_ascent(theta, inputs[rows, drawn[t]], targets[rows, drawn[t]], k)

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
        "average": Expected("overlap of the mean of client averages", "≥ .95 (.964 in one run)", 0.95),
        "last": Expected("overlap of the mean of last iterates", ".309", None, 0.4),
        "online": Expected("plain SGD, one pass, averaged: the control, which averaging helps too", ".86", 0.8, 0.95),
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
    {
        name.format(batch): Expected(text.format(batch), *bounds)
        for batch in (4, 16)
        for name, text, *bounds in (
            ("average_{}", "batches of {}: overlap of the average", "> .9", 0.9),
            ("last_{}", "batches of {}: overlap of the mean of last iterates", "less"),
        )
    },
    source="the conjecture, mini-batch SGD with averaging: k = 3, d = 20, n = 6000, η = .15, 3000 steps, 10 clients",
)
def mini_batches(seed: int) -> Measured:
    """More examples a step are a colder walk: the average still recovers, the last iterate recovers more."""
    values: dict[str, float] = {}
    for batch in (4, 16):
        found = federated(3, 20, 6000, 0.15, 3000, seed, batch=batch)
        values |= {f"average_{batch}": found[0], f"last_{batch}": found[1]}
    return Measured(values)


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
        "direction": Expected("tensor PCA, d = 20, n = 4000: overlap of the average with the direction", "high", 0.8),
        "last": Expected("the same of last iterates, mean over 20 trajectories", "less", None, 0.8),
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
    last = float(overlap(cold.last, direction).mean())
    return Measured({"trace": trace, "direction": float(overlap(cold.pooled().direction, direction)), "last": last})


@claim(
    {
        "slope": Expected(
            "log–log slope over d of the n at which the average has overlap ½",
            "k/2 = 1.5",
            1.2,
            1.8,
        ),
        "last_at": Expected(
            "overlap of the last iterate there, mean over d; at 59 of 60 points drawn it is below ½, and has no slope",
            "far below",
            None,
            0.45,
        ),
    },
    source="n ≳ d^{k/2}; d = 20, 35, 60, 100; η = .5/√d, 6000 (d/20)³ steps, 10 clients",
    quick=False,
)
def scaling(seed: int) -> Measured:
    """The smallest n that suffices, by interpolation in log n over factors of d^{3/2}.

    Steps grow with d³: ten walks' average of T steps is off by about √(.8 / T), and the direction stands in it with
    6 d^{-3/2}, whatever n is.
    """
    dimensions, needed, lasts = (20, 35, 60, 100), [], []
    series: dict[str, list[float]] = {}
    for d in dimensions:
        sizes = [CLIENTS * round(factor * d**1.5 / CLIENTS) for factor in (1, 2, 4, 8, 16)]
        found = side_by_side(d, sizes, 4, 0.5 / math.sqrt(d), round(6000 * (d / 20) ** 3), seed)
        averages, last = (each.mean(1).tolist() for each in found)
        rising = np.maximum.accumulate(averages)
        if not rising[0] < 0.5 < rising[-1]:
            raise FedsimError(f"d = {d}: overlap ½ is not between n = {sizes[0]} and {sizes[-1]}")
        needed.append(float(np.exp(np.interp(0.5, rising, np.log(sizes)))))
        lasts.append(float(np.interp(math.log(needed[-1]), np.log(sizes), last)))
        series |= {f"n {d}": [float(n) for n in sizes], f"average {d}": averages, f"last {d}": last}
    slope = float(np.polyfit(np.log(dimensions), np.log(needed), 1)[0])
    series |= {"d": [float(d) for d in dimensions], "needed": needed}
    return Measured({"slope": slope, "last_at": float(np.mean(lasts))}, series)


def side_by_side(
    d: int, sizes: Sequence[int], draws: int, lr: float, steps: int, seed: int, k: int = 3, block: int = 1000
) -> tuple[Tensor, Tensor]:
    """(sizes, draws) overlaps of the mean of averages and of the mean of last iterates, all federations at once."""
    generator = torch.Generator().manual_seed(seed)
    groups = [single_index(n, d, k, generator) for n in sizes for _ in range(draws)]
    inputs, targets = torch.cat([each.inputs for each in groups]), torch.cat([each.targets for each in groups])
    shares = torch.tensor([n // CLIENTS for n in sizes for _ in range(draws * CLIENTS)])
    first = shares.cumsum(0) - shares  # IID shards, one behind the other
    chosen: list[Tensor] = []

    def ascent(theta: Tensor, t: int) -> Tensor:
        if t % block == 0:
            chosen[:] = (torch.rand(block, len(shares), generator=generator) * shares).long() + first
        now = chosen[t % block]
        return single_index_ascent(theta, inputs[now, None], targets[now, None], k)

    start = unit_vectors(len(groups), d, generator).repeat_interleave(CLIENTS, 0)
    walked = normalized_sgd(ascent, start, lr=lr, steps=steps, exponent=k)
    directions = torch.stack([each.direction for each in groups])
    means = [each.view(len(groups), CLIENTS, d).mean(1) for each in (walked.mean, walked.last)]
    average, last = (functional.cosine_similarity(each, directions).view(len(sizes), draws) for each in means)
    return average, last.abs()


@claim(
    {
        "slope": Expected(
            "log–log slope over d of the n where one pass of SGD, from a warm start, has overlap ½",
            "k − 1 = 2",
            1.6,
            2.4,
        ),
    },
    source="online SGD needs n ≳ d^{k−1}; d = 20, 35, 60, 100; η = .5 d^{−3/2}, 64 starts at overlap 1/√d",
    quick=False,
)  # fmt: skip
def online(seed: int) -> Measured:
    """The last iterate of one pass: how many examples it takes, the median over starts."""
    dimensions = (20, 35, 60, 100)
    needed = [float(np.median(first_passage(d, 60 * d * d, 0.5 * d**-1.5, 64, seed))) for d in dimensions]
    slope = float(np.polyfit(np.log(dimensions), np.log(needed), 1)[0])
    return Measured({"slope": slope}, {"d": [float(d) for d in dimensions], "needed": needed})


@torch.no_grad()
def first_passage(d: int, most: int, lr: float, starts: int, seed: int, k: int = 3) -> list[float]:
    """For each start how many fresh examples one pass of SGD takes to overlap ½, up to the 60th percentile."""
    generator = torch.Generator().manual_seed(seed)
    direction = unit_vectors(1, d, generator)[0]
    away = unit_vectors(starts, d, generator)
    away = away - (away @ direction)[:, None] * direction
    theta = direction / math.sqrt(d) + math.sqrt(1 - 1 / d) * away / away.norm(dim=1, keepdim=True)
    times = torch.full((starts,), math.inf)
    for first in range(0, most, 1000):
        inputs = torch.randn(1000, starts, 1, d, generator=generator)
        targets = hermite(k, inputs @ direction)
        for t in range(1000):
            theta = spherical_step(theta, lr * single_index_ascent(theta, inputs[t], targets[t], k))
            now = overlap(theta, direction) >= 0.5
            times = torch.where(now & times.isinf(), float(first + t + 1), times)
        if float(times.isfinite().double().mean()) > 0.6:
            break
    return [float(time) for time in times]


@claim(
    {
        "langevin": Expected("test accuracy, clients upload the average of Langevin iterates, τ = 1e-6", "–"),
        "average": Expected("test accuracy, clients upload the average of SGD's iterates, τ = 0", "–"),
        "sgd": Expected("test accuracy, clients upload SGD's last iterate", "–"),
        "gap": Expected("Langevin less SGD's last iterate", "–"),
    },
    source="Euclidean, on a network: digits, 20 clients, Dirichlet .5, 10 a round, MLP 64-64-10, 30 rounds; ours",
    quick=False,
)
def networks(seed: int) -> Measured:
    """While the loss falls fast the average over a client's few steps lags behind its last iterate."""
    parts: dict[str, dict[str, Any]] = {
        "langevin": {"name": "langevin", "lr": 0.1, "temperature": 1e-6},
        "average": {"name": "langevin", "lr": 0.1, "temperature": 0.0},
        "sgd": {"name": "sgd", "lr": 0.1},
    }
    values: dict[str, float] = {}
    for name, part in parts.items():
        scenario = Scenario(
            seed=seed,
            rounds=30,
            data={"partition": {"name": "dirichlet", "alpha": 0.5}, "clients": 20},
            client={"per_round": 10, "epochs": 2, "optimizer": part},
            evaluate={"every": 30},
            engine={"workers": 1},
        )
        values[name] = float(simulate(scenario).lines[-1]["accuracy"])
    values["gap"] = values["langevin"] - values["sgd"]
    return Measured(values)


def derived(found: Mapping[str, Sequence[Measured]]) -> list[Row]:
    """What the average does where there are too few examples for it."""
    series = [each.series for each in found.get("scaling", ()) if "d" in each.series]
    first = [float(np.mean([each[f"average {d:g}"][0] for d in each["d"]])) for each in series]
    want = Expected("overlap of the average at the smallest n, d^{3/2}, mean over d", "–")
    return [Row("langevin", "scaling.smallest", want, "`scaling`; signed", first)]


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    left, right = figure.subplots(1, 2)
    left.set_gid("scaling")
    right.set_gid("scaling online")
    series = curves_of(found, "scaling")
    for number, d in enumerate(series.get("d", ())):
        name = f"{d:g}"
        left.semilogx(series[f"n {name}"], series[f"average {name}"], f"C{number}", label=f"d = {name}")
        left.semilogx(series[f"n {name}"], series[f"last {name}"], f"C{number}--", linewidth=1)
    left.set(xlabel="n", ylabel="overlap, signed (dashed: |last iterate|)")
    if left.lines:
        left.legend(fontsize=6)
    for key, label in {"scaling": "average", "online": "online SGD"}.items():
        series, slope = curves_of(found, key), seed_mean(found, key, "slope")
        if "needed" in series and slope is not None:
            right.loglog(series["d"], series["needed"], "o", label=f"{label}: slope {slope:.2f}")
            x, y = np.log(series["d"]), np.log(series["needed"])
            right.loglog(series["d"], np.exp(y.mean() + slope * (x - x.mean())), "0.6", linewidth=1)
    right.set(xlabel="d", ylabel="n at overlap ½")
    if right.lines:
        right.legend(fontsize=7)
