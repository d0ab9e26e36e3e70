"""Layers for k clients at once: weights are (k, …) views into one (k, d) tensor, the backward is by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.losses.harmonic import HarmonicHead, distances, harmonic_logits
from fedsim.losses.with_reconstruction import TwoHeads
from fedsim.models.single_index import Hermite
from fedsim.models.standardize import Standardize

ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh,
    nn.Tanhshrink, nn.Threshold, Hermite, Standardize,
)  # fmt: skip
"""Activations that pass as they are, their backward by autograd."""


NARROW = 16
"""Outputs of a Linear up to which its product is laid out class by class: twice as fast, and as the loss reads it."""


@dataclass
class Sink:
    """Where a backward pass puts its products: into gradients, or straight into the weights (``rate`` given).

    Args:
        rate: of the descent.
        again: whether another backward pass of the same forward pass follows.
    """

    rate: float | None = None
    again: bool = False

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

    def whole(self, weight: Tensor, gradient: Tensor | None, value: Tensor) -> None:
        """A gradient as it is."""
        if gradient is None:
            weight.sub_(value, alpha=self.rate or 0.0)
        else:
            gradient.copy_(value)


class ExampleSink(Sink):
    """Takes the products of each example apart, into gradients whose rows are the examples of r clients, (r · B, …).

    Args:
        batch: B, examples of a client.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def product(self, weight: Tensor, gradient: Tensor | None, left: Tensor, right: Tensor) -> None:
        assert gradient is not None
        rows = len(gradient)
        left = left.transpose(1, 2).reshape(rows, -1, left.shape[1])
        right = right.reshape(rows, -1, right.shape[2])
        if left.shape[1] == 1 and left.dtype == gradient.dtype:
            torch.mul(left.transpose(1, 2), right, out=gradient)
        else:
            super().product(weight, gradient, left.transpose(1, 2), right)

    def total(self, weight: Tensor, gradient: Tensor | None, values: Tensor) -> None:
        assert gradient is not None
        gradient.copy_(values.reshape(len(gradient), -1, values.shape[-1]).sum(1))

    def whole(self, weight: Tensor, gradient: Tensor | None, value: Tensor) -> None:
        raise NotImplementedError


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
        found = torch.autograd.grad(outputs, leaf, signal.to(outputs.dtype), retain_graph=sink.again)
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
            into = [None if g is None else g.view(len(g), width) for g in (scale, shift)]
            sink.total(flat[0], into[0], (signal * normal).view(rows, -1, width))
            if len(parameters) > 1:
                sink.total(flat[1], into[1], signal.reshape(rows, -1, width))
        before: Tensor = torch.ops.aten.native_layer_norm_backward.default(
            inner, inputs, self.shape, mean, rstd, None, None, [True, False, False]
        )[0]
        return before


class TwoHeadsTwin(Twin):
    """Two linear layers on the same features, decoder and classes: the classes' outputs come first."""

    def __init__(self, heads: TwoHeads, compute: torch.dtype | None) -> None:
        self.pixels, self.classes = LinearTwin(compute), LinearTwin(compute)
        self.first = len(list(heads.pixels.parameters()))
        self.width = heads.classes.out_features

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        decoded, kept = self.pixels.forward(parameters[: self.first], inputs)
        logits, beside = self.classes.forward(parameters[self.first :], inputs)
        return torch.cat([logits, decoded], -1), (kept, beside)

    def backward(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], kept: Any, signal: Tensor,
        sink: Sink, needed: bool,
    ) -> Tensor:  # fmt: skip
        first, width = self.first, self.width
        decoded, logits = signal[..., width:], signal[..., :width]
        before = self.pixels.backward(parameters[:first], gradients[:first], kept[0], decoded, sink, needed)
        beside = self.classes.backward(parameters[first:], gradients[first:], kept[1], logits, sink, needed)
        return before + beside if needed else before


class HarmonicTwin(Twin):
    """A harmonic head, prototypes of each client's own, its backward by autograd."""

    def __init__(self, head: HarmonicHead) -> None:
        self.exponent, self.eps, self.distance = head.exponent, head.eps, head.distance
        self.options: dict[str, Any] = {"p": head.p, "temperature": head.temperature}

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        with torch.enable_grad():
            leaves = [each.detach().requires_grad_() for each in (inputs.to(parameters[0].dtype), *parameters)]
            rows = leaves[0].flatten(1, -2) if inputs.ndim > 3 else leaves[0]
            factor = leaves[2] if len(leaves) > 2 else None
            found = distances(rows, leaves[1], self.distance, factor=factor, **self.options)
            outputs = harmonic_logits(found, self.exponent, self.eps)
            outputs = outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])
        return outputs.detach(), (leaves, outputs)

    def backward(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], kept: Any, signal: Tensor,
        sink: Sink, needed: bool,
    ) -> Tensor:  # fmt: skip
        leaves, outputs = kept
        before: Tensor
        before, *found = torch.autograd.grad(outputs, leaves, signal.to(outputs.dtype), retain_graph=sink.again)
        for parameter, gradient, value in zip(parameters, gradients, found, strict=True):
            sink.whole(parameter, gradient, value)
        return before


def twins_of(module: nn.Module, compute: torch.dtype | None = None) -> tuple[list[tuple[Twin, list[str]]], str]:
    """The layers of a model as (twin, names of its parameters), or an empty list and the reason why not."""
    found: list[tuple[Twin, list[str]]] = []
    seen: set[int] = set()
    previous: nn.Module | None = None
    for prefix, layer in _leaves(module):
        own = [f"{prefix}{name}" for name, _ in layer.named_parameters(recurse=type(layer) is TwoHeads)]
        if own and id(layer) in seen:
            return [], f"layer '{prefix.rstrip('.')}' is used twice"
        seen.add(id(layer))
        twin = _twin(layer, previous, compute)
        hooked = any(each._forward_hooks or each._forward_pre_hooks or each._backward_hooks for each in layer.modules())
        if twin is None or hooked:
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
    if type(layer) is HarmonicHead:
        return HarmonicTwin(layer)
    if type(layer) is TwoHeads and type(layer.classes) is nn.Linear:
        return TwoHeadsTwin(layer, compute)
    if type(layer) in ELEMENTWISE:
        return ElementwiseTwin(layer)
    return None
