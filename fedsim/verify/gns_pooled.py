"""GNS over many unequal clients is the algorithm itself on all their examples (arXiv 2506.13710)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from fedsim.federation import build
from fedsim.optim import gns, gns_curvature
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim

CURVATURES = ("gauss_newton", "empirical_fisher", "exact", "zero")
CLIENTS, CLASSES, L2 = 20, 3, 1e-3
ROUNDS = 5
"""After one more the exact Hessian's gradient is below the algorithm's tolerance, and it stops."""


def scenario(seed: int, curvature: str) -> Scenario:
    """Softmax regression on three classes, 20 clients of very unequal sizes, all of them in every round."""
    part = {"name": "synthetic_classification", "examples": 600, "features": 6, "separation": 2.0}
    return Scenario(
        seed=seed,
        rounds=ROUNDS,
        data={
            "dataset": {**part, "classes": CLASSES},
            "partition": {"name": "quantity", "law": "dirichlet", "alpha": 0.5},
            "clients": CLIENTS,
        },
        model={"name": "logistic"},
        client={"per_round": CLIENTS},
        server={"estimator": {"name": "gns", "curvature": curvature, "l2": L2}},
        evaluate={"every": ROUNDS},
        engine={"precision": "float64", "workers": 1},
    )


def pooled(inputs: Tensor, labels: Tensor) -> tuple[Callable[[Tensor], Tensor], dict[str, Callable[[Tensor], Any]]]:
    """The loss of all examples and its approximate Hessians, of x = (weights by class, biases)."""

    def logits(x: Tensor) -> Tensor:
        return inputs @ x[:-CLASSES].view(CLASSES, -1).T + x[-CLASSES:]

    def function(x: Tensor) -> Tensor:
        return cross_entropy(logits(x), labels) + 0.5 * L2 * x @ x

    def examples(x: Tensor) -> Tensor:
        off = logits(x).softmax(1) - one_hot(labels, CLASSES)
        return torch.cat([(off[:, :, None] * inputs[:, None]).flatten(1), off], 1)

    def bend(x: Tensor) -> Tensor:
        p = logits(x).softmax(1)
        blocks = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) / len(inputs)
        whole: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        return whole

    outer = gns_curvature.empirical_fisher(examples)
    generalised = gns_curvature.weighted_gauss_newton(lambda x: logits(x).flatten(), bend)
    ridge = L2 * torch.eye((inputs.shape[1] + 1) * CLASSES, dtype=inputs.dtype)
    return function, {
        "gauss_newton": lambda x: generalised(x) + ridge,
        "empirical_fisher": lambda x: outer(x).dense() + ridge,
        "exact": gns_curvature.exact(function),
        "zero": lambda x: ridge,
    }


def held_against(seed: int, curvature: str) -> tuple[float, int, list[int]]:
    """Largest difference of a parameter, rounds whose γ differ, and the clients' sizes."""
    run = scenario(seed, curvature)
    found, federation = simulate(run), build(run)
    shares = [federation.shares[client] for client in range(CLIENTS)]
    rows, train = torch.from_numpy(np.concatenate(shares)), federation.dataset.train
    function, curvatures = pooled(train.inputs[rows].double().flatten(1), train.targets[rows])

    def value_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        gradient, value = torch.func.grad_and_value(function)(x)
        return value, gradient

    central = gns.minimize(
        value_and_gradient, curvatures[curvature], federation.initial.double(), max_iterations=ROUNDS
    )
    ours = torch.cat([tensor.flatten() for tensor in found.parameters.values()])
    gammas = [line["gns.gamma"] for line in found.lines[1:]]
    differ = sum(a != b for a, b in zip(gammas, central.gammas[1:], strict=True))
    return float((ours - central.x).abs().max()), differ, [len(share) for share in shares]


@claim(
    {
        name: Expected(
            f"largest difference of a parameter, 20 unequal clients against the algorithm on the pooled data, "
            f"{name.replace('_', ' ')}",
            "≤ 1e-10",
            None,
            1e-10,
        )
        for name in CURVATURES
    }
    | {
        "gammas": Expected("rounds whose γ is not the algorithm's, of all four", "0", 0, 0),
        "unequal": Expected("examples of the largest client over those of the smallest", "unequal", 10),
    },
    source="f, g and H add over clients, weighted n_k/n; five rounds, l2 = 1e-3",
    exact=True,
    paper="gns",
)
def centralised(seed: int) -> Measured:
    """The server's rounds beside ``gns.minimize``, which knows of no clients."""
    found = {name: held_against(seed, name) for name in CURVATURES}
    sizes = found["exact"][2]
    return Measured(
        {name: gap for name, (gap, _, _) in found.items()}
        | {"gammas": float(sum(differ for _, differ, _ in found.values())), "unequal": max(sizes) / min(sizes)}
    )
