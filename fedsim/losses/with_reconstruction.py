"""Two objectives on a client: its labels, and the reconstruction of its inputs.

    ℓ_1 = cross-entropy of the labels        ℓ_2 = mean squared error of a decoder, linear in the features

The model's last linear layer becomes two heads on the same features, classes and decoder. The optimizer ``sam_gs``
combines the gradients of ℓ_1 and ℓ_2; any other one descends along their sum. Only logits leave the model in
evaluation, and accuracy and loss are those of the labels.

Borsani et al., "Gradient Similarity Surgery in Multi-Task Deep Learning", 2025 (arXiv:2506.06130).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim import registry
from fedsim.errors import Fault, FedsimError
from fedsim.losses.loss import NO_CLASSES, Loss, last_linear, loss, softmax_losses


class TwoHeads(nn.Module):
    """Logits and, in training, behind them the decoded numbers.

    Args:
        classes: the layer of the logits.
        pixels: numbers of an input.
    """

    def __init__(self, classes: nn.Linear, pixels: int) -> None:
        super().__init__()
        # The classes stand last: what looks for a model's last linear layer means them.
        self.pixels = nn.Linear(classes.in_features, pixels)
        self.classes = classes

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classes(features)
        return torch.cat([logits, self.pixels(features)], -1) if self.training else logits


@loss("with_reconstruction")
class WithReconstruction(Loss):
    """Cross-entropy of the labels beside the squared error of a decoder of the inputs."""

    objectives: ClassVar[int] = 2
    takes: ClassVar[str] = "numbers"

    def set_up(self, shape: Sequence[int]) -> None:
        """The shape of an input, which the decoder gives back; called before the model is built."""
        self.numbers = prod(shape)

    def head(self, model: nn.Module) -> nn.Module:
        name, old = last_linear(model)
        assert isinstance(old, nn.Linear)
        new = TwoHeads(old, self.numbers)
        if not name:
            return new
        setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], new)
        return model

    def fit(self, num_classes: int) -> None:
        if not num_classes:
            raise FedsimError(NO_CLASSES)

    def losses(self, outputs: Tensor, inputs: Tensor, targets: Tensor, num_classes: int) -> Tensor:
        """(2,) mean losses of a batch: of the labels, of the reconstruction."""
        logits, decoded = outputs[..., :num_classes], outputs[..., num_classes:]
        return torch.stack([functional.cross_entropy(logits, targets), functional.mse_loss(decoded, inputs.flatten(1))])

    def example_losses(
        self, outputs: Tensor, targets: Tensor, num_classes: int, present: Tensor | None = None
    ) -> Tensor:
        """(B,) those of the labels."""
        return softmax_losses(outputs[..., :num_classes], targets)

    def check(self, scenario: Any) -> Iterable[Fault]:
        """Two means of a batch are all that there is: no gradients of examples, no evaluations beside training."""
        client, server = scenario.client, scenario.server
        part = registry.get("optimizer", client.optimizer.name)
        if any(hasattr(part, each) for each in ("combine", "noisy_gradients", "evaluates")):
            accepted = "one that descends along the gradient of a batch, with client.loss = 'with_reconstruction'"
            yield Fault("/client.optimizer", client.optimizer.name, accepted)
        if server.estimator is not None:
            accepted = "none with client.loss = 'with_reconstruction', of which clients answer no gradients"
            yield Fault("/server.estimator", server.estimator.name, accepted)
        if client.regularizers:
            given = [each.name for each in client.regularizers]
            yield Fault("/client.regularizers", given, "none beside client.loss = 'with_reconstruction'")
        if scenario.observe.observers:
            given = [each.name for each in scenario.observe.observers]
            yield Fault("/observe.observers", given, "none: they know of one objective, client.loss gives two")
        if scenario.evaluate.gradient_norm:
            yield Fault("/evaluate.gradient_norm", True, "false: it is of one objective, and client.loss gives two")
