"""The stacked path: k models at once, each layer's weights a (k, …) view into one (k, d) tensor.

A layer that has a twin here is run forward and backward by hand: one batched product each way for all k clients,
gradients written straight into the (k, d) gradient. With plain SGD there is no gradient at all: the backward product
is added to the weights in place.

Source: the batched-weights view of cross-client vectorisation, as in FedJAX (Ro et al. 2021) and torch.func.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.updates import Layout

ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh,
    nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
"""Activations that pass as they are, their backward by autograd."""


NARROW = 16
"""Outputs of a Linear up to which its product is laid out class by class: twice as fast, and as the loss reads it."""


@dataclass
class Sink:
    """Where a backward pass puts its products: into gradients, or straight into the weights (``rate`` given)."""

    rate: float | None = None

    def product(self, weight: Tensor, gradient: Tensor | None, left: Tensor, right: Tensor) -> None:
        if gradient is None:
            weight.baddbmm_(left, right, alpha=-(self.rate or 0.0))
        elif left.dtype == gradient.dtype:
            gradient.baddbmm_(left, right, beta=0)
        else:
            gradient.copy_(torch.bmm(left, right))

    def total(self, weight: Tensor, gradient: Tensor | None, values: Tensor) -> None:
        """Sum of (r, …, f) values over all but the first and last dimension."""
        summed = values.sum(tuple(range(1, values.ndim - 1)))
        if gradient is None:
            weight.sub_(summed, alpha=self.rate or 0.0)
        else:
            gradient.copy_(summed)


class Twin:
    """A layer for r clients at once; inputs (r, B, …)."""

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        """Outputs, and what the backward pass needs."""
        raise NotImplementedError

    def backward(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], kept: Any, signal: Tensor,
        sink: Sink, needed: bool,
    ) -> Tensor:  # fmt: skip
        """The loss's gradient by the inputs (anything unless ``needed``); parameters' gradients go to the sink."""
        raise NotImplementedError


class LinearTwin(Twin):
    """x · Wᵀ + b, in the precision ``compute``."""

    def __init__(self, compute: torch.dtype | None) -> None:
        self.compute = compute

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        flat = inputs.flatten(1, -2) if inputs.ndim > 3 else inputs
        weight = parameters[0]
        if self.compute is not None:
            flat, weight = flat.to(self.compute), weight.to(self.compute)
        bias = parameters[1].unsqueeze(2).to(weight.dtype) if len(parameters) > 1 else None
        if weight.shape[1] <= NARROW:
            across = flat.transpose(1, 2)
            outputs = torch.bmm(weight, across) if bias is None else torch.baddbmm(bias, weight, across)
            outputs = outputs.transpose(1, 2)
        else:
            turned = weight.transpose(1, 2)
            outputs = torch.bmm(flat, turned) if bias is None else torch.baddbmm(bias.transpose(1, 2), flat, turned)
        if inputs.ndim > 3:
            outputs = outputs.reshape(*inputs.shape[:-1], -1)
        return outputs, (flat, weight, inputs.shape)

    def backward(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], kept: Any, signal: Tensor,
        sink: Sink, needed: bool,
    ) -> Tensor:  # fmt: skip
        flat, weight, shape = kept
        if signal.ndim > 3:
            signal = signal.flatten(1, -2)
        signal = signal.to(weight.dtype)
        before = torch.bmm(signal, weight).view(shape) if needed else signal
        sink.product(parameters[0], gradients[0], signal.transpose(1, 2), flat)
        if len(parameters) > 1:
            sink.total(parameters[1], gradients[1], signal)
        return before


class ReLUTwin(Twin):
    """max(x, 0); in place where nobody else reads the inputs."""

    def __init__(self, in_place: bool) -> None:
        self.in_place = in_place

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        outputs = inputs.relu_() if self.in_place else inputs.relu()
        return outputs, outputs

    def backward(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], kept: Any, signal: Tensor,
        sink: Sink, needed: bool,
    ) -> Tensor:  # fmt: skip
        before: Tensor = torch.ops.aten.threshold_backward.default(signal, kept, 0)
        return before


class ElementwiseTwin(Twin):
    """A parameterless activation, its backward by autograd."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        with torch.enable_grad():
            leaf = inputs.detach().requires_grad_()
            outputs: Tensor = self.module(leaf.clone() if getattr(self.module, "inplace", False) else leaf)
        return outputs.detach(), (leaf, outputs)

    def backward(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], kept: Any, signal: Tensor,
        sink: Sink, needed: bool,
    ) -> Tensor:  # fmt: skip
        leaf, outputs = kept
        found = torch.autograd.grad(outputs, leaf, signal.to(outputs.dtype))
        before: Tensor = found[0]
        return before


class FlattenTwin(Twin):
    """(r, B, …) → (r, B, features)."""

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        return inputs.flatten(2) if inputs.ndim > 3 else inputs, inputs.shape

    def backward(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], kept: Any, signal: Tensor,
        sink: Sink, needed: bool,
    ) -> Tensor:  # fmt: skip
        return signal.reshape(kept)


class LayerNormTwin(Twin):
    """Layer norm over the last dimensions, scale and shift of each client's own."""

    def __init__(self, shape: Sequence[int], eps: float) -> None:
        self.shape, self.eps = list(shape), eps

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        inputs = inputs.to(parameters[0].dtype) if parameters else inputs
        normal, mean, rstd = torch.native_layer_norm(inputs, self.shape, None, None, self.eps)
        kept = (inputs, normal, mean, rstd)
        if not parameters:
            return normal, kept
        scaled = normal * self._spread(parameters[0], inputs)
        return scaled + self._spread(parameters[1], inputs) if len(parameters) > 1 else scaled, kept

    def _spread(self, parameter: Tensor, inputs: Tensor) -> Tensor:
        between = (1,) * (inputs.ndim - 1 - len(self.shape))
        return parameter.view(parameter.shape[0], *between, *self.shape)

    def backward(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], kept: Any, signal: Tensor,
        sink: Sink, needed: bool,
    ) -> Tensor:  # fmt: skip
        inputs, normal, mean, rstd = kept
        signal = signal.to(inputs.dtype)
        inner = signal * self._spread(parameters[0], inputs) if parameters else signal
        if parameters:
            width = math.prod(self.shape)
            rows = signal.shape[0]
            scale, shift = [*gradients, None][:2] if gradients else (None, None)
            flat = [parameter.view(rows, width) for parameter in parameters]
            into = [None if g is None else g.view(rows, width) for g in (scale, shift)]
            sink.total(flat[0], into[0], (signal * normal).view(rows, -1, width))
            if len(parameters) > 1:
                sink.total(flat[1], into[1], signal.reshape(rows, -1, width))
        before: Tensor = torch.ops.aten.native_layer_norm_backward.default(
            inner, inputs, self.shape, mean, rstd, None, None, [True, False, False]
        )[0]
        return before


def twins_of(module: nn.Module, compute: torch.dtype | None = None) -> tuple[list[tuple[Twin, list[str]]], str]:
    """The layers of a model as (twin, names of its parameters), or an empty list and the reason why not."""
    found: list[tuple[Twin, list[str]]] = []
    seen: set[int] = set()
    previous: nn.Module | None = None
    for prefix, layer in _leaves(module):
        own = [f"{prefix}{name}" for name, _ in layer.named_parameters(recurse=False)]
        if own and id(layer) in seen:
            return [], f"layer '{prefix.rstrip('.')}' is used twice"
        seen.add(id(layer))
        twin = _twin(layer, previous, compute)
        if twin is None or layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
            return [], f"layer '{prefix.rstrip('.') or 'model'}' ({type(layer).__name__}) has no stacked twin"
        found.append((twin, own))
        previous = layer
    parameters = list(module.parameters())
    if sum(len(names) for _, names in found) != len(parameters):
        return [], "its layers share parameters"
    return found, ""


def _leaves(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    if type(module).forward is nn.Sequential.forward:
        return [
            leaf
            for name, child in module._modules.items()
            if child is not None
            for leaf in _leaves(child, f"{prefix}{name}.")
        ]
    return [(prefix, module)]


def _twin(layer: nn.Module, previous: nn.Module | None, compute: torch.dtype | None) -> Twin | None:
    if type(layer) is nn.Linear:
        return LinearTwin(compute)
    if type(layer) is nn.ReLU:
        return ReLUTwin(in_place=type(previous) is nn.Linear)
    if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
        return FlattenTwin()
    if type(layer) is nn.LayerNorm:
        return LayerNormTwin(layer.normalized_shape, layer.eps)
    if type(layer) in ELEMENTWISE:
        return ElementwiseTwin(layer)
    return None


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
