"""Hessian alignment on coloured MNIST, central and in a federation, in the paper's setting.

Real MNIST, 25,000 images of 14 × 14 in each of two domains, MLP 390-390, Adam 4.898e-4, 501 full-batch steps: ten
minutes each on one core, a quarter of an hour in a federation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedsim.registry import make
from fedsim.verify.claim import Expected, Measured, claim
from fedsim.verify.coloured import HIDDEN, RATE, Examples, accuracy, curve, fedavg, fedsgd, network, train

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


def _fedsgd(method: str, known: float, seed: int) -> Measured:
    """FedSGD on the domains, and how far it ends below the central figure that is known."""
    rounds, tested = curve(fedsgd({"name": "cmnist", "seed": seed}, HIDDEN, method, RATE, seed, "glorot"))
    return Measured({"fedsgd": tested[-1], "below": known - tested[-1]}, {"round": rounds, "fedsgd": tested})


def _fedavg(method: str, seed: int) -> Measured:
    rounds, tested = curve(fedavg({"name": "cmnist", "seed": seed}, HIDDEN, method, RATE, seed, "glorot"))
    return Measured({"fedavg": tested[-1]}, {"round": rounds, "fedavg": tested})


def _central(name: str, known: str, low: float | None, high: float | None, trained: str) -> dict[str, Expected]:
    return {
        "test": Expected(f"test accuracy, {name}, central", known, low, high),
        "train": Expected(f"training accuracy, {name}, central", trained, float(trained) - 0.02, float(trained) + 0.02),
    }


def _federated(name: str, known: str) -> dict[str, Expected]:
    return {
        "fedsgd": Expected(f"test accuracy, {name}, FedSGD with Adam on the server, client = domain", known, 0.6),
        "below": Expected(f"{name}: known central accuracy less FedSGD's", "within 3 points", None, 0.03),
    }


def _local(name: str, known: str, low: float | None, high: float | None, differs: str = "") -> dict[str, Expected]:
    return {"fedavg": Expected(f"test accuracy, {name}, FedAvg", known, low, high, differs)}


_alone: dict[str, Any] = {"seeds": 1, "quick": False, "paper": "hessian_alignment"}
_five = f"{_setting}; client = domain, 5 local full-batch steps of Adam, 100 rounds"
_drift = (
    "five steps towards references of the round's start: .21, .27, .33 in rounds 50, 75, 100, still rising when the "
    "rounds end; a longer run had .44 in round 130 and .37 in round 150. With two steps in each of 250 rounds, and "
    "with five of an Adam that is kept over rounds, it is .10"
)


_slower = (
    "as with HGP, and slower: .10, .17, .15, .19 in rounds 25, 50, 75, 100; the diagonal's reference is of the round's "
    "start, too"
)


@claim(_central("ERM", ".134", None, 0.2, ".864"), source=_setting, **_alone)
def cmnist_erm(seed: int) -> Measured:
    """Ten minutes on one core."""
    return central("erm", seed)


@claim(_central("HGP", ".707", 0.6, None, ".705"), source=_setting, **_alone)
def cmnist_hgp(seed: int) -> Measured:
    """Ten minutes on one core."""
    return central("hgp", seed)


@claim(_central("exact diagonal", ".701", 0.6, None, ".703"), source=_setting, **_alone)
def cmnist_diagonal(seed: int) -> Measured:
    """Ten minutes on one core."""
    return central("diagonal", seed)


@claim(
    {"fedsgd": Expected("test accuracy, ERM, FedSGD with Adam on the server, client = domain", "≤ .20", None, 0.2)},
    source=_setting,
    **_alone,
)
def cmnist_fedsgd_erm(seed: int) -> Measured:
    """A quarter of an hour on two cores."""
    rounds, tested = curve(fedsgd({"name": "cmnist", "seed": seed}, HIDDEN, "erm", RATE, seed, "glorot"))
    return Measured({"fedsgd": tested[-1]}, {"round": rounds, "fedsgd": tested})


@claim(_federated("HGP", ".707"), source=_setting, **_alone)
def cmnist_fedsgd_hgp(seed: int) -> Measured:
    """Twenty minutes on two cores."""
    return _fedsgd("hgp", 0.707, seed)


@claim(_federated("exact diagonal", ".701"), source=_setting, **_alone)
def cmnist_fedsgd_diagonal(seed: int) -> Measured:
    """A quarter of an hour on two cores."""
    return _fedsgd("diagonal", 0.701, seed)


@claim(_local("ERM", "below .2", None, 0.2), source=_five, **_alone)
def cmnist_fedavg_erm(seed: int) -> Measured:
    """Eight minutes on two cores."""
    return _fedavg("erm", seed)


@claim(_local("HGP", "above .5", 0.2, 0.5, _drift), source=_five, **_alone)
def cmnist_fedavg_hgp(seed: int) -> Measured:
    """Ten minutes on two cores."""
    return _fedavg("hgp", seed)


@claim(_local("exact diagonal", "above .5", 0.1, 0.5, _slower), source=_five, **_alone)
def cmnist_fedavg_diagonal(seed: int) -> Measured:
    """Ten minutes on two cores."""
    return _fedavg("diagonal", seed)
