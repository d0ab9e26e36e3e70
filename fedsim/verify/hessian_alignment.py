"""Hessian alignment (arXiv 2308.11778)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.functional import hessian
from torch.nn import functional

from fedsim import losses
from fedsim.verify.claim import Expected, Measured, Row, claim, curves_of, seed_mean
from fedsim.verify.coloured import (
    HIDDEN,
    METHODS,
    RATE,
    Examples,
    accuracy,
    analogue_domains,
    fedavg,
    fedsgd,
    in_federation,
    network,
    train,
)

PARTS = (
    "fedsim.losses.hessian_alignment",
    "fedsim.losses.between_clients",
    "fedsim.losses.regularizer",
    "fedsim.data.cmnist",
    "fedsim.data.rotated_mnist",
)
MORE = ("fedsim.verify.cmnist", "fedsim.verify.rotated")
SIZE = (9, 3.4)


@claim(
    {
        "gradient": Expected("closed-form gradient of the head against autograd", "equal", None, 1e-12),
        "product": Expected("closed-form H g against a double backward", "equal", None, 1e-12),
        "diagonal": Expected("closed-form diag H against a double backward", "equal", None, 1e-12),
        "hutchinson": Expected(
            "Hutchinson's estimate, 300 draws, off the diagonal: share beyond 5 standard errors", "0", 0, 0.005
        ),
    },
    source="closed forms of the softmax head, float64",
)
def closed_forms(seed: int) -> Measured:
    """Statistics of the head against autograd's."""
    g = torch.Generator().manual_seed(seed)
    n, m, classes = 40, 5, 3
    features = torch.randn(n, m, generator=g, dtype=torch.float64)
    weight = torch.randn(classes, m + 1, generator=g, dtype=torch.float64)
    labels = torch.randint(0, classes, (n,), generator=g)
    logits = features @ weight[:, :-1].T + weight[:, -1]

    def loss(w: Tensor) -> Tensor:
        return functional.cross_entropy(features @ w[:, :-1].T + w[:, -1], labels)

    gradient = torch.func.grad(loss)(weight)
    full = hessian(loss, weight).reshape(weight.numel(), -1)  # type: ignore[no-untyped-call]
    exact = full.diagonal().reshape_as(weight)
    off = {
        "gradient": losses.head_gradient(features, logits, labels) - gradient,
        "product": losses.hessian_gradient_product(features, logits, labels)
        - (full @ gradient.flatten()).view_as(weight),
        "diagonal": losses.hessian_diagonal(features, logits) - exact,
    }
    values = {name: float(each.abs().max()) for name, each in off.items()}
    torch.manual_seed(seed)
    estimate = losses.hessian_diagonal(features, logits, hutchinson_samples=300)
    error = ((full.square().sum(1) - full.diagonal().square()) / 300).sqrt().reshape_as(weight)
    values["hutchinson"] = float(((estimate - exact).abs() > 5 * error).double().mean())
    return Measured(values)


def _central(domains: Sequence[Examples], method: str, seed: int, hidden: int = HIDDEN, lr: float = RATE) -> float:
    torch.manual_seed(seed)
    body, head = network(domains[0][0].shape[1], hidden)
    train(domains[:-1], body, head, method, lr)
    return accuracy(body, head, *domains[-1])


_setting = "MLP 390-390, Adam 4.898e-4, as on CMNIST"
_spread = (
    "seeds 0 to 2: HGP .64, .60, .60, diagonal .64, .58, .58: the colour is left on each of them, and how much of the "
    "shape is learned varies by seed, of which the known figure tells one; its draw of the analogue is not told"
)


@claim(
    {
        "erm": Expected("test accuracy of ERM, which follows the colour", ".112", None, 0.2),
        "hgp": Expected("test accuracy, HGP", ".678", 0.55, 0.66, differs=_spread),
        "diagonal": Expected("test accuracy, exact diagonal", ".678", 0.55, 0.66, differs=_spread),
    },
    source=f"synthetic analogue: 10-d shape, 2.5 sd apart, 5000 a domain, e = .2, .1, test .9; {_setting}",
    quick=False,
)
def synthetic(seed: int) -> Measured:
    """Coloured MNIST without MNIST."""
    domains = analogue_domains(seed)
    return Measured({method: _central(domains, method, seed) for method in METHODS})


_spread_fedsgd = (
    "seeds 0 to 2: HGP .63, .57, .58 where the centre has .64, .60, .60, diagonal .62, .55, .55 where it has .64, .58, "
    ".58: the same spread by seed as at the centre, and two to four points below it; the known figure tells one seed"
)


@claim(
    {
        "hgp": Expected("test accuracy, HGP", ".651", 0.55, 0.65, differs=_spread_fedsgd),
        "diagonal": Expected("test accuracy, exact diagonal", ".650", 0.52, 0.65, differs=_spread_fedsgd),
        "hgp_gap": Expected("HGP: difference from central", "within 3 points", None, 0.03),
        "diagonal_gap": Expected(
            "exact diagonal: difference from central (.020, .037, .031 by seed)", "within 3 points", None, 0.03
        ),
    },
    source=f"the analogue by FedSGD, client = domain, Adam on the server, 501 rounds; {_setting}",
    quick=False,
)
def synthetic_fedsgd(seed: int) -> Measured:
    """The analogue in a federation that exchanges gradients."""
    domains, values = analogue_domains(seed), {}
    for method in METHODS[1:]:
        values[method] = in_federation(domains, partial(fedsgd, hidden=HIDDEN, method=method, lr=RATE, seed=seed))
        values[f"{method}_gap"] = abs(values[method] - _central(domains, method, seed))
    return Measured(values)


_drift = (
    "the more steps a client takes towards references of the round's start, the less of the alignment is left: with a "
    "network of 32-32, Adam 3e-3, HGP by 10, 5, 2 local steps and by FedSGD: .43, .51, .60, .59 (seed 0) and .28, .44, "
    ".52, .58 (seed 1). What the known figure's network and rate were is not told"
)


@claim(
    {
        "erm": Expected("test accuracy of ERM", ".111", None, 0.2),
        "hgp": Expected("test accuracy, HGP", ".601", 0.35, 0.6, differs=_drift),
        "diagonal": Expected("test accuracy, exact diagonal", ".598", 0.35, 0.6, differs=_drift),
    },
    source=f"the analogue by FedAvg, client = domain, 5 local full-batch steps, 100 rounds; {_setting}",
    quick=False,
)
def synthetic_fedavg(seed: int) -> Measured:
    """The analogue with local steps."""
    domains, values = analogue_domains(seed), {}
    for method in METHODS:
        values[method] = in_federation(domains, partial(fedavg, hidden=HIDDEN, method=method, lr=RATE, seed=seed))
    return Measured(values)


@claim(
    {
        "erm": Expected("test accuracy of ERM", "–"),
        "hgp": Expected("test accuracy, HGP", "–"),
        "diagonal": Expected("test accuracy, exact diagonal", "–"),
        "gain": Expected("the better of both less ERM (still below a coin's .5)", "above 0", 0.1),
    },
    source="label shift beside the colours: digits are 1 in .7, .3, test .5 of the domains; ours, MLP 32-32, Adam 1e-3",
    quick=False,
)
def label_shift(seed: int) -> Measured:
    """The domains differ in their labels' proportions as well."""
    domains = analogue_domains(seed, shares=(0.7, 0.3, 0.5))
    values = {method: _central(domains, method, seed, 32, 1e-3) for method in METHODS}
    values["gain"] = max(values["hgp"], values["diagonal"]) - values["erm"]
    return Measured(values)


def derived(found: Mapping[str, Sequence[Measured]]) -> list[Row]:
    """FedSGD's distance from our own central run, where its claim can tell the known figure's alone."""
    rows = []
    for method, name in (("hgp", "HGP"), ("diagonal", "exact diagonal")):
        central, ours = (
            seed_mean(found, f"cmnist_{method}", "test"),
            seed_mean(found, f"cmnist_fedsgd_{method}", "fedsgd"),
        )
        off = [] if central is None or ours is None else [abs(central - ours)]
        want = Expected(f"{name}: FedSGD's distance from our own central run", "within 3 points", None, 0.03)
        rows.append(
            Row(
                "hessian_alignment",
                f"cmnist_{method}.distance",
                want,
                f"`cmnist_fedsgd_{method}` against `cmnist_{method}`",
                off,
            )
        )
    return rows


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    """Accuracies on colours; test accuracy over rounds on coloured MNIST; the left-out angles."""
    left, middle, right = figure.subplots(1, 3)
    shown = {"synthetic": "central", "synthetic_fedsgd": "FedSGD", "synthetic_fedavg": "FedAvg, 5 steps"}
    left.set_gid(" ".join(shown))
    for offset, (key, label) in zip((-0.27, 0.0, 0.27), shown.items(), strict=True):
        if key in found:
            heights = [seed_mean(found, key, method) or 0.0 for method in METHODS]
            left.bar([k + offset for k in range(3)], heights, 0.25, label=label)
    left.set(xticks=range(3), xticklabels=METHODS, ylabel="test accuracy", title="coloured analogue")
    runs = {"": ("", ""), "fedsgd_": ("FedSGD ", "--"), "fedavg_": ("FedAvg ", ":")}
    keys = [f"cmnist_{key}{method}" for key in runs for method in METHODS]
    middle.set_gid(" ".join(keys))
    for number, method in enumerate(METHODS):
        for key, (label, style) in runs.items():
            if series := curves_of(found, f"cmnist_{key}{method}"):
                steps, tested = list(series.values())
                steps = [5 * each for each in steps] if key == "fedavg_" else steps
                middle.plot(steps, tested, f"C{number}{style}", linewidth=1, label=f"{label}{method}")
    middle.set(xlabel="step", title="coloured MNIST, test")
    for axes in (left, middle):
        if axes.has_data():
            axes.axhline(0.75, color="0.7", linewidth=1)
            axes.set_ylim(0, 0.9)
            axes.legend(fontsize=5, ncols=3 if axes is middle else 1, loc="upper center")
    right.set_gid("left_out")
    series = curves_of(found, "left_out")
    for name in series:
        if name != "angle":
            seeds = [each.series[name] for each in found["left_out"]]
            mean = [sum(at) / len(at) for at in zip(*seeds, strict=True)]
            right.plot(series["angle"], mean, "o-", markersize=3, linewidth=1, label=name)
    right.set(xlabel="angle left out", title="rotated MNIST, test")
    if series:
        right.legend(fontsize=6)
