"""A small character-level Transformer on Python's own standard library: a client is a package."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from fedsim import rng
from fedsim.data.examples import Dataset
from fedsim.federation import Federation, build
from fedsim.scenario import Scenario, read
from fedsim.simulation import Result, simulate
from fedsim.verify.claim import Expected, Measured, claim

SCENARIO = "papers/harmonic_language"
HEADS = ("cross_entropy", "cosine", "euclidean")
BATCHES = 4
"""Of each client, whose gradients are taken at each model that is kept."""


def cells() -> dict[str, Scenario]:
    """The scenario with each of the heads, by the heads' names."""
    tables = read(SCENARIO)
    losses = tables.pop("matrix")["client.loss"]
    found = {loss.get("distance", loss["name"]): Scenario(**tables).changed(**{"client.loss": loss}) for loss in losses}
    return {name: found[name] for name in HEADS}


def federated(scenario: Scenario) -> tuple[Result, float]:
    """The run, and the spread of its gradients' norms at the models that are evaluated in its second half."""
    federation, norms = build(scenario), []
    with tempfile.TemporaryDirectory() as folder:
        for last in range(scenario.rounds - scenario.rounds // 2, scenario.rounds + 1, scenario.evaluate.every):
            result = simulate(scenario.changed(rounds=last), out=Path(folder) / "run", resume=True)
            norms += gradient_norms(federation, result, last)
    return result, float(np.std(norms) / np.mean(norms))


def gradient_norms(federation: Federation, result: Result, last: int) -> list[float]:
    """Norms of the loss's gradient at the model of the last round, on batches of each client's training examples."""
    scenario, module = federation.scenario, federation.module.eval()
    module.load_state_dict(result.parameters)
    found = []
    for client, own in enumerate(federation.shares):
        draw = rng.stream(scenario.seed, "verify.language", round=last, client=client)
        for _ in range(BATCHES):
            batch = federation.dataset.train.take(draw.choice(own, scenario.client.batch_size))
            loss = functional.cross_entropy(module(batch.inputs), batch.targets)
            gradients = torch.autograd.grad(loss, list(module.parameters()))
            found.append(math.sqrt(sum(float(each.square().sum()) for each in gradients)))
    return found


def explained(table: torch.Tensor) -> float:
    """Share of the variance of (codes, width) embeddings in their first eight components."""
    variances = torch.linalg.svdvals(table - table.mean(0)).square()
    return float(variances[:8].sum() / variances.sum())


def by_tables(data: Dataset) -> tuple[float, float]:
    """Perplexities of the test targets by the training targets' frequencies, and by those behind the last character.

    Counts start at 1; those of a pair are drawn towards the frequencies with the weight of twenty examples.
    """
    classes = data.info.num_classes
    single = (torch.bincount(data.train.targets, minlength=classes) + 1).double()
    single /= single.sum()
    pairs = torch.zeros(classes, classes, dtype=torch.float64)
    last, following = data.train.inputs[:, -1].long(), data.train.targets
    pairs.index_put_((last, following), torch.ones(len(last), dtype=torch.float64), accumulate=True)
    pairs = (pairs + 20 * single) / (pairs.sum(1, keepdim=True) + 20)
    before, target = data.test.inputs[:, -1].long(), data.test.targets
    found = [math.exp(-float(each.log().mean())) for each in (single[target], pairs[before, target])]
    return found[0], found[1]


@claim(
    {
        f"{name}_{what}": Expected(f"{name.replace('_', '-')} head: {text}", "–")
        for name in HEADS
        for what, text in (
            ("perplexity", "perplexity per character on the packages' last tenths"),
            (
                "spread",
                "standard deviation over mean of the norms of gradients, forty batches of the clients' at each of the "
                "models of rounds 15, 20, 25 and 30",
            ),
            ("explained", "share of the embedding's variance in its first 8 components"),
        )
    }
    | {
        "frequencies": Expected("perplexity by the frequencies of characters alone", "–"),
        "pairs": Expected("perplexity by a table of pairs of characters", "–"),
        "start_explained": Expected("the embedding's share in 8 components before training", "–"),
        "learned": Expected("largest perplexity of the three heads over that by frequencies", "–", None, 0.7),
        "beyond_pairs": Expected("perplexity by cross-entropy over that by pairs", "–", None, 1.0),
        "cosine_gain": Expected("perplexity by cross-entropy over that of the cosine head", "–"),
    },
    source=f"language, the cells of {SCENARIO}: two layers of width 64, FedAvg over ten packages, 30 rounds of 10 "
    "local steps of Adam 3e-3; ours",
    quick=False,
    paper="harmonic",
    parts=("fedsim.data.python_library", "fedsim.models.char_transformer"),
)
def language(seed: int) -> Measured:
    """Cosine and Euclidean harmonic heads against cross-entropy."""
    values: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    for name, scenario in cells().items():
        result, spread = federated(scenario.changed(seed=seed))
        series[f"language {name}"] = [float(line["train_loss"]) for line in result.lines[1:]]
        values[f"{name}_perplexity"] = math.exp(result.lines[-1]["loss"])
        values |= {f"{name}_spread": spread, f"{name}_explained": explained(result.parameters["embed.weight"])}
    start = build(scenario.changed(seed=seed))
    values["start_explained"] = explained(start.module.get_parameter("embed.weight").detach())
    values["frequencies"], values["pairs"] = by_tables(start.dataset)
    values["learned"] = max(values[f"{name}_perplexity"] for name in HEADS) / values["frequencies"]
    values["beyond_pairs"] = values["cross_entropy_perplexity"] / values["pairs"]
    values["cosine_gain"] = values["cross_entropy_perplexity"] / values["cosine_perplexity"]
    return Measured(values, series, start.dataset.facts)
