"""Gradient-normalized smoothness (arXiv 2506.13710)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fedsim.optim import gns, gns_curvature, gns_problems
from fedsim.optim.gns_problems import Problem
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim, curves_of

PARTS = ("fedsim.optim.gns", "fedsim.optim.gns_curvature", "fedsim.optim.gns_problems", "strategies.gns")
MORE = ("fedsim.verify.gns_pooled",)
SIZE = (9, 3.4)
MOST = 1000


def _run(problem: Problem, curvature: str, **options: Any) -> tuple[float, list[float]]:
    found = gns.minimize(
        problem.value_and_gradient, problem.curvatures[curvature], problem.x0, metric=problem.metric, **options
    )
    reached = found.reached(problem.optimum)
    return float(MOST + 1 if reached is None else reached), [value - problem.optimum for value in found.values]


def _within(claimed: int, of: str, slack: int = 2) -> Expected:
    figure = f"{claimed} ± {slack}" if slack else f"{claimed}"
    return Expected(f"iterations to f − f* < 1e-8, {of}", figure, claimed - slack, claimed + slack)


@claim(
    {
        "rosenbrock": _within(51, "Rosenbrock, exact Hessian", 0),
        "first_values": Expected("f at x_0 … x_3 on Rosenbrock: 409, 87.403, 10.569, 6.2146", "0 off", 0, 5e-4),
        "rosenbrock_nle": _within(56, "Rosenbrock's equations p = 5, exact Hessian"),
        "linear_exact": _within(27, "linear operator 100 × 200, p = 4, exact Hessian"),
        "linear_fisher": _within(18, "linear operator, Fisher term of rank 1"),
        "lse_exact": _within(14, "log-sum-exp d = 100, exact Hessian"),
        "lse_weighted": _within(21, "log-sum-exp, weighted Gauss-Newton"),
        "lse_gradient": Expected("iterations of a gradient method on log-sum-exp", "> 1000", MOST + 1, None),
    },
    source="Section 5, Algorithm 1",
    exact=True,
)
def instances(seed: int) -> Measured:
    """Iterations on the committed instances; the paper's own are not published with their seeds."""
    runs = {
        "rosenbrock": (gns_problems.rosenbrock(), "exact"),
        "rosenbrock_nle": (gns_problems.rosenbrock_nle(), "exact"),
        "linear_exact": (gns_problems.linear_operator(), "exact"),
        "linear_fisher": (gns_problems.linear_operator(), "fisher"),
        "lse_exact": (gns_problems.log_sum_exp(), "exact"),
        "lse_weighted": (gns_problems.log_sum_exp(), "weighted_gauss_newton"),
    }
    values, series = {}, {}
    for name, (problem, curvature) in runs.items():
        values[name], series[name] = _run(problem, curvature)
    off = zip(series["rosenbrock"], (409.0, 87.403, 10.569, 6.2146), strict=False)
    values["first_values"] = max(abs(ours - theirs) for ours, theirs in off)
    plain = gns_problems.log_sum_exp()
    plain = Problem(plain.function, plain.x0, plain.optimum, None, plain.curvatures)
    values["lse_gradient"], series["lse_gradient"] = _run(plain, "zero", max_iterations=MOST)
    return Measured(values, series)


def logistic(seed: int, n: int = 200, d: int = 10, l2: float = 1e-3) -> Problem:
    """Logistic regression on drawn examples, mean loss, with every approximation of its Hessian."""
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, d, generator=g, dtype=torch.float64)
    signs = torch.sign(inputs @ torch.randn(d, generator=g, dtype=torch.float64) + torch.randn(n, generator=g))
    rows, penalty = signs[:, None] * inputs, l2 * torch.eye(d, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        value: Tensor = softplus(-rows @ x).mean() + 0.5 * l2 * x @ x
        return value

    def examples(x: Tensor) -> Tensor:
        return -torch.sigmoid(-rows @ x)[:, None] * rows

    def generalized(x: Tensor) -> Tensor:
        bend = torch.sigmoid(rows @ x) * torch.sigmoid(-rows @ x) / n
        return gns_curvature.weighted_gauss_newton(lambda z: rows @ z, lambda z: bend)(x) + penalty

    outer = gns_curvature.empirical_fisher(examples)
    curvatures: dict[str, Any] = {
        "exact": gns_curvature.exact(function),
        "products": gns_curvature.exact_products(function),
        "weighted_gauss_newton": generalized,
        "empirical_fisher": lambda x: outer(x).dense() + penalty,
        "zero": gns_curvature.zero,
    }
    start = torch.zeros(d, dtype=torch.float64)
    best = gns.minimize(Problem(function, start, 0.0, None, {}).value_and_gradient, curvatures["exact"], start)
    return Problem(function, start, best.values[-1], None, curvatures)


EVERY = {
    "rosenbrock_nle": (("exact", 56), ("gauss_newton", None), ("fisher", None), ("zero", None)),
    "linear_operator": (("exact", 27), ("gauss_newton", None), ("fisher", 18), ("zero", None)),
    "log_sum_exp": (("exact", 14), ("weighted_gauss_newton", 21), ("zero", None)),
    "logistic": tuple(
        (name, None) for name in ("exact", "products", "weighted_gauss_newton", "empirical_fisher", "zero")
    ),
}


@claim(
    {
        f"{problem}_{name}": _within(known, f"{problem.replace('_', ' ')}, {name.replace('_', ' ')}")
        if known is not None
        else Expected(
            f"iterations to f − f* < 1e-8 (1001: none of 1000), {problem} {name}".replace("_", " "), "–"
        )
        for problem, names in EVERY.items()
        for name, known in names
    }
    | {
        "products_gap": Expected("products alone, by conjugate gradients, less the exact Hessian", "0", -1, 1),
        "logistic_saved": Expected("logistic: iterations with H = 0 over those with the exact H", "more", 1.5),
    },
    source="every approximation of the Hessian; Section 4",
    exact=True,
    quick=False,
)  # fmt: skip
def every_curvature(seed: int) -> Measured:
    """One rule for every H."""
    values, series = {}, {}
    problems = {
        "rosenbrock_nle": gns_problems.rosenbrock_nle(),
        "linear_operator": gns_problems.linear_operator(),
        "log_sum_exp": gns_problems.log_sum_exp(),
        "logistic": logistic(seed),
    }
    for problem, names in EVERY.items():
        for name, _ in names:
            key = f"{problem}_{name}"
            values[key], curve = _run(problems[problem], name)
            series[key] = curve[:200]
    values["products_gap"] = values["logistic_products"] - values["logistic_exact"]
    values["logistic_saved"] = values["logistic_zero"] / values["logistic_exact"]
    return Measured(values, series)


CURVATURES = ("gauss_newton", "empirical_fisher", "exact", "zero")


def _scenario(seed: int, classes: int = 3, **tables: Any) -> Scenario:
    part = {"name": "synthetic_classification", "examples": 600, "features": 6, "separation": 2.0}
    base: dict[str, Any] = {
        "seed": seed,
        "data": {"dataset": {**part, "classes": classes}, "partition": "shards", "clients": 6},
        "model": {"name": "logistic"},
        "client": {"per_round": 6},
        "evaluate": {"gradient_norm": True},
        "engine": {"precision": "float64", "workers": 1},
    }
    return Scenario(**{**base, **tables})


def _norms(scenario: Scenario) -> list[float]:
    return [float(line["gradient_norm"]) for line in simulate(scenario).lines]


def gap(seed: int, rounds: int, **options: Any) -> float:
    """Largest difference of a parameter between six clients, sorted by label, and one that holds everything."""
    server = {"estimator": {"name": "gns", **options}}
    many = simulate(_scenario(seed, rounds=rounds, server=server))
    data = {**_scenario(seed).data.model_dump(), "partition": {"name": "iid"}, "clients": 1}
    alone = simulate(_scenario(seed, rounds=rounds, server=server, data=data, client={"per_round": 1}))
    gaps = [(many.parameters[name] - alone.parameters[name]).abs().max() for name in many.parameters]
    return float(torch.stack(gaps).max())


@claim(
    {
        name: Expected(
            f"largest difference of a parameter, federated against centralised, {name.replace('_', ' ')}, l2 = 1e-3",
            "≤ 1e-10",
            None,
            1e-10,
        )
        for name in CURVATURES
    }
    | {
        "singular": Expected(
            "the same without penalty, where the softmax has a direction without curvature",
            "≤ 1e-10",
            1e-11,
            1e-7,
            differs="2e-10 to 1e-9: H + λB there is λB alone and λ = |g|/γ falls with the gradient, so that the step "
            "divides rounding by it. That direction moves no probability; the functions are equal",
        )
    },
    source="f, g and H add over clients; eight rounds",
)
def federated(seed: int) -> Measured:
    """Every approximation that the server offers."""
    values = {name: gap(seed, 8, curvature=name, l2=1e-3) for name in CURVATURES}
    return Measured({**values, "singular": gap(seed, 8)})


def _rounds(seed: int, classes: int, most: int = 200) -> Measured:
    found = simulate(_scenario(seed, classes, rounds=40, server={"estimator": {"name": "gns"}})).lines
    norms = [float(line["gradient_norm"]) for line in found]
    reached = next((k for k, norm in enumerate(norms) if norm <= 1e-8), 41)
    numbers = [float(line.get("gns.numbers_up") or 0) for line in found]
    local = {"per_round": 6, "batch_size": 1000, "optimizer": {"name": "sgd", "lr": 0.5}}
    descent = _norms(_scenario(seed, classes, rounds=most, client={**local, "steps": 1}))
    averaged = _norms(_scenario(seed, classes, rounds=most, client={**local, "steps": 5}))
    size = 7 * classes + 1
    at = next((k for k, norm in enumerate(norms) if norm <= max(descent[-1], 1e-8)), 41)
    values = {
        "gns": float(reached),
        "gradient_descent": descent[-1],
        "fedavg": averaged[-1],
        "numbers_up": sum(numbers[1 : reached + 1]),
        "numbers_for_descent": sum(numbers[1 : at + 1]),
        "numbers_of_descent": float(most * size),
    }
    sent = [sum(numbers[1 : k + 1]) for k in range(len(numbers))]
    return Measured(values, {"gns": norms, "gradient_descent": descent, "fedavg": averaged, "sent": sent})


def _rounds_expected(of: str, d: int) -> dict[str, Expected]:
    return {
        "gns": Expected(f"rounds of GNS to |∇f| ≤ 1e-8, {of}, clients sorted by label", "few", None, 30),
        "gradient_descent": Expected("|∇f| that gradient descent has left after 200 rounds", "far more", 1e-7, None),
        "fedavg": Expected("|∇f| that FedAvg with 5 local steps has left after 200 rounds", "far more", 1e-6, None),
        "numbers_up": Expected(f"numbers that a client sends in those rounds of GNS (d = {d})", "counted"),
        "numbers_for_descent": Expected("numbers that GNS has sent when it is where gradient descent ends", "counted"),
        "numbers_of_descent": Expected("numbers that a client of gradient descent or FedAvg has sent then", "counted"),
    }


@claim(_rounds_expected("softmax regression", 21), source="rounds and communication, ours", quick=False)
def rounds(seed: int) -> Measured:
    """Second order over clients costs d(d+1)/2 numbers a round and saves rounds."""
    return _rounds(seed, 3)


@claim(_rounds_expected("logistic regression", 14), source="rounds and communication, ours", quick=False)
def rounds_logistic(seed: int) -> Measured:
    """The same with two classes."""
    return _rounds(seed, 2)


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    """Iterations on the instances; rounds and numbers sent in the federation."""
    left, middle, right = figure.subplots(1, 3)
    left.set_gid("instances")
    for name, values in curves_of(found, "instances").items():
        left.semilogy([max(value, 1e-16) for value in values[:80]], label=name.replace("_", " "), linewidth=1)
    left.set(xlabel="iteration", ylabel="f − f*", title="instances")
    if left.lines:
        left.legend(fontsize=6)
    for axes in (middle, right):
        axes.set_gid("rounds rounds_logistic")
    for key, style in {"rounds": "-", "rounds_logistic": "--"}.items():
        series, of = curves_of(found, key), "softmax" if key == "rounds" else "logistic"
        if not series:
            continue
        for number, name in enumerate(("gns", "gradient_descent", "fedavg")):
            values, label = series[name], f"{name.replace('_', ' ')}, {of}"
            middle.semilogy(values, f"C{number}{style}", label=label, linewidth=1)
            size = found[key][0].values["numbers_of_descent"] / (len(series["fedavg"]) - 1)
            sent = series["sent"] if name == "gns" else [k * size for k in range(len(values))]
            right.semilogy(sent, values, f"C{number}{style}", linewidth=1)
    middle.set(xlabel="round", ylabel="|∇f|", title="federated")
    right.set(xlabel="numbers that a client has sent", title="communication")
    if middle.lines:
        middle.legend(fontsize=6)
