"""Hessian alignment (arXiv 2308.11778)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn import functional

from fedsim import losses
from fedsim.verify.claim import Expected, Measured, claim

PARTS = ("fedsim.losses.hessian_alignment", "fedsim.data.cmnist")
DRAWN = ("synthetic",)
METHODS = ("erm", "hgp", "diagonal")
Domains = list[tuple[Tensor, Tensor]]


def train(domains: Domains, body: nn.Module, head: nn.Module, method: str, lr: float) -> None:
    """501 full-batch steps of Adam in CMNIST's form: the sum of the penalties, λ from step 190, l2 .0011."""
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for step in range(501):
        found = [(features := body(x), head(features), y) for x, y in domains]
        risks = [functional.binary_cross_entropy_with_logits(o.squeeze(1), y.float()) for _, o, y in found]
        loss: Tensor = torch.stack(risks).mean() + 0.0011 * sum(each.square().sum() for each in parameters)
        if method != "erm":
            of: Any = losses.hgp_statistics if method == "hgp" else losses.diagonal_statistics
            loss = losses.cmnist_objective(
                loss, losses.cmnist_penalty(of(found, head="sigmoid")), losses.cmnist_weight(step)
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def accuracy(body: nn.Module, head: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(((head(body(x)).squeeze(1) > 0) == y.bool()).double().mean())


@claim(
    {
        "gradient": Expected("closed-form gradient of the head against autograd", "6e-8 in float32", None, 1e-12),
        "product": Expected("closed-form H g against a double backward", "6e-8 in float32", None, 1e-12),
        "diagonal": Expected("closed-form diag H against a double backward", "6e-8 in float32", None, 1e-12),
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


def _analogue(flip: float, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    digit = torch.randint(0, 2, (n,), generator=g)
    label = digit ^ (torch.rand(n, generator=g) < 0.25).long()
    colour = label ^ (torch.rand(n, generator=g) < flip).long()
    shape = torch.randn(n, 10, generator=g)
    shape[:, 0] += 2.5 * (digit - 0.5)
    return torch.cat([shape, 2.0 * (colour[:, None] - 0.5)], 1), label


_note = (
    "a network and rate of our own (MLP 32-32, Adam 1e-3), since those of the published .678 are not stated; "
    "the alignment leaves the colour, which is the claim, and the digit's own limit is .70"
)


@claim(
    {
        "erm": Expected("test accuracy of ERM, which follows the colour", ".112", None, 0.2),
        "hgp": Expected("test accuracy, HGP", ".678", 0.5, None, differs=_note),
        "diagonal": Expected("test accuracy, exact diagonal", ".678", 0.5, None, differs=_note),
    },
    source="synthetic analogue: 10-d shape, 2.5 sd apart, 5000 a domain, e = .2, .1, test .9",
)
def synthetic(seed: int) -> Measured:
    """Coloured MNIST without MNIST."""
    g = torch.Generator().manual_seed(seed)
    domains, test = [_analogue(flip, 5000, g) for flip in (0.2, 0.1)], _analogue(0.9, 5000, g)
    values = {}
    for method in METHODS:
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Linear(11, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        head = nn.Linear(32, 1)
        train(domains, body, head, method, 1e-3)
        values[method] = accuracy(body, head, *test)
    return Measured(values)


def _cmnist(method: str, seed: int) -> Measured:
    """The paper's setting on real MNIST: MLP 390-390, Adam lr 4.898e-4, 501 full-batch steps."""
    from fedsim.registry import make

    data = make("dataset", "cmnist", seed=seed).load()
    inputs, targets = data.train.inputs.flatten(1), data.train.targets
    domain = torch.from_numpy(data.columns["domain"])
    domains = [(inputs[domain == e], targets[domain == e]) for e in (0, 1)]
    torch.manual_seed(seed)
    width = inputs.shape[1]
    body = nn.Sequential(nn.Linear(width, 390), nn.ReLU(), nn.Linear(390, 390), nn.ReLU())
    head = nn.Linear(390, 1)
    for layer in (body[0], body[2], head):
        nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    train(domains, body, head, method, 4.898e-4)
    tested = accuracy(body, head, data.test.inputs.flatten(1), data.test.targets)
    return Measured({"test": tested, "train": accuracy(body, head, inputs, targets)})


_setting = "CMNIST on real MNIST, e = .2, .1, test .9, central"


@claim(
    {"test": Expected("test accuracy, ERM", ".134", None, 0.2), "train": Expected("training accuracy, ERM", ".864")},
    source=_setting,
    seeds=1,
    quick=False,
)
def cmnist_erm(seed: int) -> Measured:
    """Ten minutes on one core."""
    return _cmnist("erm", seed)


@claim(
    {"test": Expected("test accuracy, HGP", ".707", 0.6), "train": Expected("training accuracy, HGP", ".705")},
    source=_setting,
    seeds=1,
    quick=False,
)
def cmnist_hgp(seed: int) -> Measured:
    """Ten minutes on one core."""
    return _cmnist("hgp", seed)


@claim(
    {
        "test": Expected("test accuracy, diagonal", ".701", 0.6),
        "train": Expected("training accuracy, diagonal", ".703"),
    },
    source=_setting,
    seeds=1,
    quick=False,
)
def cmnist_diagonal(seed: int) -> Measured:
    """Ten minutes on one core."""
    return _cmnist("diagonal", seed)


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    axes = figure.subplots()
    synthetic_means = [sum(each.values[m] for each in found["synthetic"]) / len(found["synthetic"]) for m in METHODS]
    axes.bar([place - 0.2 for place in range(3)], synthetic_means, 0.4, label="synthetic analogue")
    real = [found[f"cmnist_{m}"][0].values["test"] if f"cmnist_{m}" in found else 0.0 for m in METHODS]
    axes.bar([place + 0.2 for place in range(3)], real, 0.4, label="CMNIST (where it was run)")
    axes.axhline(0.75, color="0.7", linewidth=1)
    axes.set(xticks=range(3), xticklabels=METHODS, ylabel="test accuracy")
    axes.legend(fontsize=7)
