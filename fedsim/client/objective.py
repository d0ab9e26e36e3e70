"""What a client minimises: the scenario's loss, or the task's own, and the penalties of its regularizers.

A regularizer sees a batch as the model's head does, features, logits and targets, and what the server told of the
other clients. Features are the inputs of the model's last linear layer (or harmonic head).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.client.task import example_losses, mean_loss
from fedsim.losses.harmonic import HarmonicHead
from fedsim.losses.loss import Loss, last_linear

References = tuple[Mapping[str, Tensor], ...]
"""For each regularizer what the server told, by name."""


@dataclass(frozen=True)
class Aside:
    """What an objective needs beside a batch.

    Args:
        present: (C,) classes that the client holds, or (r, C) for r clients; None where no loss asks.
        references: of the regularizers, the same for all clients of a chunk.
    """

    present: Tensor | None = None
    references: References = ()

    def rows(self, start: int, stop: int) -> Aside:
        """Those of some clients."""
        return Aside(None if self.present is None else self.present[start:stop], self.references)


NOTHING = Aside()


@dataclass(frozen=True)
class Objective:
    """Loss and penalties of a batch.

    Args:
        num_classes: classes of the target; 0 for regression.
        loss: a loss part; None: the task's own.
        regularizers: regularizer parts.
    """

    num_classes: int
    loss: Loss | None = None
    regularizers: Sequence[Any] = ()

    @property
    def plain(self) -> bool:
        """Whether it is the task's own loss and nothing else."""
        return self.loss is None and not self.regularizers

    @property
    def objectives(self) -> int:
        """K, how many losses a batch has; more than one only where the loss part gives several."""
        return int(getattr(self.loss, "objectives", 1))

    def losses(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """(K,) the objectives of a batch, where the loss part gives several."""
        part: Any = self.loss
        given: Tensor = part.losses(outputs, inputs, targets, self.num_classes)
        return given

    def example_losses(self, outputs: Tensor, targets: Tensor, present: Tensor | None = None) -> Tensor:
        """(B,) loss of each example."""
        if self.loss is None:
            return example_losses(outputs, targets, self.num_classes)
        return self.loss.example_losses(outputs, targets, self.num_classes, present)

    def mean_loss(self, outputs: Tensor, targets: Tensor, present: Tensor | None = None) -> Tensor:
        """The mean loss of a batch, without penalties."""
        if self.loss is None:
            return mean_loss(outputs, targets, self.num_classes)
        return self.example_losses(outputs, targets, present).mean()

    def total(self, outputs: Tensor, features: Tensor | None, targets: Tensor, aside: Aside) -> tuple[Tensor, Tensor]:
        """What is minimised on a batch, and its part that is the loss."""
        task = self.mean_loss(outputs, targets, aside.present)
        total, before = task, 1.0
        for part, reference in zip(self.regularizers, aside.references, strict=True):
            assert features is not None
            # A penalty joins the loss as it is, whatever those before it divided it by: their order means nothing.
            total = part.combine(total * before, features, outputs, targets, reference, task) / before
            before *= part.divisor(reference)
        return total, task

    def divisor(self, references: References) -> float:
        """What the regularizers divide the loss by, all of them together."""
        return float(math.prod(part.divisor(told) for part, told in zip(self.regularizers, references, strict=True)))

    def divide_decay(self, optimizer: torch.optim.Optimizer, references: References) -> None:
        """Divide the L2 penalty that an optimizer adds to gradients by what the regularizers divide the loss by."""
        divisor = self.divisor(references)
        for group in optimizer.param_groups if divisor > 1 else ():
            if not group.get("decoupled_weight_decay", False):
                group["weight_decay"] = group.get("weight_decay", 0.0) / divisor


class Tap:
    """Takes what a module's head is given, in each forward pass.

    Args:
        module: the model; the tap stays in it.

    Raises:
        FedsimError: it has no linear layer.
    """

    def __init__(self, module: nn.Module) -> None:
        self.features: Tensor | None = None
        _, head = last_linear(module, (HarmonicHead,))
        head.register_forward_pre_hook(self._take)

    def _take(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        self.features = given[0]

    def pop(self) -> Tensor:
        """The (B, features) of the last pass; held no longer."""
        features, self.features = self.features, None
        assert features is not None
        return features.flatten(1) if features.ndim > 2 else features


def tap(objective: Objective, module: nn.Module) -> Tap | None:
    """A tap where the objective has regularizers."""
    return Tap(module) if objective.regularizers else None


def class_mask(num_classes: int, targets: Tensor) -> Tensor:
    """(C,) which classes occur."""
    mask = torch.zeros(num_classes, dtype=torch.bool, device=targets.device)
    mask[targets.reshape(-1)] = True
    return mask
