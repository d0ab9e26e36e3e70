"""Hessian alignment on coloured MNIST, central and in a federation, in the paper's setting.

Real MNIST, 25,000 images of 14 × 14 in each of two domains, MLP 390-390, Adam 4.898e-4, 501 full-batch steps: ten
minutes each on one core, a quarter of an hour in a federation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsim.registry import make
from fedsim.verify.claim import Expected, Measured, claim
from fedsim.verify.coloured import HIDDEN, RATE, Examples, accuracy, curve, federated, network, train

_setting = "CMNIST on real MNIST, e = .2, .1, test .9"


def data(seed: int) -> list[Examples]:
    """The two training domains and the test domain, inputs flat."""
    found = make("dataset", "cmnist", seed=seed).load()
    inputs, targets = found.train.inputs.flatten(1), found.train.targets
    domain = torch.from_numpy(found.columns["domain"])
    training = [(inputs[domain == e], targets[domain == e]) for e in (0, 1)]
    return [*training, (found.test.inputs.flatten(1), found.test.targets)]


def central(method: str, seed: int) -> Measured:
    """Weights by Glorot, biases 0, as in the paper's code."""
    *domains, test = data(seed)
    torch.manual_seed(seed)
    body, head = network(domains[0][0].shape[1], HIDDEN)
    for layer in (*body.modules(), head):
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    steps: list[float] = []
    tested: list[float] = []

    def after(step: int) -> None:
        if step % 25 == 0:
            steps.append(float(step + 1))
            tested.append(accuracy(body, head, *test))

    train(domains, body, head, method, RATE, after=after)
    together: tuple[Tensor, Tensor] = (torch.cat([x for x, _ in domains]), torch.cat([y for _, y in domains]))
    values = {"test": accuracy(body, head, *test), "train": accuracy(body, head, *together)}
    return Measured(values, {"step": steps, "central": tested})


def _both(method: str, seed: int) -> Measured:
    """Central, then FedSGD on the same domains."""
    alone = central(method, seed)
    rounds, tested = curve(federated({"name": "cmnist", "seed": seed}, HIDDEN, method, RATE, seed, workers=2))
    values = {**alone.values, "fedsgd": tested[-1], "gap": abs(tested[-1] - alone.values["test"])}
    return Measured(values, {**alone.series, "round": rounds, "fedsgd": tested})


@claim(
    {
        "test": Expected("test accuracy, ERM, central", ".134", None, 0.2),
        "train": Expected("training accuracy, ERM, central", ".864"),
    },
    source=_setting,
    seeds=1,
    quick=False,
    paper="hessian_alignment",
)
def cmnist_erm(seed: int) -> Measured:
    """Ten minutes on one core."""
    return central("erm", seed)


@claim(
    {
        "test": Expected("test accuracy, HGP, central", ".707", 0.6),
        "train": Expected("training accuracy, HGP, central", ".705"),
        "fedsgd": Expected("test accuracy, HGP, FedSGD with Adam on the server, client = domain", ".707", 0.6),
        "gap": Expected("HGP: FedSGD's difference from central", "within 3 points", None, 0.03),
    },
    source=_setting,
    seeds=1,
    quick=False,
    paper="hessian_alignment",
)
def cmnist_hgp(seed: int) -> Measured:
    """Ten minutes central on one core, then ten to fifteen in the federation on two."""
    return _both("hgp", seed)


@claim(
    {
        "test": Expected("test accuracy, exact diagonal, central", ".701", 0.6),
        "train": Expected("training accuracy, exact diagonal, central", ".703"),
        "fedsgd": Expected("test accuracy, exact diagonal, FedSGD with Adam on the server", ".701", 0.6),
        "gap": Expected("exact diagonal: FedSGD's difference from central", "within 3 points", None, 0.03),
    },
    source=_setting,
    seeds=1,
    quick=False,
    paper="hessian_alignment",
)
def cmnist_diagonal(seed: int) -> Measured:
    """Ten minutes central on one core, then about ten in the federation on two."""
    return _both("diagonal", seed)


@claim(
    {
        "erm": Expected("test accuracy, ERM", "below .2", None, 0.2),
        "hgp": Expected("test accuracy, HGP", "above .5", 0.5),
        "diagonal": Expected("test accuracy, exact diagonal", "above .5", 0.5),
    },
    source=f"{_setting}; FedAvg, client = domain, 5 local full-batch steps of Adam, 100 rounds",
    seeds=1,
    quick=False,
    paper="hessian_alignment",
)
def cmnist_fedavg(seed: int) -> Measured:
    """About six minutes a method on two cores."""
    values: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    for method in ("erm", "hgp", "diagonal"):
        scenario = federated({"name": "cmnist", "seed": seed}, HIDDEN, method, RATE, seed, local_steps=5, workers=2)
        series["round"], series[method] = curve(scenario)
        values[method] = series[method][-1]
    return Measured(values, series)
