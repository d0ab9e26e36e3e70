"""The stacked path: k models at once, forward and backward by hand through their layers' twins.

Gradients are written straight into the (k, d) gradient. With plain SGD there is no gradient at all: the backward
product is added to the weights in place.

Source: the batched-weights view of cross-client vectorisation, as in FedJAX (Ro et al. 2021) and torch.func.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.client.twins import FlattenTwin, Sink, twins_of
from fedsim.updates import Layout

Views = list[list[Tensor]]


class Stacked:
    """The engine that gives a chunk's gradients by its layers' twins.

    Args:
        module: the model.
        layout: where its parameters stand in a row.
        num_classes: classes of the target; 0 for regression.
        compute: precision of the products, None for the rows' own.

    Raises:
        ValueError: a layer without a twin; the message names it.
    """

    name = "stacked"

    def __init__(self, module: nn.Module, layout: Layout, num_classes: int, compute: torch.dtype | None = None) -> None:
        layers, reason = twins_of(module, compute)
        if not layers:
            raise ValueError(reason or "the model has no layers")
        self.flat_inputs = isinstance(layers[0][0], FlattenTwin)
        self.layers = [twin for twin, _ in layers]
        self.names = [names for _, names in layers]
        self.first = next((i for i, names in enumerate(self.names) if names), len(layers))
        self.layout, self.num_classes = layout, num_classes

    def views(self, rows: Tensor) -> Views:
        """Each layer's parameters as views into (r, d) rows."""
        named = self.layout.views(rows)
        return [[named[name] for name in names] for names in self.names]

    def gradient(self, weights: Views, gradients: Views, inputs: Tensor, targets: Tensor) -> Tensor:
        """Write the gradients of the mean losses; (r,) sums of the losses over each client's batch."""
        return self._pass(weights, gradients, inputs, targets, Sink())

    def descend(self, weights: Views, inputs: Tensor, targets: Tensor, rate: float) -> Tensor:
        """One step of plain SGD in place; (r,) sums of the losses over each client's batch before it."""
        return self._pass(weights, None, inputs, targets, Sink(rate))

    @torch.no_grad()
    def _pass(self, weights: Views, gradients: Views | None, inputs: Tensor, targets: Tensor, sink: Sink) -> Tensor:
        kept = []
        signal = inputs
        for layer, parameters in zip(self.layers, weights, strict=True):
            signal, keep = layer.forward(parameters, signal)
            kept.append(keep)
        losses, signal = loss_and_signal(signal, targets, self.num_classes)
        for i in range(len(self.layers) - 1, self.first - 1, -1):
            own: Sequence[Tensor | None] = [None] * len(weights[i]) if gradients is None else gradients[i]
            signal = self.layers[i].backward(weights[i], own, kept[i], signal, sink, i > self.first)
        return losses


def loss_and_signal(outputs: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """(r,) sums of the losses of (r, B, …) outputs, and the gradient of each client's mean loss by its outputs."""
    rows, batch = targets.shape[:2]
    if not num_classes:
        difference = outputs.reshape(targets.shape).to(targets.dtype) - targets
        losses = difference.square().flatten(1).mean(1) * batch
        return losses, (difference * (2 / difference[0].numel())).view(outputs.shape)
    logits = outputs if outputs.ndim == 3 else outputs.flatten(1, -2)
    by_class = logits.transpose(1, 2).contiguous()
    if by_class.dtype == torch.bfloat16:
        by_class = by_class.float()
    classes = targets.reshape(rows, 1, -1)
    each = classes.shape[2]
    signal = functional.log_softmax(by_class, 1)
    losses = signal.gather(1, classes).sum((1, 2)).mul_(-batch / each)
    signal.exp_().scatter_add_(1, classes, signal.new_full((), -1.0).expand(classes.shape)).mul_(1 / each)
    signal = signal.transpose(1, 2)
    return losses, signal if outputs.ndim == 3 else signal.reshape(outputs.shape)
