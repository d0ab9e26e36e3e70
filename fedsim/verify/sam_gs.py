"""SAM-GS: gradient surgery by similarity in magnitude (arXiv 2506.06130)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.optim.sam_gs import SamGS
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim, curves_of

PARTS = ("fedsim.optim.sam_gs", "strategies.sam_gs", "strategies.pcgrad", "strategies.cagrad")
MORE = ("fedsim.verify.two_objectives", "fedsim.verify.sam_gs_scenario")
SIZE = (9, 6)
STARTS = [[-8.0, 5.0], [-3.0, 7.5], [0.0, 10.0], [3.0, 7.5], [8.0, 5.0], [-10.0, -3.0], [10.0, -3.0]]
MIDDLE = (0.0, -8.34)


def objectives(x: Tensor) -> Tensor:
    """(2, …): the two objectives of CAGrad's and Nash-MTL's toy."""
    x1, x2 = x[..., 0], x[..., 1]
    f1 = (0.5 * (-x1 - 7) - torch.tanh(-x2)).abs().clamp(min=5e-6).log() + 6
    f2 = (0.5 * (-x1 + 3) + torch.tanh(-x2) + 2).abs().clamp(min=5e-6).log() + 6
    up, down = torch.tanh(x2 * 0.5).clamp(min=0), torch.tanh(-x2 * 0.5).clamp(min=0)
    bowl1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    bowl2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    return torch.stack([f1 * up + bowl1 * down, f2 * up + bowl2 * down])


def _arrived(x: Tensor) -> Tensor:
    return (x - torch.tensor(MIDDLE)).abs().amax(-1) < 0.1


@claim(
    {
        "sam_gs": Expected("starts that reach the middle of the Pareto front, (0, −8.34)", "7 of 7", 7, 7),
        "adam": Expected("the same by Adam on the sum", "3 of 7", 3, 3),
    },
    source="toy 1; SAM-GS lr .1, γ .1, rescaled, ≤ 10,000 steps; Adam lr 1e-3, 35,000 steps",
    exact=True,
    quick=False,
)
def toy(seed: int) -> Measured:
    """Seven starts."""
    series: dict[str, list[float]] = {}
    reached = 0
    for number, start in enumerate(STARTS):
        x = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        optimizer = SamGS([x], lr=0.1, gamma=0.1, rescale=True)
        path = []
        for _ in range(10_000):
            path.append(x.detach().tolist())
            optimizer.step(partial(objectives, x))
            if bool(_arrived(x.detach())):
                break
        reached += bool(_arrived(x.detach()))
        series |= _curves(f"sam_gs {number}", path)
    together = nn.Parameter(torch.tensor(STARTS, dtype=torch.float64))
    adam, paths = torch.optim.Adam([together], lr=1e-3), []
    for step in range(35_000):
        if step % 500 == 0:
            paths.append(together.detach().clone())
        adam.zero_grad()
        objectives(together).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
    for number in range(len(STARTS)):
        series |= _curves(f"adam {number}", [path[number].tolist() for path in [*paths, together.detach()]])
    return Measured({"sam_gs": float(reached), "adam": float(_arrived(together.detach()).sum())}, series)


def _curves(name: str, path: list[list[float]]) -> dict[str, list[float]]:
    every = max(1, len(path) // 200)
    shown = [*path[::every], path[-1]]
    return {f"{name} x": [point[0] for point in shown], f"{name} y": [point[1] for point in shown]}


@claim(
    {"near": Expected("one start, 200 steps at lr .3: largest distance of x_1 from the middle", "near", None, 0.1)},
    source="toy 1, from (10, −3)",
    exact=True,
)
def one_start(seed: int) -> Measured:
    """The toy in short."""
    x = nn.Parameter(torch.tensor(STARTS[6], dtype=torch.float64))
    optimizer = SamGS([x], lr=0.3, gamma=0.1, rescale=True)
    for _ in range(200):
        optimizer.step(lambda: objectives(x))
    return Measured({"near": abs(float(x.detach()[0]))})


RULES: dict[str, dict[str, Any]] = {
    "fedavg": {"defenses": ["fedavg"]},
    "sam_gs": {"defenses": [{"name": "sam_gs", "gamma": 0.9}], "optimizer": {"name": "adam", "lr": 0.01}},
    "fedadam": {"defenses": ["fedavg"], "optimizer": {"name": "adam", "lr": 0.01}},
    "pcgrad": {"defenses": ["pcgrad"]},
    "cagrad": {"defenses": [{"name": "cagrad", "c": 0.4}]},
    "pcgrad_adam": {"defenses": ["pcgrad"], "optimizer": {"name": "adam", "lr": 0.01}},
    "cagrad_adam": {"defenses": [{"name": "cagrad", "c": 0.4}], "optimizer": {"name": "adam", "lr": 0.01}},
}


_momentum = "lower, as beside FedAvg and for the same reason: PCGrad and CAGrad go by angles, which do differ here"


@claim(
    {
        f"{name}_{what}": Expected(f"{name}: {text} after 40 rounds", "–")
        for name in RULES
        for what, text in (("accuracy", "accuracy"), ("worst", "accuracy of the worst tenth of clients"))
    }
    | {
        "gap": Expected(
            "accuracy of SAM-GS with Adam less that of FedAvg", "no lower", -0.25, 0.05, differs=(
                "lower: we believe since clients of two labels differ in direction, not in size, so that Ψ is near 1 "
                "and the rule is its momentum branch; with the same Adam FedAvg is ahead"
            )
        ),
        "gap_pcgrad": Expected(
            "accuracy of SAM-GS less that of PCGrad, both with Adam", "no lower", -0.35, -0.05, differs=_momentum
        ),
        "gap_cagrad": Expected(
            "accuracy of SAM-GS less that of CAGrad, both with Adam", "no lower", -0.3, -0.03, differs=_momentum
        ),
    },
    source="clients as tasks: digits, 20 clients of two labels each, 10 a round; ours",
    quick=False,
)  # fmt: skip
def label_skew(seed: int) -> Measured:
    """Server rules on label skew."""
    values: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    for name, server in RULES.items():
        scenario = Scenario(
            seed=seed,
            rounds=40,
            data={"dataset": "digits", "partition": "shards", "clients": 20},
            model={"name": "mlp", "hidden": [32]},
            client={"per_round": 10, "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.05}},
            server=server,
            evaluate={"every": 4, "clients": 20},
            engine={"workers": 1},
        )
        lines = [line for line in simulate(scenario).lines if line.get("accuracy") is not None]
        series["round"] = [float(line["round"]) for line in lines]
        series[name] = [float(line["accuracy"]) for line in lines]
        last = lines[-1]
        values |= {f"{name}_accuracy": float(last["accuracy"]), f"{name}_worst": float(last["worst10"])}
    values["gap"] = values["sam_gs_accuracy"] - values["fedavg_accuracy"]
    for rule in ("pcgrad", "cagrad"):
        values[f"gap_{rule}"] = values["sam_gs_accuracy"] - values[f"{rule}_adam_accuracy"]
    return Measured(values, series)


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    """The toy's trajectories on the sum of both objectives; label skew; two objectives on a client."""
    above, below = figure.subfigures(2, 1)
    series = curves_of(found, "toy")
    x, y = torch.meshgrid(torch.linspace(-11, 11, 120), torch.linspace(-11, 11, 120), indexing="xy")
    height = objectives(torch.stack([x, y], -1)).sum(0)
    front = torch.linspace(-7, 7, 2)
    for axes, name in zip(above.subplots(1, 2, sharey=True), ("sam_gs", "adam"), strict=True):
        axes.set_gid("toy")
        axes.set(title={"sam_gs": "SAM-GS", "adam": "Adam on the sum"}[name])
        if not series:
            continue
        axes.contour(x, y, height, 15, cmap="Greys", linewidths=0.5)
        axes.plot(front, torch.full_like(front, MIDDLE[1]), "0.5", linewidth=3, label="Pareto front")
        for number in range(len(STARTS)):
            axes.plot(series[f"{name} {number} x"], series[f"{name} {number} y"], linewidth=1)
            axes.plot(*STARTS[number], "ko", markersize=2)
        axes.plot(*MIDDLE, "k*")
        axes.legend(fontsize=6)
    skew, main, error = below.subplots(1, 3)
    for axes, key in ((skew, "label_skew"), (main, "two_objectives"), (error, "two_objectives")):
        axes.set_gid(key)
    series = curves_of(found, "label_skew")
    for name, values in series.items():
        if name != "round":
            skew.plot(series["round"], values, linewidth=1, label=name)
    skew.set(title="server rule, label skew", xlabel="round", ylabel="accuracy")
    colours: dict[str, str] = {}
    for number, result in enumerate(found.get("two_objectives", ())):
        for name, values in result.series.items():
            method, what = name.rsplit(" ", 1)
            colour = colours.setdefault(method, f"C{len(colours)}")
            axes = main if what == "accuracy" else error
            axes.plot(values, color=colour, linewidth=1, label=None if number else method)
    main.set(title="two objectives: labels, each seed", xlabel="round")
    error.set(title="reconstruction, each seed", xlabel="round")
    for axes in (skew, main, error):
        if axes.lines:
            axes.legend(fontsize=6)
