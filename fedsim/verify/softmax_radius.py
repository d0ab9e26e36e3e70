"""Ghosts of softmax: the radius of a step (arXiv 2603.13552)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.optim.softmax_radius import RadiusControl, binary_radius, radius_bound
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim, curves_of
from fedsim.verify.digits import split
from fedsim.verify.softmax_models import architecture

PARTS = ("fedsim.optim.softmax_radius", "strategies.softmax_cap", "strategies.softmax_radius")
MORE = ("fedsim.verify.softmax_sweep", "fedsim.verify.in_a_federation")
SIZE = (9, 5.6)
RATES = (1e-4, 1e-3, 1e-2)


def spike(lr: float, controlled: bool, seed: int) -> tuple[float, list[float]]:
    """MLP 64-128-10, Adam, batch 64, 200 steps, its rate ×1000 from step 50: test accuracy, training losses."""
    inputs, labels, test_inputs, test_labels = split(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    control = RadiusControl(adam, model)
    generator = np.random.default_rng(seed + 11)
    order: list[int] = []
    losses = []
    for step in range(200):
        if step == 50:
            adam.param_groups[0]["lr"] = 1000 * lr
        if not order:
            order = generator.permutation(len(labels)).tolist()
        batch, order = order[:64], order[64:]
        adam.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        if controlled:
            control.step(inputs=inputs[batch])
        else:
            adam.step()
    with torch.no_grad():
        return float((model(test_inputs).argmax(1) == test_labels).double().mean()), losses


_plain = {1e-4: (0.947, 0.85, 1.0), 1e-3: (0.117, 0.0, 0.11), 1e-2: (0.100, 0.0, 0.2)}
_chance = (
    ".081 to .092 by seed, which is 29 to 33 of 360 images: we believe that one class is left for all of them, here as "
    "there, and that which one it is, and how many of the images are of it, is the draw's"
)
_controlled = {1e-4: ".969", 1e-3: ".958", 1e-2: ".975"}


@claim(
    {f"controlled_{lr:g}": Expected(f"accuracy with the control, η_0 = {lr:g}", _controlled[lr], 0.95) for lr in RATES}
    | {
        f"plain_{lr:g}": Expected(
            f"accuracy without, η_0 = {lr:g}", f"{value:.3f}", low, high, differs=_chance if lr == 1e-3 else ""
        )
        for lr, (value, low, high) in _plain.items()
    },
    source="experiments/lrspike: the rate ×1000 from step 50",
)
def lrspike(seed: int) -> Measured:
    """A thousandfold spike of the learning rate on the digits."""
    values, series = {}, {}
    for lr in RATES:
        for name, controlled in (("controlled", True), ("plain", False)):
            values[f"{name}_{lr:g}"], series[f"{name} {lr:g}"] = spike(lr, controlled, seed)
    return Measured(values, series)


@claim(
    {
        "binary": Expected(
            "relative error of sqrt(δ² + π²)/Δ against the nearest complex zero, two classes", "0", 0, 1e-9
        ),
        "inside": Expected("zeros of the partition function within π/Δ, five classes, 40 draws", "0", 0, 0),
    },
    source="eq. 9 and the lower bound ρ_a",
)
def zeros(seed: int) -> Measured:
    """The radius against the zeros themselves, by the argument principle."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(20, 2, generator=generator, dtype=torch.float64)
    slopes = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    nearest = [
        abs((-(z[1] - z[0]) + 1j * math.pi) / (a[1] - a[0]))
        for z, a in zip(logits.tolist(), slopes.tolist(), strict=True)
    ]
    exact = torch.tensor(nearest, dtype=torch.float64)
    binary = float(((binary_radius(logits, slopes) - exact).abs() / exact).max())
    logits = 2 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    slopes = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    inside = 0
    for z, a, bound in zip(logits.numpy(), slopes.numpy(), radius_bound(slopes).tolist(), strict=True):
        circle = 0.999 * bound * np.exp(2j * np.pi * np.linspace(0, 1, 20_001))
        turns = np.unwrap(np.angle(np.exp(z[:, None] + a[:, None] * circle).sum(0)))
        inside += abs(round((turns[-1] - turns[0]) / (2 * np.pi)))
    return Measured({"binary": binary, "inside": float(inside)})


_spiked = {"transformer": (".953", ".376"), "mlp_ln": (".939", ".515"), "cnn_bn": (".699", ".111")}
_size = "data, widths and the state of training at the step are ours; what holds is the order of the two"
_otherwise = dict.fromkeys(
    ("transformer_controlled", "transformer_clipped", "mlp_ln_clipped", "cnn_bn_controlled"), _size
)
_near: dict[str, tuple[float | None, float]] = {
    "transformer_controlled": (0.55, 0.8),
    "transformer_clipped": (None, 0.2),
    "mlp_ln_controlled": (0.9, 0.98),
    "mlp_ln_clipped": (None, 0.2),
    "cnn_bn_controlled": (0.9, 1.0),
    "cnn_bn_clipped": (0.05, 0.2),
}


@claim(
    {
        f"{name}_{how}": Expected(
            f"{name.replace('_', ' + ')}: accuracy right after the step, {how}",
            figures[i],
            low=_near[f"{name}_{how}"][0],
            high=_near[f"{name}_{how}"][1],
            differs=_otherwise.get(f"{name}_{how}", ""),
        )
        for name, figures in _spiked.items()
        for i, how in enumerate(("controlled", "clipped"))
    }
    | {
        f"{name}_gain": Expected(f"{name.replace('_', ' + ')}: controlled less clipped", "> 0", 0.05)
        for name in _spiked
    },
    source="one step at ×10,000 after 100 steps of Adam at 1e-3; ours on digits, layers of our own size",
    quick=False,
)
def one_step(seed: int) -> Measured:
    """A single step of a rate ×10,000, under the control or with the gradient clipped to norm 1."""
    inputs, labels, test_inputs, test_labels = split(seed)
    values: dict[str, float] = {}
    for name in _spiked:
        for how in ("controlled", "clipped"):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = architecture(name)
            adam = torch.optim.Adam(model.parameters(), lr=1e-3)
            control = RadiusControl(adam, model)
            generator = np.random.default_rng(seed)
            for step in range(101):
                batch = torch.from_numpy(generator.choice(len(labels), 64, replace=False))
                adam.param_groups[0]["lr"] = 10.0 if step == 100 else 1e-3
                adam.zero_grad()
                nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
                if how == "clipped":
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    adam.step()
                else:
                    control.step(inputs=inputs[batch])
            model.eval()
            with torch.no_grad():
                hits = model(test_inputs).argmax(1) == test_labels
            values[f"{name}_{how}"] = float(hits.double().mean())
        values[f"{name}_gain"] = values[f"{name}_controlled"] - values[f"{name}_clipped"]
    return Measured(values)


@claim(
    {
        "plain": Expected("accuracy after 15 rounds, one of 10 clients at ×1000, FedAvg", "broken", None, 0.5),
        "capped": Expected("the same behind the server's cap s = min(1, π / max Δ_k)", "higher", 0.5),
        "filtered": Expected("the same, r of each update as a score, 7 of 10 kept", "unharmed", 0.85),
    },
    source="Federated use, ours",
)
def server_cap(seed: int) -> Measured:
    """A client that multiplies its update by 1000 in a window of three rounds."""
    base: dict[str, Any] = {
        "seed": seed,
        "rounds": 15,
        "data": {"dataset": "digits", "clients": 10, "root": 100},
        "model": {"name": "mlp", "hidden": [32]},
        "client": {"per_round": 10, "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
        "adversary": {
            "count": 1,
            "attacks": [{"name": "model_replacement", "scale": 1000.0}],
            "schedule": {"name": "window", "start": 8, "stop": 10},
        },
        "engine": {"workers": 1},
        "evaluate": {"every": 15},
    }
    defenses: dict[str, list[Any]] = {
        "plain": ["fedavg"],
        "capped": ["softmax_cap"],
        "filtered": [{"name": "softmax_radius", "keep": 7}],
    }
    found = {}
    for name, defense in defenses.items():
        lines = simulate(Scenario(**base, server={"defenses": defense})).lines
        found[name] = float(lines[-1]["accuracy"])
    return Measured(found)


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    panels = figure.subplots(2, 3)
    for axes, lr in zip(panels[0], RATES, strict=True):
        axes.set_gid("lrspike")
        axes.set(title=f"η = {lr:g}, ×1000 from step 50", xlabel="step", ylabel="loss")
        if series := curves_of(found, "lrspike"):
            for name in ("plain", "controlled"):
                axes.semilogy([min(max(loss, 1e-4), 1e6) for loss in series[f"{name} {lr:g}"]], label=name, linewidth=1)
            axes.axvline(50, color="0.8", linewidth=1)
            axes.legend(fontsize=6)
    for axes in panels[1]:
        axes.set_gid("sweep")
    series = curves_of(found, "sweep")
    if not series:
        return
    names = [name.removeprefix("fails ") for name in series if name.startswith("fails ")]
    for name in names:
        panels[1][0].semilogx(series["r"], series[f"fails {name}"], linewidth=1, label=name)
        panels[1][1].semilogy(series[f"onset {name}"], ".-", linewidth=1)
        panels[1][2].semilogy(series[f"r {name}"], ".-", linewidth=1)
    panels[1][0].axvline(1, color="0.8", linewidth=1)
    panels[1][0].set(xlabel="r", ylabel="share of failures")
    panels[1][0].legend(fontsize=6)
    for axes, label in zip(panels[1][1:], ("onset, length", "onset, in ρ_a(T)"), strict=True):
        axes.set_xticks(range(5), ("¼", "½", "1", "2", "4"))
        axes.set(xlabel="temperature", ylabel=label)
