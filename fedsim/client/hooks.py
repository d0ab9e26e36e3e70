"""What attacks do inside the training of the clients that they hold."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.attack import LocalStep, overrides
from attacks.held import Held

LOCAL = ("poison", "objective", "after_step")
"""Hooks that run on the malicious client."""


class Hooks:
    """The local hooks of a list of attacks; each works on what the one before left.

    An attack that each client has to itself is called with one client's row at a time, in a tensor of its own.

    Args:
        held: the attacks, and whose they are.

    Attributes:
        touched: clients of whose training a hook has changed something since they were taken out.
    """

    def __init__(self, held: Held) -> None:
        self.held = held
        self.touched: set[int] = set()
        self.objectives = [i for i, each in enumerate(held.attacks) if overrides(each, "objective")]
        self.followers = [i for i, each in enumerate(held.attacks) if overrides(each, "after_step")]

    def __bool__(self) -> bool:
        return bool(self.objectives or self.followers)

    def total(self, losses: Tensor, parameters: Tensor, step: LocalStep) -> Tensor:
        """The (k,) losses that the attacks make of the (k,) task losses, differentiable by both arguments.

        Whether they are others is not looked at: the clients count as touched.
        """
        if self.objectives:
            self.touched.update(node.client for node in step.clients)
        return self._total(losses, parameters, step)

    def _total(self, losses: Tensor, parameters: Tensor, step: LocalStep) -> Tensor:
        for position in self.objectives:
            if self.held.apart[position]:
                rows = zip(step.clients, torch.split(losses, 1), torch.split(parameters, 1), strict=True)
                alone = [
                    self.held.attack(position, node.client).objective(loss.clone(), row.clone(), step.only(i))
                    for i, (node, loss, row) in enumerate(rows)
                ]
                losses = torch.cat([each.reshape(1) for each in alone])
            else:
                losses = self.held.attacks[position].objective(losses, parameters, step)
        return losses

    def objective(self, losses: Tensor, parameters: Tensor, gradients: Tensor, step: LocalStep) -> None:
        """Turn the (k, d) gradients of the (k,) task losses into those of the attacks' losses, in place."""
        if not self.objectives:
            return
        with torch.enable_grad():
            task = losses.detach().to(parameters.dtype).requires_grad_()
            point = parameters.detach().requires_grad_()
            total = self._total(task, point, step)
            by_task, by_point = torch.autograd.grad(total.sum(), (task, point), allow_unused=True)
        if self._unseen(step):
            changed = torch.ones_like(task, dtype=torch.bool) if by_task is None else by_task != 1
            self._note(step, changed if by_point is None else changed | (by_point != 0).any(1))
        if by_task is None:
            gradients.zero_()
        else:
            gradients.mul_(by_task[:, None])
        if by_point is not None:
            gradients.add_(by_point)

    def after_step(self, parameters: Tensor, step: LocalStep) -> None:
        """Let the attacks change the (k, d) parameters in place."""
        before = parameters.clone() if self.followers and self._unseen(step) else None
        self._follow(parameters, step)
        if before is not None:
            self._note(step, (parameters != before).any(1))

    def _unseen(self, step: LocalStep) -> bool:
        return any(node.client not in self.touched for node in step.clients)

    def _note(self, step: LocalStep, changed: Tensor) -> None:
        self.touched.update(node.client for node, each in zip(step.clients, changed.tolist(), strict=True) if each)

    def _follow(self, parameters: Tensor, step: LocalStep) -> None:
        with torch.no_grad():
            for position in self.followers:
                if not self.held.apart[position]:
                    self.held.attacks[position].after_step(parameters, step)
                    continue
                for i, node in enumerate(step.clients):
                    row = parameters[i : i + 1].clone()
                    self.held.attack(position, node.client).after_step(row, step.only(i))
                    parameters[i : i + 1] = row


HONEST = Hooks(Held(()))
"""What nobody does."""
