"""Inverting an update: the inputs whose simulated local steps point where the observed ones do.

x* = argmin_x 1 − ⟨Δ(x), Δ⟩ / (‖Δ(x)‖ ‖Δ‖) + α TV(x), by Adam on the sign of its gradient, the rate divided by ten after
3/8, 5/8 and 7/8 of the iterations, x kept in the range of the data. Δ(x) are the client's own local steps, which are
simulated and differentiated through; for one step without weight decay it is the gradient, up to its length.

Geiping, Bauermeister, Dröge & Moeller, "Inverting Gradients: How easy is it to break privacy in federated learning?",
NeurIPS 2020, arXiv:2003.14053. Labels: Zhao, Mopuri & Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020,
arXiv:2001.02610 (a single image; for several the same row of the gradient, read as counts).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

MILESTONES = (3 / 8, 5 / 8, 7 / 8)
"""Shares of the iterations after which the rate is divided by ten."""


@dataclass(frozen=True)
class Steps:
    """Local steps, as an observer knows them.

    Args:
        sizes: examples in each step.
        images: different examples among them; a step takes the next ones, from the first again after the last.
        lr, momentum, dampening, weight_decay, nesterov: of SGD.
        proximal: FedProx's mu.
        clip_norm: bound of the norm of each step's gradient.
    """

    sizes: Sequence[int]
    images: int
    lr: float = 1.0
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    proximal: float = 0.0
    clip_norm: float | None = None

    @property
    def rate(self) -> float:
        """How far the steps go along a gradient that stays the same, without decay, proximal term and clip."""
        momentum, total = 0.0, 0.0
        for step in range(len(self.sizes)):
            momentum = 1.0 if step == 0 else self.momentum * momentum + 1 - self.dampening
            along = momentum if self.momentum else 1.0
            total += self.lr * (1.0 + self.momentum * along if self.nesterov else along)
        return total


def local_change(
    model: Model, loss: Loss, start: Tensor, d: int, inputs: Tensor, labels: Tensor, steps: Steps
) -> Tensor:
    """(d,) change of the parameters by local steps on these inputs, differentiable by the inputs.

    Args:
        model: ((d + b,) vector, inputs) → outputs.
        loss: (outputs, labels) → mean loss.
        start: (d + b,) the model that was received.
        d: how many of its numbers are parameters.
        inputs: (m, …), m = ``steps.images``.
        labels: (m,).
        steps: how the client trains.
    """
    received, rest = start[:d], start[d:]
    parameters = received.clone().requires_grad_()
    velocity: Tensor | None = None
    position = 0
    for size in steps.sizes:
        rows = torch.arange(position, position + size, device=inputs.device) % steps.images
        position += size
        value = loss(model(torch.cat([parameters, rest]), inputs[rows]), labels[rows])
        (gradient,) = torch.autograd.grad(value, parameters, create_graph=True)
        if steps.proximal:
            gradient = gradient + steps.proximal * (parameters - received)
        if steps.clip_norm is not None:
            gradient = gradient * (steps.clip_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)
        if steps.weight_decay:
            gradient = gradient + steps.weight_decay * parameters
        if steps.momentum:
            fresh = (1 - steps.dampening) * gradient
            velocity = gradient if velocity is None else steps.momentum * velocity + fresh
            gradient = gradient + steps.momentum * velocity if steps.nesterov else velocity
        parameters = parameters - steps.lr * gradient
    change: Tensor = parameters - received
    return change


def misfit(simulated: Tensor, observed: Tensor) -> Tensor:
    """1 − the cosine between two changes; 1 where one of them is zero."""
    lengths = simulated.norm() * observed.norm()
    found: Tensor = 1 - (simulated @ observed) / lengths.clamp(min=1e-30)
    return found


def total_variation(inputs: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of (m, C, H, W), down and across; zero for other inputs."""
    if inputs.ndim != 4:
        return inputs.new_zeros(())
    found = inputs.new_zeros(())
    for axis in (2, 3):
        if inputs.shape[axis] > 1:
            found = found + inputs.diff(dim=axis).abs().mean()
    return found


def reconstruct(
    change: Callable[[Tensor], Tensor],
    observed: Tensor,
    start: Tensor,
    box: tuple[float, float],
    *,
    iterations: int,
    lr: float,
    weight: float,
) -> tuple[Tensor, float]:
    """Inputs whose change points where the observed one does, and their objective.

    Args:
        change: inputs → (d,) simulated change.
        observed: (d,).
        start: (m, …) inputs to start from.
        box: range in which inputs stay.
        iterations: steps of Adam.
        lr: their rate, in units of the box's width.
        weight: α, of the total variation.
    """
    inputs = start.clone().requires_grad_()
    width = box[1] - box[0]
    adam = torch.optim.Adam([inputs], lr=lr * width, foreach=False)
    milestones = [int(iterations * share) for share in MILESTONES]
    decay = torch.optim.lr_scheduler.MultiStepLR(adam, milestones, gamma=0.1)

    def objective() -> Tensor:
        return misfit(change(inputs), observed) + weight * total_variation(inputs) / width

    for _ in range(iterations):
        (inputs.grad,) = torch.autograd.grad(objective(), inputs)
        inputs.grad.sign_()
        adam.step()
        decay.step()
        with torch.no_grad():
            inputs.clamp_(*box)
    return inputs.detach(), max(0.0, float(objective().detach()))


def inferred_labels(gradient: Tensor, images: int, probabilities: Tensor) -> Tensor:
    """(images,) labels, ascending, from the gradient of the last layer's bias: g_c = p_c − n_c/images.

    Args:
        gradient: (C,) of the mean cross-entropy; for one image its length does not matter.
        images: examples.
        probabilities: (C,) what the model is taken to say of them on average.
    """
    if images == 1:
        return gradient.argmin().reshape(1)
    counts = (images * (probabilities - gradient)).double()
    found = []
    for _ in range(images):
        best = int(counts.argmax())
        counts[best] -= 1
        found.append(best)
    return torch.tensor(sorted(found), device=gradient.device)


def matched(truth: Floats, found: Floats) -> tuple[Indices, Indices, Floats]:
    """Pairs (true example, reconstruction) of the least total squared error, and the mean squared error of each.

    Args:
        truth: (m, …).
        found: (n, …), in any order; where m and n differ, the smaller number is paired.
    """
    from scipy.optimize import linear_sum_assignment

    flat, other = truth.reshape(len(truth), -1), found.reshape(len(found), -1)
    errors = ((flat[:, None] - other[None]) ** 2).mean(2)
    rows, columns = linear_sum_assignment(errors)
    return rows, columns, errors[rows, columns]


def psnr(error: float, width: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error, on a scale of this width; at most 100."""
    return min(100.0, 10 * math.log10(width**2 / error)) if error > 0 else 100.0


__all__ = [
    "Steps",
    "inferred_labels",
    "local_change",
    "matched",
    "misfit",
    "psnr",
    "reconstruct",
    "total_variation",
]
