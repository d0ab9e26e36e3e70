"""The softmax's radius: how far a step may go before the loss's Taylor series along it no longer converges.

The partition function Σ exp z_k has complex zeros, where the cross-entropy has logarithmic singularities. For the step
p that is really applied (learning rate, momentum and decay included) and a = J_z(x) p, one Jacobian-vector product,

    Δ(x) = max_k a_k - min_k a_k,    ρ_a = πT / Δ,    r = max_x Δ(x) / (πT),    s = min(1, 1/r):

apply s·p, leave the optimizer's state as it is. ρ_a is a lower bound of the radius, in units of the step; for two
classes the radius itself is (δ² + π²T²)^½ / Δ with the logits' difference δ. r < 1 does not promise a falling loss: it
says that the local model of the loss means something there.

Sao, "Ghosts of Softmax: Complex Singularities That Limit Safe Step Sizes in Cross-Entropy", 2026 (arXiv:2603.13552),
eq. 19.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.errors import FedsimError

_forward_mode = threading.Lock()  # torch counts the levels of forward differentiation in the process, not in a thread

Model = Callable[[Any, Any], Tensor]
"""(parameters, inputs) → logits (..., C)."""


def softmax_radius(
    model_fn: Model,
    params: Any,
    step: Any,
    inputs: Any,
    *,
    mask: Tensor | None = None,
    quantile: float = 1.0,
    temperature: float = 1.0,
    batch_dims: int = 0,
) -> Tensor:
    """r = max Δ/(πT) over the examples: a scalar, or (k,) for k clients.

    Args:
        model_fn: (params, inputs) → logits (..., C).
        params: a tensor, or tensors in a tuple, list or dict.
        step: what is about to be added to them, of the same structure.
        inputs: passed on to model_fn.
        mask: shaped as the logits without classes, True where an example counts; none counting makes r = 0.
        quantile: of Δ over the examples that count; 1 is the maximum, less keeps outliers from throttling the step.
        temperature: T, by which the loss divides the logits.
        batch_dims: how many leading dimensions of the logits are models rather than examples: 1 for k clients.

    Raises:
        FedsimError: a quantile outside [0, 1], a temperature not above 0, or a mask of another shape.
    """
    logits_derivative = directional(model_fn, params, step, inputs)
    return _reduce(spread(logits_derivative), mask, quantile, batch_dims) / (math.pi * _positive(temperature))


def directional(model_fn: Model, params: Any, step: Any, inputs: Any) -> Tensor:
    """a = J_z(x) p, the logits' derivative along the step, (..., C)."""
    with _forward_mode:
        derivative: Tensor = torch.func.jvp(lambda point: model_fn(point, inputs), (params,), (step,))[1]
    return derivative


def spread(logits_derivative: Tensor) -> Tensor:
    """Δ = max_k a_k - min_k a_k, (...)."""
    return logits_derivative.amax(-1) - logits_derivative.amin(-1)


def radius_bound(logits_derivative: Tensor, temperature: float = 1.0) -> Tensor:
    """ρ_a = πT/Δ of each example, in units of the step: no zero of its partition function is nearer."""
    return math.pi * _positive(temperature) / spread(logits_derivative)


def binary_radius(logits: Tensor, logits_derivative: Tensor, temperature: float = 1.0) -> Tensor:
    """(δ² + π²T²)^½ / Δ of each example: the radius itself for two classes, (..., 2) → (...).

    Raises:
        FedsimError: logits of another number of classes.
    """
    if logits.shape[-1] != 2:
        raise FedsimError(f"binary_radius: logits: given {logits.shape[-1]} classes; accepted: 2")
    margin = logits[..., 1] - logits[..., 0]
    edge = torch.full_like(margin, math.pi * _positive(temperature))
    return torch.hypot(margin, edge) / spread(logits_derivative)


def step_scale(radius: Tensor) -> Tensor:
    """s = min(1, 1/r) elementwise; of the largest of all clients' r it is the server's cap on its own step."""
    return radius.reciprocal().clamp(max=1.0)


class RadiusControl(torch.optim.Optimizer):
    """Any optimizer, its applied step scaled by s = min(1, 1/r); its state is as if nothing had been scaled.

    ::

        optimizer = RadiusControl(torch.optim.Adam(model.parameters()), model)
        loss.backward()
        optimizer.step(inputs=x)

    ``radius`` and ``scale`` hold r and s of the last step, as tensors: nothing is read back from the device.

    Args:
        optimizer: does the step; shares its parameter groups and state with this one.
        model: a module, evaluated as in ``eval()`` (no statistics move, no random number is drawn), or a function
            (parameters as a list in the optimizer's order, inputs) → logits.
        quantile: see :func:`softmax_radius`.
        temperature: see :func:`softmax_radius`.
        batch_dims: see :func:`softmax_radius`; with 1, all parameters are (k, ...) and each client gets its own s.
    """

    radius: Tensor
    scale: Tensor

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module | Model,
        *,
        quantile: float = 1.0,
        temperature: float = 1.0,
        batch_dims: int = 0,
    ) -> None:
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.optimizer = optimizer
        self.quantile, self.temperature, self.batch_dims = _share(quantile), _positive(temperature), batch_dims
        self._model = model
        if isinstance(model, nn.Module):
            known = {id(parameter) for parameter in model.parameters()}
            strangers = sum(
                id(parameter) not in known for group in optimizer.param_groups for parameter in group["params"]
            )
            if strangers:
                raise FedsimError(f"RadiusControl: optimizer: given {strangers} parameters that are not of the model")
        self._share_state()

    @torch.no_grad()
    def step(self, closure: Any = None, *, inputs: Any = None, mask: Tensor | None = None) -> Any:
        """One step of the optimizer, scaled.

        Args:
            closure: as the optimizer takes it.
            inputs: examples over which r is measured, as the model takes them.
            mask: which of them count.

        Raises:
            FedsimError: no inputs.
        """
        if inputs is None:
            raise FedsimError("RadiusControl.step: inputs: given None; accepted: the examples that the step is for")
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        before = [parameter.detach().clone() for parameter in parameters]
        loss = self.optimizer.step(closure)
        moved = [parameter.detach() - start for parameter, start in zip(parameters, before, strict=True)]
        with _logits_of(self._model, parameters) as model_fn:
            self.radius = softmax_radius(
                model_fn,
                before,
                moved,
                inputs,
                mask=mask,
                quantile=self.quantile,
                temperature=self.temperature,
                batch_dims=self.batch_dims,
            )
        self.scale = step_scale(self.radius)
        for parameter, start, change in zip(parameters, before, moved, strict=True):
            scale = self.scale.reshape(self.scale.shape + (1,) * (parameter.ndim - self.scale.ndim)).to(parameter)
            parameter.copy_(torch.where(scale < 1, start + scale * change, parameter))
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """For ``copy`` and ``pickle``: torch's own leaves out what is not an optimizer's."""
        own = ("optimizer", "quantile", "temperature", "batch_dims", "_model", "radius", "scale")
        return {**super().__getstate__(), **{name: vars(self)[name] for name in own if name in vars(self)}}

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's own."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The optimizer's own."""
        self.optimizer.load_state_dict(state_dict)
        self._share_state()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds to the optimizer, too."""
        if "optimizer" in vars(self):
            self.optimizer.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    def _share_state(self) -> None:
        self.param_groups = self.optimizer.param_groups
        self.state = self.optimizer.state


@contextmanager
def _logits_of(model: nn.Module | Model, parameters: Sequence[Tensor]) -> Iterator[Model]:
    """The model as a function of the optimizer's parameters."""
    if not isinstance(model, nn.Module):
        yield model
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()

    def logits(point: Sequence[Tensor], inputs: Any) -> Tensor:
        named = {names[id(parameter)]: value for parameter, value in zip(parameters, point, strict=True)}
        output: Tensor = torch.func.functional_call(model, named, (inputs,))
        return output

    try:
        yield logits
    finally:
        for module, training in modes:
            module.training = training


def _reduce(spreads: Tensor, mask: Tensor | None, quantile: float, batch_dims: int) -> Tensor:
    """Linear quantile of the spreads that count, by sorting; a masked one comes first and is never reached."""
    if mask is not None and mask.shape != spreads.shape:
        raise FedsimError(f"mask: given shape {tuple(mask.shape)}; accepted: {tuple(spreads.shape)}")
    counts = torch.ones_like(spreads, dtype=torch.bool) if mask is None else mask.bool()
    shape = (*spreads.shape[:batch_dims], -1)
    counted, spreads = counts.reshape(shape), torch.where(counts, spreads, 0.0).reshape(shape)
    if _share(quantile) == 1:
        return spreads.amax(-1)
    ordered = torch.where(counted, spreads, -1.0).sort(-1).values.clamp(min=0.0)
    number = counted.sum(-1)
    position = spreads.shape[-1] - number + quantile * (number - 1).clamp(min=0)
    low = position.floor().clamp(max=spreads.shape[-1] - 1)
    high = (low + 1).clamp(max=spreads.shape[-1] - 1)
    below, above = (ordered.gather(-1, index.long().unsqueeze(-1)).squeeze(-1) for index in (low, high))
    return below + (position - low).clamp(0, 1).to(spreads) * (above - below)


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise FedsimError(f"temperature: given {temperature}; accepted: above 0")
    return temperature


def _share(quantile: float) -> float:
    if not 0 <= quantile <= 1:
        raise FedsimError(f"quantile: given {quantile}; accepted: 0 to 1")
    return quantile
