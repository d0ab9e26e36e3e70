"""Gradient-normalized smoothness (arXiv 2506.13710)."""

from __future__ import annotations

from typing import Any

import torch

from fedsim.optim import gns, gns_problems
from fedsim.optim.gns_problems import Problem
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim

PARTS = ("fedsim.optim.gns", "fedsim.optim.gns_curvature", "fedsim.optim.gns_problems", "strategies.gns")
DRAWN = ("instances",)
MOST = 1000


def _run(problem: Problem, curvature: str, **options: Any) -> tuple[float, list[float]]:
    found = gns.minimize(
        problem.value_and_gradient, problem.curvatures[curvature], problem.x0, metric=problem.metric, **options
    )
    reached = found.reached(problem.optimum)
    return float(MOST + 1 if reached is None else reached), [value - problem.optimum for value in found.values]


def _within(claimed: int, of: str, slack: int = 2) -> Expected:
    return Expected(f"iterations to f − f* < 1e-8, {of}", str(claimed), claimed - slack, claimed + slack)


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


def _scenario(seed: int, **tables: Any) -> Scenario:
    data = {
        "dataset": {"name": "synthetic_classification", "examples": 600, "features": 6, "classes": 3, "separation": 2.0}
    }
    base: dict[str, Any] = {
        "seed": seed,
        "data": {**data, "partition": "shards", "clients": 6},
        "model": {"name": "logistic"},
        "client": {"per_round": 6},
        "evaluate": {"gradient_norm": True},
        "engine": {"precision": "float64", "workers": 1},
    }
    return Scenario(**{**base, **tables})


def _norms(scenario: Scenario) -> list[float]:
    return [float(line["gradient_norm"]) for line in simulate(scenario).lines]


@claim(
    {
        "gap": Expected(
            "largest difference of a parameter, federated against centralised, l2 = 1e-3", "1e-10", None, 1e-10
        ),
        "singular": Expected(
            "the same without penalty, where the softmax has a direction without curvature", "none", None, 1e-7
        ),
    },
    source="f, g and Gauss-Newton add over clients",
)
def federated(seed: int) -> Measured:
    """Six clients, sorted by label, against one that holds everything; eight rounds."""

    def gap(l2: float) -> float:
        server = {"estimator": {"name": "gns", "l2": l2}}
        many = simulate(_scenario(seed, rounds=8, server=server))
        data = {**_scenario(seed).data.model_dump(), "partition": {"name": "iid"}, "clients": 1}
        alone = simulate(_scenario(seed, rounds=8, server=server, data=data, client={"per_round": 1}))
        gaps = [(many.parameters[name] - alone.parameters[name]).abs().max() for name in many.parameters]
        return float(torch.stack(gaps).max())

    return Measured({"gap": gap(1e-3), "singular": gap(0.0)})


@claim(
    {
        "gns": Expected("rounds of GNS to |∇f| ≤ 1e-8 on softmax regression, clients sorted by label", "few", None, 30),
        "gradient_descent": Expected("|∇f| that gradient descent has left after 200 rounds", "far more", 1e-7, None),
        "fedavg": Expected("|∇f| that FedAvg with 5 local steps has left after 200 rounds", "far more", 1e-6, None),
        "numbers_up": Expected("numbers that a client sends in those rounds of GNS (d = 21)", "counted"),
    },
    source="rounds and communication, ours",
    quick=False,
)
def rounds(seed: int) -> Measured:
    """Second order over clients costs d(d+1)/2 numbers a round and saves rounds."""
    found = simulate(_scenario(seed, rounds=40, server={"estimator": {"name": "gns"}})).lines
    norms = [float(line["gradient_norm"]) for line in found]
    reached = next((k for k, norm in enumerate(norms) if norm <= 1e-8), 41)
    sent = sum(float(line.get("gns.numbers_up") or 0) for line in found[1 : reached + 1])
    local = {"per_round": 6, "batch_size": 1000, "optimizer": {"name": "sgd", "lr": 0.5}}
    descent = _norms(_scenario(seed, rounds=200, client={**local, "steps": 1}))
    averaged = _norms(_scenario(seed, rounds=200, client={**local, "steps": 5}))
    return Measured(
        {"gns": float(reached), "gradient_descent": descent[-1], "fedavg": averaged[-1], "numbers_up": sent},
        {"gns": norms, "gradient_descent": descent, "fedavg": averaged},
    )


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    left, right = figure.subplots(1, 2)
    for name, values in found["instances"][0].series.items():
        left.semilogy([max(value, 1e-16) for value in values[:80]], label=name.replace("_", " "), linewidth=1)
    left.set(xlabel="iteration", ylabel="f − f*")
    left.legend(fontsize=6)
    for name, values in found["rounds"][0].series.items() if "rounds" in found else ():
        right.semilogy(values, label=name.replace("_", " "), linewidth=1)
    right.set(xlabel="round", ylabel="|∇f|")
    if "rounds" in found:
        right.legend(fontsize=6)
