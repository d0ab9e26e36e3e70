"""SAM-GS with two objectives on each client: its labels, and the reconstruction of its images.

Clients hold two labels each. A shared layer feeds a head of classes and a decoder; clients train in turn from the
server's weights, and the server takes the mean. SAM-GS writes the gradient and Adam follows, as in the authors'
experiments; the control is Adam on the sum of both losses, and on the labels alone.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.optim.sam_gs import SamGS
from fedsim.verify.claim import Expected, Measured, claim
from fedsim.verify.digits import split

CLIENTS = 10
METHODS = ("sam_gs", "sum", "labels")


class TwoHeads(nn.Module):
    """64-32 and from there 10 classes and 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.classes, self.pixels = nn.Linear(32, 10), nn.Linear(32, 64)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """(2,): cross-entropy, and the squared error of the reconstruction."""
        features = self.body(x)
        return torch.stack(
            [functional.cross_entropy(self.classes(features), y), functional.mse_loss(self.pixels(features), x)]
        )


def shards(labels: Tensor, generator: np.random.Generator) -> list[Tensor]:
    """Rows of each client: sorted by label, cut into twice as many pieces as clients, two pieces each."""
    pieces = torch.argsort(labels, stable=True).tensor_split(2 * CLIENTS)
    order = generator.permutation(2 * CLIENTS)
    return [torch.cat([pieces[a], pieces[b]]) for a, b in order.reshape(CLIENTS, 2).tolist()]


def local(model: nn.Module, x: Tensor, y: Tensor, method: str, epochs: int, gamma: float) -> None:
    """A client's epochs in batches of 32, in place."""
    parameters = list(model.parameters())
    surgery, adam = SamGS(parameters, gamma=gamma), torch.optim.Adam(parameters, lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(32):  # type: ignore[no-untyped-call]
            losses = model.losses(x[rows], y[rows])  # type: ignore[operator]
            adam.zero_grad()
            if method == "sam_gs":
                surgery.backward(losses)
            else:
                (losses.sum() if method == "sum" else losses[0]).backward()
            adam.step()


def federation(method: str, seed: int, rounds: int, gamma: float = 0.5) -> dict[str, list[float]]:
    """Accuracy and reconstruction error on the test images after each round, in float64.

    SAM-GS squares the gradients and Adam does so again: in float32 most of that is denormal, and ten times as slow.
    """
    x, y, x_test, y_test = split(seed)
    x, x_test = x.double(), x_test.double()
    held = shards(y, np.random.default_rng(seed))
    torch.manual_seed(seed)
    server, curves = TwoHeads().double(), {"accuracy": list[float](), "error": list[float]()}
    for _ in range(rounds):
        uploads = []
        for rows in held:
            model = deepcopy(server)
            local(model, x[rows], y[rows], method, 2, gamma)
            uploads.append(model.state_dict())
        server.load_state_dict({name: torch.stack([each[name] for each in uploads]).mean(0) for name in uploads[0]})
        with torch.no_grad():
            right = server.classes(server.body(x_test)).argmax(1) == y_test
            curves["accuracy"].append(float(right.double().mean()))
            curves["error"].append(float(server.losses(x_test, y_test)[1]))
    return curves


@claim(
    {
        f"{method}_{what}": Expected(f"{label}: {text}", "–")
        for method, label in (("sam_gs", "SAM-GS"), ("sum", "Adam on the sum"), ("labels", "Adam on the labels alone"))
        for what, text in (("accuracy", "test accuracy"), ("error", "reconstruction error"))
    }
    | {"gap": Expected("accuracy of SAM-GS less that of Adam on the sum: three seeds cannot tell", "no lower")},
    source="labels and reconstruction on each client: digits, 10 clients of two labels, 20 rounds of 2 epochs; ours",
    quick=False,
    paper="sam_gs",
)
def two_objectives(seed: int) -> Measured:
    """Main task and reconstruction of the image."""
    values: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    for method in METHODS:
        for what, curve in federation(method, seed, 20).items():
            series[f"{method} {what}"] = curve
            values[f"{method}_{what}"] = curve[-1]
    values["gap"] = values["sam_gs_accuracy"] - values["sum_accuracy"]
    return Measured(values, series)
