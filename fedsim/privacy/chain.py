"""The linear layers of a plain chain of layers at work, without a look at each function that the model calls.

:class:`fedsim.privacy.recorder.Recorder` asks on every pass what a model does. Of an ``nn.Sequential`` of linear
layers, activations and flattenings it is known beforehand, and small batches take as long as the questions. What is
computed is the same, to the last bit.

Goodfellow, "Efficient Per-Example Gradient Computations", 2015, 1510.01799.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.privacy.ghost import Layer, Loss, check_losses
from fedsim.privacy.recorder import Call

_EVERYWHERE = (
    torch.nn.modules.module._global_forward_hooks,
    torch.nn.modules.module._global_forward_pre_hooks,
    torch.nn.modules.module._global_backward_hooks,
    torch.nn.modules.module._global_backward_pre_hooks,
)
"""Hooks of all modules, registered for the process."""

_APART = (nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.LeakyReLU)
"""Layers without parameters that keep examples apart."""


@dataclass(frozen=True)
class Step:
    """One layer of the chain; a linear one has a weight.

    Args:
        module: the layer.
        weight: name of its weight, None where it is not linear.
        bias: name of its bias, None without.
    """

    module: nn.Module
    weight: str | None = None
    bias: str | None = None


def chain(module: nn.Module) -> tuple[Step, ...] | None:
    """The layers of a module that norms suffice for (:func:`fedsim.privacy.ghost.ghost_layers`); None if no chain."""
    steps = tuple(_steps(module, ""))
    return None if any(_opaque(step.module) for step in steps) else steps


def layers_of(steps: tuple[Step, ...], loss: Loss, inputs: Tensor, targets: Tensor) -> list[Layer]:
    """What :func:`fedsim.privacy.ghost.layers_at` finds, at the parameters that the layers have."""
    calls: list[Call] = []
    with torch.enable_grad():
        x = inputs
        for step in steps:
            if step.weight is None:
                x = step.module(x)
                continue
            bias = None if step.bias is None else step.module.bias.detach()  # type: ignore[operator]
            outputs = functional.linear(x, step.module.weight.detach(), bias)  # type: ignore[operator]
            if not calls:
                outputs.requires_grad_()
            calls.append(Call(step.weight, step.bias, x.detach(), outputs, not calls, 0))
            x = outputs
        losses = loss(x, targets)
    check_losses(losses, len(inputs))
    ends = [call.outputs for call in calls]
    if not losses.requires_grad:
        return [Layer.of(call, torch.zeros_like(end)) for call, end in zip(calls, ends, strict=True)]
    signals = torch.autograd.grad(losses, ends, torch.ones_like(losses), allow_unused=True, materialize_grads=True)
    return [Layer.of(call, signal) for call, signal in zip(calls, signals, strict=True)]


def _steps(module: nn.Module, prefix: str) -> Iterator[Step]:
    if type(module) is nn.Sequential and not _hooked(module):
        # Not named_children(), which tells a layer that stands there twice but once.
        for name, child in module._modules.items():
            yield from _steps(child, f"{prefix}{name}.")
    elif type(module) is nn.Linear:
        yield Step(module, f"{prefix}weight", None if module.bias is None else f"{prefix}bias")
    else:
        yield Step(module)


def _opaque(module: nn.Module) -> bool:
    """Whether the layer may do something else than it is known for."""
    flattens = type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
    known = flattens or type(module) is nn.Linear or type(module) in _APART
    return not known or _hooked(module) or bool(getattr(module, "inplace", False))


def _hooked(module: nn.Module) -> bool:
    """Whether it does something beside its own forward, or another forward was put in its place."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module) or any(_EVERYWHERE)
