"""What attacks do inside the training of the clients that they hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.attack import Attack, LocalStep, overrides

LOCAL = ("poison", "objective", "after_step")
"""Hooks that run on the malicious client."""


class Hooks:
    """The local hooks of a list of attacks; each works on what the one before left."""

    def __init__(self, attacks: Sequence[Attack]) -> None:
        self.objectives = [each for each in attacks if overrides(each, "objective")]
        self.followers = [each for each in attacks if overrides(each, "after_step")]

    def __bool__(self) -> bool:
        return bool(self.objectives or self.followers)

    def objective(self, losses: Tensor, parameters: Tensor, gradients: Tensor, step: LocalStep) -> None:
        """Turn the (k, d) gradients of the (k,) task losses into those of the attacks' losses, in place."""
        if not self.objectives:
            return
        with torch.enable_grad():
            task = losses.detach().to(parameters.dtype).requires_grad_()
            point = parameters.detach().requires_grad_()
            total = task
            for each in self.objectives:
                total = each.objective(total, point, step)
            by_task, by_point = torch.autograd.grad(total.sum(), (task, point), allow_unused=True)
        if by_task is None:
            gradients.zero_()
        else:
            gradients.mul_(by_task[:, None])
        if by_point is not None:
            gradients.add_(by_point)

    def after_step(self, parameters: Tensor, step: LocalStep) -> None:
        """Let the attacks change the (k, d) parameters in place."""
        with torch.no_grad():
            for each in self.followers:
                each.after_step(parameters, step)
