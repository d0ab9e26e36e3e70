"""Colours that mislead: the training of Hessian alignment's coloured digits, central and in a federation of domains.

Central, as in the paper's CMNIST form: 501 full-batch steps of Adam on one sigmoid output, the sum of the penalties, λ
from step 190 on with the whole loss divided by λ, l2 .0011. In the federation the same with client = domain: two
softmax outputs, α and β for them, references of the round's own parameters, λ in the rounds of those steps; on the
server Adam with its bias correction, without which the steps at the switch to λ are 2.4 times as long.

``analogue`` draws coloured digits without digits: a shape in ten dimensions and a colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim import losses
from fedsim.scenario import Scenario
from fedsim.simulation import simulate

Examples = tuple[Tensor, Tensor]
Part = dict[str, Any]
METHODS = ("erm", "hgp", "diagonal")
STEPS, ANNEAL, WEIGHT, L2 = 501, 190, 91257.186, 0.0011
RATE, HIDDEN = 4.898e-4, 390
TWICE: dict[str, dict[str, float]] = {
    "hgp": {"alpha": 1 / 8, "beta": 1 / 2},
    "diagonal": {"alpha": 1 / 2, "beta": 1 / 2},
}
"""α and β of two softmax outputs that make the penalty that of one sigmoid at α = β = 1: both rows of the head have the
sigmoid's gradient and diagonal, up to the sign, and twice its H g."""
LIFT = 1e4
"""The client's rate in FedSGD, whose server's Adam does not mind it. A message is the difference of float32 parameters;
after the division by λ gradients are 1e-8 and smaller, which a parameter of .05 does not resolve."""
ALIGNED: Part = {
    "name": "hessian_alignment",
    "form": "sum",
    "weight": WEIGHT,
    "rescale": True,
}


def train(
    domains: Sequence[Examples],
    body: nn.Module,
    head: nn.Module,
    method: str,
    lr: float,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """The paper's steps on all domains at once, in place.

    Args:
        domains: inputs and labels of each.
        body: features.
        head: linear, one output.
        method: of METHODS.
        lr: of Adam.
        after: called with the number of each step that is made.
    """
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for step in range(STEPS):
        found = [(features := body(x), head(features), y) for x, y in domains]
        risks = [functional.binary_cross_entropy_with_logits(o.squeeze(1), y.float()) for _, o, y in found]
        loss: Tensor = torch.stack(risks).mean() + L2 * sum(each.square().sum() for each in parameters)
        if method != "erm":
            of: Any = losses.hgp_statistics if method == "hgp" else losses.diagonal_statistics
            penalty = losses.cmnist_penalty(of(found, head="sigmoid"))
            weight = losses.cmnist_weight(step, anneal=ANNEAL, weight=WEIGHT)
            loss = losses.cmnist_objective(loss, penalty, weight)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        after(step)


def accuracy(body: nn.Module, head: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of examples on the right side of the sigmoid."""
    with torch.no_grad():
        return float(((head(body(x)).squeeze(1) > 0) == y.bool()).double().mean())


def network(width: int, hidden: int) -> tuple[nn.Module, nn.Module]:
    """Two hidden layers and the head with one output."""
    body = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
    return body, nn.Linear(hidden, 1)


def fedsgd(data: Part, hidden: int, method: str, lr: float, seed: int, weights: str = "torch") -> Scenario:
    """The federation of domains that exchanges gradients: one full-batch step a round, Adam on the server.

    Args:
        data: data set part whose column ``domain`` says whose an example is.
        hidden: width of the two hidden layers.
        method: of METHODS.
        lr: of Adam.
        seed: of the scenario.
        weights: how the initial ones are drawn, as of the model ``mlp``.
    """
    return Scenario(
        rounds=STEPS,
        client={
            **_client(1, method, ANNEAL),
            "optimizer": {"name": "sgd", "lr": LIFT, "weight_decay": 2 * L2},
        },
        server={"optimizer": {"name": "adam", "lr": lr, "beta_2": 0.999, "tau": 1e-8 * LIFT, "bias_correction": True}},
        **_others(data, hidden, seed, weights),
    )


def fedavg(data: Part, hidden: int, method: str, lr: float, seed: int, weights: str = "torch") -> Scenario:
    """The federation of domains with five local full-batch steps of Adam; arguments as of :func:`fedsgd`."""
    return Scenario(
        rounds=100,
        client={
            **_client(5, method, ANNEAL // 5),
            "optimizer": {"name": "adam", "lr": lr, "weight_decay": 2 * L2},
        },
        **_others(data, hidden, seed, weights),
    )


def _client(steps: int, method: str, warmup: int) -> Part:
    part = {**ALIGNED, "method": method, "warmup": warmup, **TWICE.get(method, {})}
    if method == "hgp":
        part["reference"] = "exact"
    regularizers = [] if method == "erm" else [part]
    return {"per_round": 2, "steps": steps, "batch_size": 100_000, "regularizers": regularizers}


def _others(data: Part, hidden: int, seed: int, weights: str) -> Part:
    return {
        "seed": seed,
        "data": {"dataset": data, "partition": {"name": "natural", "column": "domain"}, "clients": 2},
        "model": {"name": "mlp", "hidden": [hidden, hidden], "weights": weights},
        "evaluate": {"every": 25},
        "engine": {"workers": 2},
    }


def curve(scenario: Scenario) -> tuple[list[float], list[float]]:
    """(rounds, test accuracies) of a run."""
    lines = [line for line in simulate(scenario).lines if line.get("accuracy") is not None]
    return [float(line["round"]) for line in lines], [float(line["accuracy"]) for line in lines]


def analogue(flip: float, n: int, g: torch.Generator, ones: float = 0.5) -> Examples:
    """n examples: the digit in 10-d shape, 2.5 sd apart, its label flipped in a quarter, a colour that is the label's.

    Args:
        flip: probability that the colour is not the label's.
        n: how many.
        g: what all of it is drawn from.
        ones: share of digits that are 1, by which domains shift their labels.
    """
    digit = (torch.rand(n, generator=g) < ones).long()
    label = digit ^ (torch.rand(n, generator=g) < 0.25).long()
    colour = label ^ (torch.rand(n, generator=g) < flip).long()
    shape = torch.randn(n, 10, generator=g)
    shape[:, 0] += 2.5 * (digit - 0.5)
    return torch.cat([shape, 2.0 * (colour[:, None] - 0.5)], 1), label


def analogue_domains(seed: int, n: int = 5000, shares: Sequence[float] = (0.5, 0.5, 0.5)) -> list[Examples]:
    """Two training domains, e = .2 and .1, and the test domain, e = .9; the share of ones in each."""
    g = torch.Generator().manual_seed(seed)
    return [analogue(flip, n, g, ones) for flip, ones in zip((0.2, 0.1, 0.9), shares, strict=True)]


def in_federation(domains: Sequence[Examples], make: Callable[[Part], Scenario]) -> float:
    """Test accuracy of a federation of the first two domains, made for the data; the last is the test."""
    *training, (x_test, y_test) = domains
    with TemporaryDirectory() as folder:
        path = Path(folder) / "domains.npz"
        np.savez(
            path,
            x_train=torch.cat([x for x, _ in training]).numpy(),
            y_train=torch.cat([y for _, y in training]).numpy(),
            x_test=x_test.numpy(),
            y_test=y_test.numpy(),
            domain=np.repeat(np.arange(len(training)), [len(y) for _, y in training]),
        )
        return curve(make({"name": "npz", "path": str(path)}))[1][-1]
