"""Which examples are learned first, and coherence as clients report it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedsim.analysis.coherence import coherence
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim
from fedsim.verify.coherence import Array, _network, _noisy, _rows


def _learned(seed: int, network: int, epochs: int = 30) -> Array:
    """The epoch from which on each example is right (epochs + 1: not within the run), every fifth label wrong."""
    inputs, labels, *_ = _noisy(seed, 0.2)
    model, draw = _network(network, 64), np.random.default_rng(network)
    optimizer, right = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(epochs):
        for batch in np.array_split(draw.permutation(len(labels)), len(labels) // 64):
            at = torch.from_numpy(batch)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[at]), labels[at]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            right.append((model(inputs).argmax(1) == labels).numpy())
    since = np.logical_and.accumulate(np.array(right)[::-1], 0).sum(0)
    found: Array = epochs + 1 - since
    return found


@claim(
    {
        "agreement": Expected("rank correlation of the epochs at which two networks learn an example", "> 0", 0.5),
        "wrong_later": Expected(
            "share of wrong labels in the half that is learned first (of all: .2)", "few", None, 0.1
        ),
        "easy": Expected("α of the first 200 correct examples that are learned, at the start", "–"),
        "hard": Expected("α of the last 200 correct examples, at the start", "–"),
        "ratio": Expected("easy over hard, after two epochs", "> 1", 1.2),
    },
    source="2203.10036, easy examples; digits, a fifth of the labels wrong, MLP 64-64-10, SGD .05, 30 epochs",
    paper="coherence",
)
def easy_first(seed: int) -> Measured:
    """Examples whose gradients others share are learned first, by whatever network."""
    from scipy.stats import spearmanr

    inputs, labels, wrong, *_ = _noisy(seed, 0.2)
    first, second = _learned(seed, seed), _learned(seed, seed + 1000)
    order = np.argsort(first, kind="stable")
    correct = order[~wrong.numpy()[order]]
    model, draw = _network(seed + 2000, 64), np.random.default_rng(seed)
    values: dict[str, float] = {
        "agreement": float(spearmanr(first, second).statistic),
        "wrong_later": float(wrong.numpy()[order[: len(order) // 2]].mean()),
    }

    def alpha(rows: Array) -> float:
        at = torch.from_numpy(rows)
        return coherence(_rows(model, inputs[at], labels[at])).alpha

    values |= {"easy": alpha(correct[:200]), "hard": alpha(correct[-200:])}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in np.array_split(draw.permutation(len(labels)), len(labels) // 64) * 2:
        at = torch.from_numpy(batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[at]), labels[at]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    values["ratio"] = alpha(correct[:200]) / alpha(correct[-200:])
    noise = wrong.numpy()
    counts = {"correct": first[~noise], "wrong": first[noise]}
    series = {f"learned {name}": [float((at <= epoch).mean()) for epoch in range(1, 31)] for name, at in counts.items()}
    return Measured(values, series)


@claim(
    {
        "gap": Expected(
            "m-coherence by 10 clients' (S_k, Q_k), largest relative difference to all examples at once",
            "exact",
            None,
            1e-9,
        ),
        "rounds": Expected("rounds compared", "10", 10, 10),
    },
    source="S and Q add: one scalar more than a gradient; digits, Dirichlet .5, full participation, float64",
    paper="coherence",
)
def over_clients(seed: int) -> Measured:
    """What the federation's analysis says against per-example gradients in one place."""
    from fedsim.federation import build

    def scenario(rounds: int) -> Scenario:
        return Scenario(
            seed=seed,
            rounds=rounds,
            data={"dataset": "digits", "partition": {"name": "dirichlet", "alpha": 0.5}, "clients": 10},
            model={"name": "mlp", "hidden": [16]},
            client={"per_round": 10, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.05}},
            server={"analysis": [{"name": "coherence", "examples": True}]},
            engine={"workers": 1, "precision": "float64"},
        )

    told = [float(line["coherence.m_coherence"]) for line in simulate(scenario(10)).lines[1:]]
    federation = build(scenario(1))
    train, model = federation.dataset.train, federation.module.double()
    nn.utils.vector_to_parameters(federation.initial.double(), model.parameters())
    held = torch.as_tensor(federation.shares.indices, dtype=torch.long)
    gaps = []
    for number in range(10):
        if number:
            model.load_state_dict(simulate(scenario(number)).parameters)
        rows = _rows(model, train.inputs[held].double(), train.targets[held])
        gaps.append(abs(told[number] / coherence(rows).m_coherence - 1))
    return Measured({"gap": max(gaps), "rounds": float(len(gaps))}, {"clients m-coherence": told})
