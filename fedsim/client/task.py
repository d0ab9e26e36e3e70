"""The loss that clients minimise, and how a model is measured."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fedsim.blocks import exact


def mean_loss(outputs: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Mean loss of a batch: cross-entropy, or squared error for regression (``num_classes`` 0).

    Args:
        outputs: (B, C), or (B, T, C) for sequences, or (B,) or (B, 1) for regression.
        targets: (B,), or (B, T).
    """
    if not num_classes:
        return functional.mse_loss(outputs.reshape(targets.shape), targets)
    if outputs.ndim > 2:
        return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())
    return functional.cross_entropy(outputs, targets)


def example_losses(outputs: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """(B,) loss of each example, whose mean is :func:`mean_loss`."""
    if not num_classes:
        return (
            functional.mse_loss(outputs.reshape(targets.shape), targets, reduction="none")
            .reshape(len(targets), -1)
            .mean(1)
        )
    if outputs.ndim > 2:
        losses = functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        return losses.reshape(len(targets), -1).mean(1)
    return functional.cross_entropy(outputs, targets, reduction="none")


def correct(outputs: Tensor, targets: Tensor, num_classes: int) -> float:
    """How many of a batch's examples are classified right (a sequence counts by its share); 0 for regression."""
    if not num_classes:
        return 0.0
    hits = outputs.argmax(-1) == targets
    return float(exact(hits.reshape(len(targets), -1)).mean(1).sum())
