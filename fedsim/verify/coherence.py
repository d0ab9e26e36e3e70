"""Coherence and gradients that resist memorising (arXiv 2203.10036, 2008.01217, 2003.07422)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedsim.analysis.coherence import GradientSums, coherence
from fedsim.optim.robust_gradients import LastThree, Rule, winsorized
from fedsim.verify.claim import Expected, Measured, Row, claim
from fedsim.verify.digits import split

PARTS = ("fedsim.analysis.coherence", "fedsim.optim.robust_gradients")
MORE = ("fedsim.verify.coherence_examples", "fedsim.verify.in_a_federation")
SIZE = (10, 3.2)
DRAWN = ("over_training",)
Array = Any


def _toy(shared: bool) -> tuple[Array, Array]:
    signs = np.array([1.0, -1.0, -1.0, 1.0])
    rows = np.eye(6)[:4] + (np.eye(6)[5] if shared else 0)
    return signs[:, None] * rows, signs


@claim(
    {
        "shared": Expected("m-coherence of rows ±(e_i + e_6)", "2.5", 2.5 - 1e-12, 2.5 + 1e-12),
        "apart": Expected("m-coherence of rows ±e_i", "1.0", 1.0 - 1e-12, 1.0 + 1e-12),
        "shared_loss": Expected("loss on an unseen row, shared", ".04", 0.04 - 1e-9, 0.04 + 1e-9),
        "apart_loss": Expected("loss on an unseen row, apart", "1.0", 1.0 - 1e-9, 1.0 + 1e-9),
    },
    source="the linear toy of 2008.01217",
    exact=True,
)
def toy(seed: int) -> Measured:
    """Four examples, squared loss, from w = 0."""
    values = {}
    for name, shared in (("shared", True), ("apart", False)):
        inputs, labels = _toy(shared)
        weights = np.zeros(6)
        values[name] = coherence(2 * (inputs @ weights - labels)[:, None] * inputs).m_coherence
        for _ in range(2000):
            weights -= 0.1 * (2 * (inputs @ weights - labels)[:, None] * inputs).mean(0)
        unseen = -(np.eye(6)[4] + (np.eye(6)[5] if shared else 0))
        values[f"{name}_loss"] = float((unseen @ weights + 1) ** 2)
    return Measured(values)


def _noisy(seed: int, noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Digits with a share of the training labels replaced by another class; which of them are wrong."""
    inputs, labels, test_inputs, test_labels = split(seed)
    draw = np.random.default_rng(seed + 1)
    wrong = torch.from_numpy(draw.random(len(labels)) < noise)
    other = (labels + torch.from_numpy(draw.integers(1, 10, len(labels)))) % 10
    return inputs, torch.where(wrong, other, labels), wrong, test_inputs, test_labels


def _network(seed: int, hidden: int = 256) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def _rows(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(m, d) gradients of single examples."""
    named = {name: each.detach() for name, each in model.named_parameters()}

    def loss(point: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, point, (one[None],)), target[None])

    found = vmap(grad(loss), (None, 0, 0))(named, x, y)
    return torch.cat([each.flatten(1) for each in found.values()], 1)


METHODS = ("sgd", "rm3", "m3", "ra3", "winsor_1", "winsor_2", "winsor_4", "winsor_8")


def _train(seed: int, method: str, epochs: int = 60) -> tuple[float, float]:
    """(share of wrong labels that are memorised, accuracy on clean test labels)."""
    inputs, labels, wrong, test_inputs, test_labels = _noisy(seed, 0.5)
    model, draw = _network(seed), np.random.default_rng(seed + 2)
    parameters = list(model.parameters())
    three: Rule | None = method if method in ("rm3", "m3", "ra3") else None  # type: ignore[assignment]
    optimizer: torch.optim.Optimizer = (
        LastThree(parameters, lr=1.0, rule=three) if three else torch.optim.SGD(parameters, lr=1.0)
    )
    percent = float(method.rpartition("_")[2]) if method.startswith("winsor") else None
    for _ in range(epochs):
        for batch in np.array_split(draw.permutation(len(labels)), len(labels) // 64):
            rows = torch.from_numpy(batch)
            optimizer.zero_grad()
            if percent is None:
                nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            else:
                mean = winsorized(_rows(model, inputs[rows], labels[rows]), percent)
                nn.utils.vector_to_parameters(mean, [each.grad for each in _with_grads(parameters)])  # type: ignore[misc]
            optimizer.step()
    with torch.no_grad():
        memorised = (model(inputs).argmax(1) == labels)[wrong].double().mean()
        clean = (model(test_inputs).argmax(1) == test_labels).double().mean()
    return float(memorised), float(clean)


def _with_grads(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    for each in parameters:
        each.grad = torch.zeros_like(each)
    return parameters


_published = {"sgd": ".50", "rm3": ".37", "winsor_1": ".45", "winsor_2": ".28", "winsor_4": ".07", "winsor_8": ".03"}
_clean = {"sgd": ".56", "rm3": ".57", "winsor_1": ".61", "winsor_2": ".65", "winsor_4": ".82", "winsor_8": ".86"}

_any: tuple[None, None] = (None, None)
_remembered: dict[str, tuple[float | None, float]] = {
    "sgd": (0.45, 0.55),
    "rm3": (0.2, 0.3),
    "winsor_1": (0.3, 0.4),
    "winsor_2": (0.15, 0.23),
    "winsor_4": (None, 0.1),
    "winsor_8": (0.0, 0.06),
}
_right = {
    "sgd": (0.57, 0.67),
    "rm3": (0.62, 0.72),
    "winsor_1": (0.64, 0.75),
    "winsor_2": (0.7, 0.81),
    "winsor_4": (0.77, 0.87),
    "winsor_8": (0.81, 0.91),
}
_less = (
    "nine to twelve points less: rate and length of training are ours, for SGD to memorise half as in the figure; at "
    "them the weaker rules keep out more. The figure's own set-up is not stated, so why is not known"
)
_better = (
    "higher by .06 to .11, with plain SGD as well, which memorises as much as in the figure: network, split and length "
    "of training, which are ours, generalize better from as many wrong labels"
)


@claim(
    {
        f"{name}_memorised": Expected(
            f"wrong labels that {name} memorised",
            _published.get(name, "–"),
            low=_remembered.get(name, _any)[0],
            high=_remembered.get(name, _any)[1],
            differs=_less if name in ("rm3", "winsor_1", "winsor_2") else "",
        )
        for name in METHODS
    }
    | {
        f"{name}_clean": Expected(
            f"clean test accuracy, {name}",
            _clean.get(name, "–"),
            low=_right.get(name, _any)[0],
            high=_right.get(name, _any)[1],
            differs=_better if name in ("sgd", "rm3", "winsor_1", "winsor_2") else "",
        )
        for name in METHODS
    }
    | {
        "winsor_gap": Expected("memorised by SGD less by winsor 4", ".43", 0.3),
        "rm3_gap": Expected("memorised by RA3, its control, less by RM3", "> 0", 0.0),
    },
    source="digits, half of the labels wrong; network and rates ours (the set-up of the figures is not stated)",
    quick=False,
)
def memorised(seed: int) -> Measured:
    """MLP 64-256-10, SGD at 1, batches of 64, 60 epochs: SGD fits half of the wrong labels; at .1 it fits none."""
    values = {}
    for method in METHODS:
        values[f"{method}_memorised"], values[f"{method}_clean"] = _train(seed, method)
    values["winsor_gap"] = values["sgd_memorised"] - values["winsor_4_memorised"]
    values["rm3_gap"] = values["ra3_memorised"] - values["rm3_memorised"]
    return Measured(values)


@claim(
    {
        "real_peak": Expected("peak of m-coherence after the first epoch, real labels", "above that of random labels"),
        "random_peak": Expected("peak of m-coherence after the first epoch, random labels", "–"),
        "ratio": Expected("real peak over random peak, both after the first epoch", "> 1", 1.2),
        "additivity": Expected(
            "error of (S_k, Q_k) summed over 7 clients against all examples at once", "exact", None, 1e-9
        ),
    },
    source="2008.01217, the course of m-coherence; 400 digits",
)
def over_training(seed: int) -> Measured:
    """Real against random labels; MLP 64-64-10, SGD."""
    values, series, additivity = {}, {}, 0.0
    for name, noise in (("real", 0.0), ("random", 1.0)):
        inputs, labels = (each[:400] for each in _noisy(seed, noise)[:2])
        model, draw = _network(seed, 64), np.random.default_rng(seed + 2)
        optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1), []
        for _ in range(40):
            rows = _rows(model, inputs, labels).double()
            found.append(coherence(rows).m_coherence)
            parts = [GradientSums.of(part) for part in rows.tensor_split(7)]
            summed = sum(parts[1:], parts[0]).coherence().m_coherence
            additivity = max(additivity, abs(summed / found[-1] - 1))
            for batch in np.array_split(draw.permutation(len(labels)), len(labels) // 64):
                at = torch.from_numpy(batch)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[at]), labels[at]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        series[name], values[f"{name}_peak"] = found, max(found[1:])
    values |= {"ratio": values["real_peak"] / values["random_peak"], "additivity": additivity}
    return Measured(values, series)


def derived(found: Mapping[str, Sequence[Measured]]) -> list[Row]:
    """Where m-coherence starts, which its peaks leave out; RM3 beside its control in a federation."""
    rows = []
    for name in ("real", "random"):
        starts = [each.series[name][0] for each in found.get("over_training", ()) if name in each.series]
        want = Expected(f"m-coherence before any step, {name} labels: not part of the peak", "–")
        rows.append(Row("coherence", f"over_training.{name}_start", want, "`over_training`: 400 digits", starts))
    values = [each.values for each in found.get("wrong_labels", ())]
    beyond = [each["rm3"] - each["ra3"] for each in values if {"rm3", "ra3"} <= each.keys()]
    want = Expected("RM3 less RA3, its control: what the medians add to steps of three batches", "> 0", 0.0)
    return [*rows, Row("coherence", "wrong_labels.rm3_less_ra3", want, "papers/coherence_noise; ours", beyond)]


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    left, middle, right = figure.subplots(1, 3)
    if "memorised" in found:
        values = found["memorised"][0].values
        left.barh(METHODS, [values[f"{name}_memorised"] for name in METHODS], height=0.5)
        known = [name for name in METHODS if name in _published]
        left.plot([float(_published[name]) for name in known], known, "k|", markersize=12, label="known")
        left.legend(fontsize=7)
    left.set(xlabel="wrong labels memorised")
    for name, curve in found["over_training"][0].series.items():
        middle.plot(curve, label=f"{name} labels")
    middle.set(xlabel="epoch", ylabel="m-coherence")
    middle.legend(fontsize=7)
    for name, curve in found["easy_first"][0].series.items() if "easy_first" in found else ():
        right.plot(range(1, len(curve) + 1), curve, label=f"{name.removeprefix('learned ')} labels")
    right.set(xlabel="epoch", ylabel="share learned for good")
    if "easy_first" in found:
        right.legend(fontsize=7)
