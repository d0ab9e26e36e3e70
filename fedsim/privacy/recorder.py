"""Sees a model's linear layers at work: what goes in, what comes out, and that nothing else happens to the parameters.

The model's own ``forward`` runs under a mode of torch that stands between it and every function it calls. Only
functions pass that keep examples apart (elementwise, flattening); each parameter may be used in one ``linear`` alone.
So a parameter's gradient is a sum of outer products, one an example, whatever the code of the model looks like.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Unsuited(Exception):
    """The model does something that norms cannot be had without forming the gradients for; the text says what."""


@dataclass
class Call:
    """One linear layer on a batch.

    Args:
        weight: name of its weight.
        bias: name of its bias, None without.
        inputs: (B, in).
        outputs: (B, out), a node of the autograd graph.
        fixed: the inputs depend on no parameter.
        version: of the inputs, which tells whether they were written to later.
    """

    weight: str
    bias: str | None
    inputs: Tensor
    outputs: Tensor
    fixed: bool
    version: int


def _named(names: str, *rooms: Any) -> frozenset[Callable[..., Any]]:
    return frozenset(getattr(room, name) for room in rooms for name in names.split() if hasattr(room, name))


_ELEMENTWISE = _named(
    "relu relu6 elu celu selu gelu silu mish softplus softsign sigmoid tanh leaky_relu logsigmoid tanhshrink hardtanh "
    "hardsigmoid hardswish hardshrink softshrink threshold",
    functional,
) | _named("relu tanh sigmoid square exp abs neg sin cos erf clone contiguous", torch, Tensor)
_BINARY = _named(
    "add sub mul div __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ true_divide subtract multiply "
    "divide",
    torch,
    Tensor,
)
_FLATTEN = _named("flatten", torch, Tensor)
_RESHAPE = _named("view reshape", Tensor) | _named("reshape", torch)
_DROPOUT = _named("dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d", functional)
_SOFTMAX = _named("softmax log_softmax", functional, torch, Tensor)
_CASTS = _named("float double to", Tensor)
_LINEAR = functional.linear


def _reads_shape(function: Callable[..., Any]) -> bool:
    if function in (Tensor.size, Tensor.dim, Tensor.numel):
        return True
    owner = getattr(function, "__self__", None)
    return owner is not None and owner in (Tensor.shape, Tensor.ndim, Tensor.dtype, Tensor.device)


class Recorder(TorchFunctionMode):
    """Runs a model at given parameters on one batch and records its linear layers.

    Args:
        module: the model; its own parameters are neither read nor changed.
        parameters: name → value at which the model runs.
        inputs: (B, …).

    Raises:
        Unsuited: the model does something else with the parameters or across examples.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor) -> None:
        super().__init__()
        self._module, self._values = module, parameters
        self._names: dict[int, str] = {id(value): name for name, value in module.named_parameters()}
        self._buffers = {id(value) for value in module.buffers()}
        self._unused = set(self._names.values())
        self._inputs, self._count = inputs, len(inputs)
        self._known: dict[int, tuple[Tensor, bool]] = {id(inputs): (inputs, True)}
        self.calls: list[Call] = []

    def run(self) -> Tensor:
        """The model's outputs (B, …), with a graph from each layer's outputs on."""
        with torch.enable_grad(), self:
            outputs = self._module(self._inputs)
        if not isinstance(outputs, Tensor) or id(outputs) not in self._known:
            raise Unsuited("its outputs are not one tensor")
        if any(call.inputs._version != call.version for call in self.calls):
            raise Unsuited("a layer's inputs are overwritten")
        return outputs

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _reads_shape(func):
            return func(*args, **kwargs)
        if func is _LINEAR:
            return self._linear(*args, **kwargs)
        fixed = self._checked(func, args, kwargs)
        result = func(*args, **kwargs)
        if len(result) != self._count or (func in _BINARY and result.shape != args[0].shape):
            raise Unsuited(f"{_name(func)} does not keep examples apart")
        self._known[id(result)] = (result, fixed)
        return result

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(x) not in self._known or x.ndim != 2:
            raise Unsuited("a linear layer is called on something other than (batch, features)")
        names = [None if each is None else self._names.get(id(each), "") for each in (weight, bias)]
        used = {name for name in names if name is not None}
        if not used <= self._unused:
            raise Unsuited("a parameter is shared, or a linear layer is called twice")
        self._unused -= used
        weight_name, bias_name = str(names[0]), names[1]
        value = None if bias_name is None else self._values[bias_name]
        outputs = functional.linear(x, self._values[weight_name], value)
        if not outputs.requires_grad:
            outputs.requires_grad_()
        fixed = self._known[id(x)][1]
        self.calls.append(Call(weight_name, bias_name, x.detach(), outputs, fixed, x._version))
        # A layer behind may work in place, on a copy.
        handed_on = outputs.clone()
        self._known[id(handed_on)] = (handed_on, False)
        return handed_on

    def _checked(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the result depends on no parameter."""
        if not args or id(args[0]) not in self._known:
            raise Unsuited(f"{_name(func)} is called on something else than what the inputs became")
        x, fixed = self._known[id(args[0])]
        others = [each for each in itertools.chain(args[1:], kwargs.values()) if isinstance(each, Tensor)]
        if func in _BINARY:
            for other in others:
                if id(other) in self._known and other.shape == x.shape:
                    fixed &= self._known[id(other)][1]
                elif id(other) not in self._buffers:
                    raise Unsuited(f"{_name(func)} of two tensors of different shapes, or with a parameter")
            return fixed
        first = args[1] if len(args) > 1 else None
        suited = not others and (
            func in _ELEMENTWISE
            or func in _CASTS
            or func in _RESHAPE
            or (func in _FLATTEN and kwargs.get("start_dim", 0 if first is None else first) == 1)
            or (func in _DROPOUT and not (args[2] if len(args) > 2 else kwargs.get("training", True)))
            or (func in _SOFTMAX and x.ndim > 1 and kwargs.get("dim", first) in (1, -1))
        )
        if not suited:
            raise Unsuited(f"it calls {_name(func)}")
        return fixed


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))
