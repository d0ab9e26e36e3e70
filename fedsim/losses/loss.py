"""The loss that clients minimise, by name: cross-entropy, squared error, and what a head of its own goes with.

A loss part gives the loss of each example from the model's outputs and the targets. It may replace the model's last
linear layer when the model is built, alike on the server and on all clients. Without one clients minimise the task's
own: cross-entropy for classes, squared error for numbers.

A client that does not hold a class can only push it away. ``mask_absent`` takes the classes that a client does not
hold out of its softmax: they get no gradient there.

Squared error on classes: Hui & Belkin, "Evaluation of neural architectures trained with square loss vs cross-entropy",
ICLR 2021, arXiv 2006.07322; masking: restricted softmax, Legate, Caccia & Belilovsky, "Re-weighted softmax
cross-entropy to control forgetting in federated learning", 2023, arXiv 2304.05260.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fedsim.errors import Fault, FedsimError
from fedsim.losses.harmonic import mask_absent
from fedsim.registry import register

loss = partial(register, "loss")

NO_CLASSES = "client.loss: given a loss of classes; accepted: 'squared_error' for targets that are numbers"


class Loss:
    """Base of all losses.

    One whose ``example_losses`` make of each example's outputs and target that example's loss says so in its own class,
    ``reads: ClassVar[str] = "example"``; without it no privacy of single examples is claimed. One of several
    ``objectives`` gives their means over a batch, ``losses(outputs, inputs, targets, num_classes)``; the optimizer adds
    them up, or combines their gradients.
    """

    objectives: ClassVar[int] = 1

    @property
    def masks(self) -> bool:
        """Whether it wants to know which classes a client holds."""
        return bool(getattr(self, "mask_absent", False))

    def head(self, model: nn.Module) -> nn.Module:
        """The model with the head that this loss goes with; called once, when the model is built."""
        return model

    def is_default(self, num_classes: int) -> bool:
        """Whether it is what clients minimise for such targets without a loss part."""
        return False

    def fit(self, num_classes: int) -> None:
        """Called when the data are known.

        Raises:
            FedsimError: the loss is not for such targets.
        """

    def example_losses(
        self, outputs: Tensor, targets: Tensor, num_classes: int, present: Tensor | None = None
    ) -> Tensor:
        """(B,) loss of each example.

        Args:
            outputs: (B, C), (B, T, C) for sequences, or (B,) or (B, 1) for a regression.
            targets: (B,), or (B, T).
            num_classes: C; 0 for a regression.
            present: (C,) or (B, C), the classes that the client holds; None where that is not to be asked.
        """
        raise NotImplementedError

    def check(self, scenario: Any) -> Iterable[Fault]:
        """Masks are read where clients train, and are a secret of the client's examples."""
        if not self.masks:
            return
        if scenario.server.estimator is not None:
            accepted = "false: clients that answer an estimator do not mask classes"
            yield Fault("mask_absent", True, accepted, ("server.estimator",))
        if scenario.client.optimizer.name == "dp_sgd":
            accepted = "false: what classes there are enters the gradient of every example, and no clip bounds it"
            yield Fault("mask_absent", True, accepted, ("client.optimizer",))


@loss("cross_entropy")
class CrossEntropy(Loss):
    """Cross-entropy of the softmax.

    Args:
        label_smoothing: share of the target that is spread over all classes.
        mask_absent: leave the classes that a client does not hold out of its softmax.
    """

    reads: ClassVar[str] = "example"

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mask_absent: bool = False

    def is_default(self, num_classes: int) -> bool:
        return not self.label_smoothing and not self.mask_absent

    def fit(self, num_classes: int) -> None:
        if not num_classes:
            raise FedsimError(NO_CLASSES)

    def check(self, scenario: Any) -> Iterable[Fault]:
        yield from super().check(scenario)
        if self.mask_absent and self.label_smoothing:
            accepted = "0 with mask_absent: a masked class has no probability to be given"
            yield Fault("label_smoothing", self.label_smoothing, accepted)

    def example_losses(
        self, outputs: Tensor, targets: Tensor, num_classes: int, present: Tensor | None = None
    ) -> Tensor:
        return softmax_losses(outputs, targets, present, self.label_smoothing)


@loss("squared_error")
class SquaredError(Loss):
    """Squared error, of numbers or, for classes, of the outputs against the one-hot target (mean over classes)."""

    reads: ClassVar[str] = "example"

    def is_default(self, num_classes: int) -> bool:
        return not num_classes

    def example_losses(
        self, outputs: Tensor, targets: Tensor, num_classes: int, present: Tensor | None = None
    ) -> Tensor:
        wanted = indicator(targets, num_classes).to(outputs.dtype) if num_classes else targets
        squares = (outputs.reshape(wanted.shape) - wanted).square()
        return squares.reshape(len(wanted), -1).mean(1)


def softmax_losses(
    outputs: Tensor, targets: Tensor, present: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """(B,) cross-entropy of (B, C) logits, or of (B, T, C), averaged over T; over the classes that are present."""
    if present is not None:
        between = (1,) * (outputs.ndim - 2)
        outputs = mask_absent(outputs, present.view(*present.shape[:-1], *between, present.shape[-1]))
    each = functional.cross_entropy(
        outputs.flatten(0, -2), targets.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return each.reshape(len(targets), -1).mean(1)


def indicator(targets: Tensor, num_classes: int) -> Tensor:
    """(…, C) bool, one-hot; unlike torch's it asks no tensor for its numbers, so that vmap takes it."""
    return targets.unsqueeze(-1) == torch.arange(num_classes, device=targets.device)


def last_linear(model: nn.Module, also: tuple[type[nn.Module], ...] = ()) -> tuple[str, nn.Module]:
    """(name, layer) of the model's last linear layer, or of the last layer of one of the other types.

    Raises:
        FedsimError: there is none.
    """
    found: list[tuple[str, nn.Module]] = []
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, *also)
    for name, layer in model.named_modules():
        if isinstance(layer, kinds):
            found.append((name, layer))
    if not found:
        raise FedsimError("the model has no linear layer; accepted: one whose last layer is linear")
    return found[-1]
