"""diffGrad (arXiv 1909.11015)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.optim.diffgrad import DiffGrad
from fedsim.verify.claim import Expected, Measured, Row, claim, curves_of, seed_mean

PARTS = ("fedsim.optim.diffgrad",)
MORE = ("fedsim.verify.diffgrad_by_hand", "fedsim.verify.fashion")
SIZE = (11, 5.5)
BETAS = (0.95, 0.999)
Build = Callable[[list[Tensor]], torch.optim.Optimizer]


def f1(x: Tensor) -> Tensor:
    """(x + .3)² for x ≤ 0, (x − .2)² + .05 beyond."""
    return torch.where(x <= 0, (x + 0.3) ** 2, (x - 0.2) ** 2 + 0.05).sum()


def f2(x: Tensor) -> Tensor:
    """−40x − 35.15 for x ≤ −.9, x³ + x sin(8x) + .85 beyond."""
    return torch.where(x <= -0.9, -40 * x - 35.15, x**3 + x * torch.sin(8 * x) + 0.85).sum()


def f3(x: Tensor) -> Tensor:
    """x² for x ≤ −.5, .75 + x to −.4, −7x/8 to 0, 7x/8 to .4, .75 − x to .5, x² beyond."""
    pieces = [
        (x <= -0.5, x**2),
        (x <= -0.4, 0.75 + x),
        (x <= 0.0, -7 * x / 8),
        (x <= 0.4, 7 * x / 8),
        (x <= 0.5, 0.75 - x),
    ]
    value = x**2
    for where, piece in reversed(pieces):
        value = torch.where(where, piece, value)
    return value.sum()


def descend(build: Build, steps: int, loss: Callable[[Tensor], Tensor]) -> list[float]:
    """x_0 = −1, x_1, …: the gradient's tensor is updated in place, as in the paper's experiments."""
    x = nn.Parameter(torch.tensor([-1.0], dtype=torch.float64))
    x.grad = torch.zeros_like(x)
    optimizer, found = build([x]), [-1.0]
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)
        loss(x).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(float(x.detach()))
    return found


def _ours(parameters: Sequence[Tensor], aliased: bool = False) -> DiffGrad:
    return DiffGrad(parameters, lr=0.1, betas=BETAS, aliased=aliased)


@claim(
    {
        "f1_x1": Expected("F1: x_1", "-.919782", -0.9197825, -0.9197815),
        "f1_x2": Expected("F1: x_2", "-.865961", -0.8659615, -0.8659605),
        "f1_aliased": Expected("F1: x_2 where g_prev is a reference", "-.869950", -0.8699505, -0.8699495),
        "f1_adam": Expected("F1: where Adam ends, its local minimum", ".2001", 0.1996, 0.2006),
        "f1": Expected("F1: where diffGrad ends, the global minimum", "-.3", -0.31, -0.29),
        "f2": Expected("F2: value where diffGrad ends less where Adam ends", "diffGrad no higher", None, 0.01),
        "f3": Expected(
            "F3: value where diffGrad ends less where Adam ends",
            "diffGrad no higher",
            0.0,
            0.01,
            differs="both find the global minimum at 0 and swing in it to the end, as its walls have a slope of ±7/8: "
            "after step 300 diffGrad is .008 off and Adam .002; in five of the last twenty steps Adam is the farther",
        ),
    },
    source="Section III, functions F1 to F3, from −1, lr .1, β₁ .95, 300 steps",
    exact=True,
)
def functions(seed: int) -> Measured:
    """The three one-dimensional functions."""
    values: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    ends = {}
    for name, function in (("f1", f1), ("f2", f2), ("f3", f3)):
        ours = descend(_ours, 300, function)
        adam = descend(lambda p: torch.optim.Adam(p, lr=0.1, betas=BETAS), 300, function)
        series |= {f"{name} diffGrad": ours, f"{name} Adam": adam}
        ends[name] = ours[-1], adam[-1]
        at = [float(function(torch.tensor(end, dtype=torch.float64))) for end in ends[name]]
        values[name] = at[0] - at[1]
    aliased = descend(lambda p: _ours(p, aliased=True), 2, f1)
    first = series["f1 diffGrad"]
    values |= {"f1_x1": first[1], "f1_x2": first[2], "f1_aliased": aliased[2]}
    values |= {"f1": ends["f1"][0], "f1_adam": ends["f1"][1]}
    return Measured(values, series)


@claim(
    {"gap": Expected("largest difference from pytorch-optimizer ≥ 4 over 100 steps", "equal", None, 1e-12)},
    source="the formula, Algorithm 1",
)
def oracle(seed: int) -> Measured:
    """On given gradients so large that the 1e-15 which the oracle adds below its root does not count."""
    from fedsim.errors import DataMissing

    try:
        from pytorch_optimizer import DiffGrad as Theirs
    except ImportError as error:
        raise DataMissing("pytorch-optimizer ≥ 4 is not installed; accepted: pip install 'fedsim-flwr[dev]'") from error
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(200, generator=generator, dtype=torch.float64)
    gradients = 100 * torch.randn(100, 200, generator=generator, dtype=torch.float64)
    ends = []
    builds: list[Callable[..., Any]] = [DiffGrad, partial(Theirs, weight_decouple=False)]
    for build in builds:
        x = nn.Parameter(start.clone())
        optimizer = build([x], lr=0.01)
        for g in gradients:
            x.grad = g.clone()
            optimizer.step()
        ends.append(x.detach())
    return Measured({"gap": float((ends[0] - ends[1]).abs().max())})


@claim(
    {
        "friction": Expected(
            "mean ξ on a network, hardly more than the ½ of the aliased bug",
            ".502",
            0.5008,
            0.5014,
            differs="half as far from ½: ξ − ½ is a quarter of how much a gradient changes, and with this network and "
            "these batches it changes by .004 a step; on the convolutional networks (`activations`) .502 is met",
        ),
        "beside_half": Expected("test accuracy less that of Adam at lr/2, digits", "close", -0.03, 0.03),
    },
    source="the step is Adam's at lr·ξ; ours on digits, MLP 64-64-10, 10 epochs",
)
def network(seed: int) -> Measured:
    """What ξ is where there are many coordinates."""
    from fedsim.verify.digits import split

    inputs, labels, test_inputs, test_labels = split(seed)
    accuracies, mean = {}, math.nan
    for name in ("diffgrad", "half"):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        parameters = list(model.parameters())
        ours = DiffGrad(parameters, lr=1e-3, log_friction=True)
        optimizer: torch.optim.Optimizer = ours if name == "diffgrad" else torch.optim.Adam(parameters, lr=5e-4)
        seen = []
        for _ in range(10):
            for rows in torch.randperm(len(labels)).split(64):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                seen.append(ours.mean_friction())
        if name == "diffgrad":
            mean = sum(seen) / len(seen)
        accuracies[name] = float((model(test_inputs).argmax(1) == test_labels).double().mean())
    return Measured({"friction": mean, "beside_half": accuracies["diffgrad"] - accuracies["half"]})


ALIAS = ("diffgrad", "aliased")
_beyond = {
    "network": "mean ξ on digits less the ½ of the aliased bug",
    "fashion_central": "mean ξ, central, less that of the aliased variant",
    "fashion_federated": "mean ξ in a client's last step less that of the aliased variant",
    "activations": "mean ξ over the four networks less the ½ of the aliased bug",
}


def derived(found: Mapping[str, Sequence[Measured]]) -> list[Row]:
    """ξ beyond the aliased bug's, which is so close to it that bounds on ξ would let the bug through."""
    rows = []
    for key, said in _beyond.items():
        friction = "friction_diffgrad" if key.startswith("fashion") else "friction"
        values = [each.values for each in found.get(key, ())]
        off = [each[friction] - each.get("friction_aliased", 0.5) for each in values if friction in each]
        where = "the change of the gradient is seen; aliased, ξ is ½ from its second step on"
        rows.append(Row("diffgrad", f"{key}.beyond", Expected(said, "> 0", 1e-4), where, off))
    return rows


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    """The paths on the three functions; Fashion-MNIST central and federated; mean ξ and the four activations."""
    series = curves_of(found, "functions")
    above, below = figure.subfigures(2, 1)
    for axes, name, function in zip(above.subplots(1, 3), ("f1", "f2", "f3"), (f1, f2, f3), strict=True):
        axes.set_gid("functions")
        axes.set(title=name.upper(), xlabel="x")
        if series:
            line = torch.linspace(-1, 1, 400, dtype=torch.float64)
            axes.plot(line, [float(function(x)) for x in line], color="0.8")
            for method in ("diffGrad", "Adam"):
                path = torch.tensor(series[f"{name} {method}"])
                axes.plot(path, [float(function(x)) for x in path], ".", markersize=3, label=method)
            axes.legend(fontsize=6)
    *courses, frictions, networks = below.subplots(1, 4)
    for axes, key in zip(courses, ("fashion_central", "fashion_federated"), strict=True):
        axes.set_gid(key)
        series = curves_of(found, key)
        for method, values in series.items():
            if method != "round":
                over = series.get("round", [float(k + 1) for k in range(len(values))])
                style = "k" if method == "diffgrad" else "--"
                axes.plot(over, values, style, linewidth=1.5 if method == "diffgrad" else 1, label=method)
        where = "round" if "federated" in key else "epoch"
        axes.set(title=f"Fashion-MNIST, {key.partition('_')[2]}", xlabel=where, ylabel="test accuracy")
        if series:
            axes.legend(fontsize=6)
    draw_means(frictions, networks, found)


def draw_means(frictions: Any, networks: Any, found: dict[str, list[Measured]]) -> None:
    """Mean ξ − ½ beside the figure's .002; the activations' accuracies: bars over seeds, as in the table."""
    shown = {f"{key} {name}".strip(): (key, name) for key in ("fashion_central", "fashion_federated") for name in ALIAS}
    shown = {"network": ("network", ""), **shown, "activations": ("activations", "")}
    means = {label: seed_mean(found, key, f"friction_{name}".rstrip("_")) for label, (key, name) in shown.items()}
    known = {label.replace("_", " "): 1000 * (mean - 0.5) for label, mean in means.items() if mean is not None}
    frictions.set_gid("network fashion_central fashion_federated activations")
    if known:
        frictions.barh(list(known), list(known.values()), height=0.5)
        frictions.axvline(2, color="k", linewidth=1)
    frictions.invert_yaxis()
    frictions.tick_params(axis="y", labelsize=6)
    frictions.set(title="mean ξ less ½ (line: .502)", xlabel="thousandths")
    names = ("relu", "leaky_relu", "elu", "selu")
    for offset, method in zip((-0.27, 0.0, 0.27), ("diffgrad", "adam_half", "adam"), strict=True):
        heights = [seed_mean(found, "activations", f"{name}_{method}") for name in names]
        if None not in heights:
            networks.bar([k + offset for k in range(4)], heights, 0.25, label=method.replace("_half", ", lr/2"))
    networks.set_gid("activations")
    networks.set(title="CNN, test accuracy", ylim=(0.7, 0.85))
    if networks.patches:
        networks.set_xticks(range(4), [name.replace("_", "\n") for name in names], fontsize=6)
        networks.legend(fontsize=6)
