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
from fedsim.privacy.ghost import Layer, Loss, Rest, check_losses, reaches
from fedsim.privacy.recorder import Unsuited
from fedsim.updates import Layout

CHUNK = 256
CHUNK_NUMBERS = 1 << 22
"""Numbers of a chunk's rows, activations and signals at one point."""

Taps = Mapping[str, str | None]
"""Of each linear layer that signals suffice for: its weight's name and its bias's, None without."""

Point = Mapping[str, Tensor]
At = Callable[[Point, Tensor, Tensor], tuple[list[Layer], Rest]]


class _Uses(TorchFunctionMode):
    """Counts the functions that a model calls on each of its parameters; linear layers are given detached ones."""

    def __init__(self, point: Point) -> None:
        super().__init__()
        self.names = {id(value): name for name, value in point.items()}
        self.linear: list[tuple[str, str | None]] = []
        self.uses: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.uses += [self.names[id(each)] for each in tree_leaves((args, kwargs)) if id(each) in self.names]
        if func is functional.linear and not kwargs and args[0].ndim == 2 and len(args[0]) == 1:
            weight, bias = self.names.get(id(args[1])), args[2] if len(args) > 2 else None
            if weight is not None and (bias is None or id(bias) in self.names):
                self.linear.append((weight, None if bias is None else self.names[id(bias)]))
                return func(args[0], args[1].detach(), None if bias is None else bias.detach())
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
        name = self.weights.get(id(args[1])) if func is functional.linear and len(args) > 1 else None
        if name is None:
            return result
        if name in self.inputs:
            raise Unsuited("a linear layer is called twice at these parameters")
        # A copy: a layer behind may overwrite it.
        self.inputs[name] = args[0].squeeze(0).clone()
        return result + self.zeros[name]


def signals_and_rows(
    module: nn.Module, loss: Loss, layout: Layout, point: Point, inputs: Tensor, targets: Tensor
) -> tuple[At, int] | None:
    """How the gradients are had where signals suffice for some linear layers, and a chunk's examples; else None.

    The function is (parameters, inputs, targets) -> those layers on that batch, and the rows of all other parameters;
    it raises :class:`fedsim.privacy.recorder.Unsuited` where a layer is called otherwise at other parameters.

    Args:
        module: in evaluation mode; one that says itself what its rows are (``gradient_rows``) has no such layers.
        loss: (outputs (1, …), targets (1, …)) -> (1,) losses.
        layout: the module's.
        point: parameters, at which one example is tried.
        inputs, targets: (n, …), n ≥ 1.
    """
    if hasattr(module, "gradient_rows"):
        return None
    dtype = next(iter(point.values())).dtype
    one = (inputs[:1].to(dtype) if inputs.is_floating_point() else inputs[:1]).clone()
    try:
        taps = tapped(module, point, one)
        at = layers_and_rows(module, loss, taps)
        if taps:
            at(point, one, targets[:1])
    except Exception:  # whatever cannot be done this way is done, or told, by rows
        return None
    return (at, _chunk_size(taps, inputs, layout)) if taps else None


def tapped(module: nn.Module, point: Point, one: Tensor) -> Taps:
    """The linear layers that signals suffice for: trained, called once on (batch, features), used nowhere else.

    Args:
        module: in evaluation mode.
        point: parameters.
        one: (1, …) an example.
    """
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    leaves = {name: value.detach().requires_grad_() for name, value in point.items()}
    seen = _Uses(leaves)
    with torch.enable_grad(), seen:
        outputs = functional_call(module, (leaves, dict(module.named_buffers())), (one,))
    found = {
        weight: bias
        for weight, bias in seen.linear
        if all(seen.uses.count(name) == 1 and name in trained for name in (weight, bias) if name is not None)
    }
    names = [name for pair in found.items() for name in pair if name is not None]
    elsewhere = {
        name for name, reached in zip(names, reaches(outputs, [leaves[name] for name in names]), strict=True) if reached
    }
    return {weight: bias for weight, bias in found.items() if not elsewhere & {weight, bias}}


def _chunk_size(taps: Taps, inputs: Tensor, layout: Layout) -> int:
    """Examples at once."""
    formed = {*taps, *(bias for bias in taps.values() if bias is not None)}
    rows = sum(math.prod(shape) for name, shape in layout.parameters if name not in formed)
    widths = inputs[0].numel() + sum(sum(shape) for name, shape in layout.parameters if name in taps)
    return max(1, min(CHUNK, CHUNK_NUMBERS // max(rows + widths, 1)))


def layers_and_rows(module: nn.Module, loss: Loss, taps: Taps) -> At:
    """A function (parameters, inputs, targets) -> the tapped layers on that batch, and the rows of all others."""
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
        if signals.inputs.keys() != taps.keys():
            raise Unsuited("a linear layer is not called at these parameters")
        losses = loss(outputs, y.unsqueeze(0))
        check_losses(losses, 1)
        return losses.sum(), signals.inputs

    gradients = vmap(grad(of_one, has_aux=True), in_dims=(None, None, 0, 0))

    def at(parameters: Point, inputs: Tensor, targets: Tensor) -> tuple[list[Layer], Rest]:
        own = {name: value for name, value in parameters.items() if name in rest}
        others = {name: value for name, value in parameters.items() if name not in rest}
        zeros = {weight: others[weight].new_zeros(len(others[weight])) for weight in taps}
        (rows, signals), entered = gradients((own, zeros), others, inputs, targets)
        layers = [Layer(weight, bias, entered[weight], signals[weight]) for weight, bias in taps.items()]
        return layers, {name: each.reshape(len(inputs), -1) for name, each in rows.items()}

    return at
