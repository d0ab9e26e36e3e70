"""Harmonic heads over training: their weights, the classes' centres, label skew, and what a distance costs."""

from __future__ import annotations

import time
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.losses import HarmonicHead
from fedsim.losses.harmonic import Distance
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim
from fedsim.verify.digits import split

WATTS = 15.0
"""Assumed power of one core under load; nothing here is measured with a meter."""


def _alignment(weight: Tensor, features: Tensor, labels: Tensor) -> float:
    """Mean cosine of a class's row with the centre of its features, both less their means over classes."""
    centres = torch.stack([features[labels == each].mean(0) for each in range(len(weight))])
    rows, centres = weight - weight.mean(0), centres - centres.mean(0)
    return float(functional.cosine_similarity(rows, centres, dim=1).mean())


@claim(
    {
        "growth_cross_entropy": Expected(
            "norm of the head over training, cross-entropy, last over first", "grows", 1.3
        ),
        "growth_harmonic": Expected("the same, harmonic", "bounded", None, 1.5),
        "growth": Expected("late growth, second half of training: cross-entropy's factor over harmonic's", "> 1", 1.0),
        "centres_harmonic": Expected("cosine of a prototype with its class's centre, harmonic", "near 1", 0.8),
        "centres_cross_entropy": Expected("the same, cross-entropy", "lower"),
        "centres": Expected("harmonic less cross-entropy", "> 0", 0.0),
    },
    source="2502.01628: weights converge to class centres, no growth without end; digits, MLP 64-64-10, "
    "AdamW 3e-3, 100 epochs",
    quick=False,
    paper="harmonic",
)
def weights(seed: int) -> Measured:
    """Where the rows of the head go."""
    x, y, *_ = split(seed, stratified=True)
    values: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    for name in ("harmonic", "cross_entropy"):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        head: Any = HarmonicHead(64, 10) if name == "harmonic" else nn.Linear(64, 10)
        optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=3e-3, weight_decay=0.0)
        norms, cosines = [], []
        for _ in range(100):
            for index in torch.randperm(len(x)).split(64):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                functional.cross_entropy(head(body(x[index])), y[index]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                norms.append(float(head.weight.norm()))
                cosines.append(_alignment(head.weight, body(x), y))
        series |= {f"norm {name}": norms, f"cosine {name}": cosines}
        values |= {f"growth_{name}": norms[-1] / norms[0], f"centres_{name}": cosines[-1]}
    late = {name: series[f"norm {name}"][-1] / series[f"norm {name}"][50] for name in ("harmonic", "cross_entropy")}
    values["growth"] = late["cross_entropy"] / late["harmonic"]
    values["centres"] = values["centres_harmonic"] - values["centres_cross_entropy"]
    return Measured(values, series)


LOSSES: dict[str, Any] = {
    "cross_entropy": "cross_entropy",
    "harmonic": {"name": "harmonic"},
    "masked": {"name": "harmonic", "mask_absent": True},
}


@claim(
    {
        "cross_entropy": Expected("accuracy after 40 rounds, cross-entropy", "–"),
        "harmonic": Expected("the same, harmonic", "–"),
        "masked": Expected("the same, harmonic, classes that a client does not hold masked", "–"),
        "masking": Expected(
            "masked less not masked, mean over the rounds 1 to 40",
            "> 0",
            -0.15,
            0.0,
            differs="masking costs 3 to 6 points in the mean over rounds; we believe that with two labels a client the "
            "push that absent prototypes get is what keeps them apart from the two that are pulled",
        ),
        "heads": Expected("harmonic less cross-entropy, mean over the rounds 1 to 40", "> 0", 0.1),
    },
    source="label skew, ours: digits, 20 clients of two labels, 10 a round, 2 epochs, MLP 64-32-10",
    quick=False,
    paper="harmonic",
)
def label_skew(seed: int) -> Measured:
    """A client that lacks a class only pushes its prototype away."""
    series: dict[str, list[float]] = {}
    for name, loss in LOSSES.items():
        scenario = Scenario(
            seed=seed,
            rounds=40,
            data={"dataset": "digits", "partition": "shards", "clients": 20},
            model={"name": "mlp", "hidden": [32]},
            client={"per_round": 10, "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.05}, "loss": loss},
            evaluate={"every": 1},
            engine={"workers": 1},
        )
        series[f"skew {name}"] = [float(line["accuracy"]) for line in simulate(scenario).lines]
    means = {name: float(np.mean(series[f"skew {name}"][1:])) for name in LOSSES}
    values = {name: series[f"skew {name}"][-1] for name in LOSSES}
    values |= {"masking": means["masked"] - means["harmonic"], "heads": means["harmonic"] - means["cross_entropy"]}
    return Measured(values, series)


@claim(
    {"linear_ms": Expected("a linear head, forward and backward, ms", "–")}
    | {f"{name}_ms": Expected(f"{name.replace('_', ' ')} head, ms", "–") for name in get_args(Distance)}
    | {f"{name}_mj": Expected(f"{name.replace('_', ' ')}: mJ at an assumed 15 W", "–") for name in get_args(Distance)},
    source="2603.10225 weighs sustainability: 256 rows, 128 features, 100 classes, median of 9, one core; "
    "of this machine",
    paper="harmonic",
)
def cost(seed: int) -> Measured:
    """Time of a step of the head alone, and energy as seconds × a stated wattage."""
    x, y = torch.randn(256, 128, generator=torch.Generator().manual_seed(seed)), torch.arange(256) % 100
    values = {}
    heads: dict[str, Any] = {name: HarmonicHead(128, 100, distance=name) for name in get_args(Distance)}
    for name, head in {"linear": nn.Linear(128, 100), **heads}.items():
        taken = []
        for _ in range(11):
            began = time.perf_counter()
            functional.cross_entropy(head(x), y).backward()  # type: ignore[no-untyped-call]
            taken.append(1e3 * (time.perf_counter() - began))
        values[f"{name}_ms"] = float(np.median(taken[2:]))
        if name != "linear":
            values[f"{name}_mj"] = values[f"{name}_ms"] * WATTS
    return Measured(values)
