"""The stacked path: k models at once, forward and backward by hand through their layers' twins.

Gradients are written straight into the (k, d) gradient. With plain SGD there is no gradient at all: the backward
product is added to the weights in place.

Source: the batched-weights view of cross-client vectorisation, as in FedJAX (Ro et al. 2021) and torch.func.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from fedsim.client.objective import NOTHING, Aside, Objective
from fedsim.client.twins import ExampleSink, FlattenTwin, HarmonicTwin, LinearTwin, Sink, twins_of
from fedsim.updates import Layout

Views = list[list[Tensor]]


class Stacked:
    """The engine that gives a chunk's gradients by its layers' twins.

    Args:
        module: the model.
        layout: where its parameters stand in a row.
        objective: what is minimised.
        compute: precision of the products, None for the rows' own.
        examples: whether :meth:`apart` is asked for the gradients of single examples.

    Raises:
        ValueError: a layer without a twin, which the message names; regularizers where the head is not the last layer;
            a layer whose twin has no gradients of single examples.
    """

    name = "stacked"

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        objective: Objective,
        compute: torch.dtype | None = None,
        examples: bool = False,
    ) -> None:
        layers, reason = twins_of(module, compute)
        if not layers:
            raise ValueError(reason or "the model has no layers")
        if examples and any(isinstance(twin, HarmonicTwin) for twin, _ in layers):
            raise ValueError("the stacked twin of its harmonic head gives no gradients of single examples")
        # A loss of several objectives reads the inputs, too, in their own shape.
        self.flat_inputs = isinstance(layers[0][0], FlattenTwin) and objective.objectives == 1
        self.layers = [twin for twin, _ in layers]
        self.names = [names for _, names in layers]
        self.first = next((i for i, names in enumerate(self.names) if names), len(layers))
        self.layout, self.objective = layout, objective
        if objective.regularizers and not isinstance(self.layers[-1], (LinearTwin, HarmonicTwin)):
            raise ValueError("regularizers look at what its head is given, and the head is not its last layer")

        def outputs(parameters: dict[str, Tensor], inputs: Tensor) -> Any:
            return functional_call(module, parameters, (inputs,))

        # A model with several objectives has outputs of its own in training.
        if objective.objectives > 1:
            module.eval()
        self.outputs: Any = vmap(outputs)

    def views(self, rows: Tensor) -> Views:
        """Each layer's parameters as views into (r, d) rows."""
        named = self.layout.views(rows)
        return [[named[name] for name in names] for names in self.names]

    def gradient(
        self, weights: Views, gradients: Views, inputs: Tensor, targets: Tensor, aside: Aside = NOTHING
    ) -> Tensor:
        """Write the gradients of the mean losses; (r,) sums of the losses over each client's batch."""
        return self._pass(weights, gradients, inputs, targets, Sink(), aside)

    def descend(self, weights: Views, inputs: Tensor, targets: Tensor, rate: float) -> Tensor:
        """One step of plain SGD in place; (r,) sums of the losses over each client's batch before it."""
        return self._pass(weights, None, inputs, targets, Sink(rate), NOTHING)

    @torch.no_grad()
    def apart(self, weights: Views, parts: Tensor, inputs: Tensor, targets: Tensor, aside: Aside = NOTHING) -> Tensor:
        """Write the gradients of a batch's parts, its examples or objectives, into (r, G, d); (r,) sums of losses."""
        if self.objective.objectives > 1:
            outputs, _, kept = self._forward(weights, inputs)
            losses, signals = losses_and_signals(self.objective, outputs, inputs, targets)
            for k, signal in enumerate(signals):
                self._backward(weights, self.views(parts[:, k]), kept, signal, Sink(again=True))
            return losses.sum(1) * inputs.shape[1]
        outputs, _, kept = self._forward(weights, inputs)
        if self.objective.plain:
            summed, signal = loss_and_signal(outputs, targets, self.objective.num_classes)
        else:
            summed, signal = loss_and_signal_of(self.objective, outputs, targets, aside.present)
        batch = inputs.shape[1]
        self._backward(weights, self.views(parts.flatten(0, 1)), kept, signal * batch, ExampleSink(batch))
        return summed

    def logits(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """(r, B, …) outputs for (r, d) rows, differentiable."""
        return self.outputs(self.layout.views(rows), inputs)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _pass(
        self,
        weights: Views,
        gradients: Views | None,
        inputs: Tensor,
        targets: Tensor,
        sink: Sink,
        aside: Aside,
    ) -> Tensor:
        signal, features, kept = self._forward(weights, inputs)
        aimed = None
        if self.objective.objectives > 1:
            each, signals = losses_and_signals(self.objective, signal, inputs, targets)
            losses, signal = each.sum(1) * inputs.shape[1], sum(signals[1:], signals[0])
        elif self.objective.plain:
            losses, signal = loss_and_signal(signal, targets, self.objective.num_classes)
        elif self.objective.regularizers:
            losses, signal, aimed = loss_and_signals(self.objective, features, signal, targets, aside)
        else:
            losses, signal = loss_and_signal_of(self.objective, signal, targets, aside.present)
        self._backward(weights, gradients, kept, signal, sink, aimed)
        return losses

    def _forward(self, weights: Views, inputs: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
        """Outputs, what the last layer is given, and what the backward pass needs."""
        kept = []
        signal = features = inputs
        for layer, parameters in zip(self.layers, weights, strict=True):
            features = signal
            signal, keep = layer.forward(parameters, features)
            kept.append(keep)
        return signal, features, kept

    def _backward(
        self,
        weights: Views,
        gradients: Views | None,
        kept: list[Any],
        signal: Tensor,
        sink: Sink,
        aimed: Tensor | None = None,
    ) -> None:
        for i in range(len(self.layers) - 1, self.first - 1, -1):
            own: Sequence[Tensor | None] = [None] * len(weights[i]) if gradients is None else gradients[i]
            signal = self.layers[i].backward(weights[i], own, kept[i], signal, sink, i > self.first)
            if aimed is not None and i > self.first:
                signal, aimed = signal + aimed.to(signal.dtype), None


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


def loss_and_signal_of(
    objective: Objective, outputs: Tensor, targets: Tensor, present: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same for a loss part, by autograd; ``present``: (r, C) or None."""
    rows, batch = targets.shape[:2]
    with torch.enable_grad():
        leaf = outputs.detach()
        leaf = (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).requires_grad_()
        mask = None if present is None else present.repeat_interleave(batch, 0)
        each = objective.example_losses(leaf.flatten(0, 1), targets.flatten(0, 1), mask).view(rows, batch)
        (signal,) = torch.autograd.grad(each.mean(1).sum(), leaf)
    return each.detach().sum(1), signal


def loss_and_signals(
    objective: Objective, features: Tensor, outputs: Tensor, targets: Tensor, aside: Aside
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for an objective with regularizers, and its gradient by the (r, B, …, m) inputs of the head."""

    def total(logits: Tensor, seen: Tensor, labels: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        seen = seen.flatten(1) if seen.ndim > 2 else seen
        return objective.total(logits, seen, labels, Aside(present, aside.references))

    with torch.enable_grad():
        leaves = [
            (each.float() if each.dtype == torch.bfloat16 else each).requires_grad_()
            for each in (outputs.detach(), features.detach())
        ]
        together: Any = vmap(total, in_dims=(0, 0, 0, None if aside.present is None else 0))
        totals, losses = together(*leaves, targets, aside.present)
        signal, aimed = torch.autograd.grad(totals.sum(), leaves, allow_unused=True, materialize_grads=True)
    return losses.detach() * targets.shape[1], signal, aimed


def losses_and_signals(
    objective: Objective, outputs: Tensor, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """(r, K) mean losses of a loss part of K objectives, and each one's gradient by the outputs."""
    with torch.enable_grad():
        leaf = outputs.detach()
        leaf = (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).requires_grad_()
        together: Any = vmap(objective.losses)
        losses: Tensor = together(leaf, inputs, targets)
        signals = [
            torch.autograd.grad(each.sum(), leaf, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for each in losses.unbind(1)
        ]
    return losses.detach(), signals
