"""Per-example gradients of models in which linear layers stand among others: signals for those, rows for the rest.

Every example is computed as a batch of its own, by ``vmap``, so that examples cannot meet. Zeros are added to the
outputs of each linear layer whose gradient is one outer product; their gradient is the layer's signal, and the
gradient of its weight, most of a convolutional model's numbers, is never formed. Norms and sums are those of
:mod:`fedsim.privacy.ghost`.

Goodfellow, "Efficient Per-Example Gradient Computations", 2015, 1510.01799.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fedsim.functional import functional_call
from fedsim.privacy.ghost import Layer, Loss, Rest, check_losses
from fedsim.updates import Layout

CHUNK = 256
CHUNK_NUMBERS = 1 << 22
"""Numbers of a chunk's rows, activations and signals at one point."""

Taps = Mapping[str, str | None]
"""Of each linear layer that signals suffice for: its weight's name and its bias's, None without."""

At = Callable[[Mapping[str, Tensor], Tensor, Tensor], tuple[list[Layer], Rest]]


class _Uses(TorchFunctionMode):
    """Counts the functions that a model calls on each of its parameters."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.linear: list[tuple[str, str | None]] = []
        self.uses: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.uses += [self.names[id(each)] for each in tree_leaves((args, kwargs)) if id(each) in self.names]
        if func is functional.linear and not kwargs and args[0].ndim == 2 and len(args[0]) == 1:
            weight = self.names.get(id(args[1]))
            bias = args[2] if len(args) > 2 else None
            if weight is not None and (bias is None or id(bias) in self.names):
                self.linear.append((weight, None if bias is None else self.names[id(bias)]))
        return func(*args, **kwargs)


class _Signals(TorchFunctionMode):
    """Adds zeros to the outputs of linear layers, and keeps what goes into them."""

    def __init__(self, weights: Mapping[int, str], zeros: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weights, self.zeros = weights, zeros
        self.inputs: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = self.weights.get(id(args[1])) if func is functional.linear else None
        if name is None:
            return result
        # A copy: a layer behind may overwrite it.
        self.inputs[name] = args[0].squeeze(0).clone()
        return result + self.zeros[name]


def tapped(module: nn.Module, inputs: Tensor) -> Taps:
    """The linear layers that signals suffice for: trained, called once on (batch, features), used nowhere else.

    Args:
        module: in evaluation mode; one that says itself what its rows are (``gradient_rows``) has none.
        inputs: (n, …), n ≥ 1, of which one is tried.
    """
    if hasattr(module, "gradient_rows"):
        return {}
    parameters = dict(module.named_parameters())
    first = next(iter(parameters.values()))
    one = inputs[:1].to(first.dtype) if inputs.is_floating_point() else inputs[:1]
    seen = _Uses({id(value): name for name, value in parameters.items()})
    with torch.no_grad(), seen:
        module(one)
    return {
        weight: bias
        for weight, bias in seen.linear
        if all(
            seen.uses.count(name) == 1 and parameters[name].requires_grad for name in (weight, bias) if name is not None
        )
    }


def chunk_size(taps: Taps, inputs: Tensor, layout: Layout) -> int:
    """Examples at once."""
    formed = {*taps, *(bias for bias in taps.values() if bias is not None)}
    rows = sum(math.prod(shape) for name, shape in layout.parameters if name not in formed)
    widths = inputs[0].numel() + sum(sum(shape) for name, shape in layout.parameters if name in taps)
    return max(1, min(CHUNK, CHUNK_NUMBERS // max(rows + widths, 1)))


def layers_and_rows(module: nn.Module, loss: Loss, taps: Taps) -> At:
    """A function (parameters, inputs, targets) -> the tapped layers on that batch, and all other rows.

    Args:
        module: in evaluation mode.
        loss: (outputs (1, …), targets (1, …)) -> (1,) losses.
        taps: from :func:`tapped`.
    """
    formed = {*taps, *(bias for bias in taps.values() if bias is not None)}
    rest = {name for name, value in module.named_parameters() if value.requires_grad and name not in formed}
    buffers = dict(module.named_buffers())

    def of_one(
        sought: tuple[dict[str, Tensor], dict[str, Tensor]], others: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        own, zeros = sought
        signals = _Signals({id(others[weight]): weight for weight in taps}, zeros)
        with signals:
            outputs = functional_call(module, ({**own, **others}, buffers), (x.unsqueeze(0),))
        losses = loss(outputs, y.unsqueeze(0))
        check_losses(losses, 1)
        return losses.sum(), signals.inputs

    gradients = vmap(grad(of_one, has_aux=True), in_dims=(None, None, 0, 0))

    def at(parameters: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> tuple[list[Layer], Rest]:
        own = {name: value for name, value in parameters.items() if name in rest}
        others = {name: value for name, value in parameters.items() if name not in rest}
        zeros = {weight: others[weight].new_zeros(len(others[weight])) for weight in taps}
        (rows, signals), entered = gradients((own, zeros), others, inputs, targets)
        layers = [Layer(weight, bias, entered[weight], signals[weight]) for weight, bias in taps.items()]
        return layers, {name: each.flatten(1) for name, each in rows.items()}

    return at
