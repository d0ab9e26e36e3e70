"""Weight averaging on the sphere for even information exponents: the top eigenvector, where the mean is nothing.

For even k the targets do not tell θ* from -θ*, a walk visits both alike, and the mean of its iterates goes to 0. What
does not is the mean of θθᵀ:

    M = (1/T) Σ_t θ_t θ_tᵀ        θ_1, …, θ_T all iterates of the walk, no burn-in
    estimate: v, the top eigenvector of M;    v ← sign⟨v, θ_0⟩ · v

The walks are those of ``normalized_sgd`` and ``spherical_langevin``, with their options, see
:mod:`fedsim.optim.langevin`. The sign of v is the paper's to leave open. In a federation it must be one for all
clients, whose ±v would cancel in the server's mean: here it is that of the half space of θ_0, the model that all of
them received. What the server takes the mean of are d numbers a client, the eigenvectors, and not the d × d of its M.

Wei, Damian & Lee, "Langevin dynamics with weight averaging", ICLR 2026 (arXiv:2603.06028).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsim import registry
from fedsim.blocks import exact
from fedsim.errors import Fault, FedsimError
from fedsim.optim.elementwise import optimizer
from fedsim.optim.langevin import (
    Averaging,
    ClientAveraging,
    ClientNormalizedSGD,
    ClientSphericalLangevin,
    NormalizedSGD,
    SphericalLangevin,
    top_eigenvector,
)

LARGEST = 2000
"""d of which M, d × d numbers in float64, is kept."""


class SecondMoment(Averaging):
    """Before the class of a walk: keeps M of each parameter (d,), or of each row of a (k, d) one, in float64."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch does it; refuses parameters of more than :data:`LARGEST` numbers a row."""
        super().add_param_group(param_group)
        for each in self.param_groups[-1]["params"]:
            if each.ndim == 0 or each.shape[-1] > LARGEST:
                accepted = f"(d,) or (k, d) with d ≤ {LARGEST}: the mean of θθᵀ has d × d numbers"
                raise FedsimError(f"{type(self).__name__}: params: given {tuple(each.shape)}; accepted: {accepted}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it, but M stays in float64, whatever the parameters are in."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved, parameters, strict=True):
            if kept := state_dict["state"].get(number):
                second = torch.empty_like(kept["second"], device=exact(parameter).device)
                self.state[parameter]["second"] = second.copy_(kept["second"])

    def upload(self, parameter: Tensor) -> Tensor:
        """v, in the half space of θ_0; the parameter itself before the first step."""
        state = self.state.get(parameter)
        if not state:
            return parameter.detach().clone()
        second = state["second"].lerp(_outer(parameter), 1.0 / float(state["step"]))
        v = torch.stack([_top(each) for each in second.view(-1, *second.shape[-2:])]).view(parameter.shape)
        aligned = (v * exact(state["start"])).sum(-1, keepdim=True)
        return torch.where(aligned < 0, -v, v).to(parameter)

    def _take_in(self, parameter: Tensor, state: dict[str, Tensor]) -> None:
        super()._take_in(parameter, state)
        state["second"].lerp_(_outer(parameter), 1.0 / float(state["step"]))

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "second" not in state:
            state["start"] = parameter.detach().clone()
            state["second"] = torch.zeros_like(_outer(parameter))
        super()._move(parameter, gradient, group)


def _outer(parameter: Tensor) -> Tensor:
    """(…, d, d) θθᵀ in float64."""
    theta = exact(parameter.detach())
    return theta.unsqueeze(-1) * theta.unsqueeze(-2)


def _top(second: Tensor) -> Tensor:
    """(d,) v of one M: alone, so that its bits depend on no other row; NaN of a walk that is not finite."""
    return top_eigenvector(second) if bool(second.isfinite().all()) else torch.full_like(second[0], math.nan)


class EvenSGD(SecondMoment, NormalizedSGD):
    """The walk of :class:`NormalizedSGD`, of which :meth:`upload` gives the top eigenvector of the mean of θθᵀ.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: η.
    """


class EvenSphericalLangevin(SecondMoment, SphericalLangevin):
    """The walk of :class:`SphericalLangevin`, of which :meth:`upload` gives the top eigenvector of the mean of θθᵀ.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: h, c/d with c in [.1, .3].
        inverse_temperature: ε; the drift is minus the gradient.
    """


class ClientSecondMoment(ClientAveraging):
    """Base of the parts that send a direction up to its sign."""

    def check(self, scenario: Any) -> Iterable[Fault]:
        """For one direction, behind an even function of it; a model of the user's own is taken at its word."""
        yield from super().check(scenario)
        model, name = scenario.model.name, scenario.client.optimizer.name
        networks = (each for each, part in registry.iterate("model") if part.__module__.startswith("fedsim."))
        if model != "single_index" and model in networks:
            accepted = f"'single_index' with client.optimizer = '{name}', which sends one direction, up to its sign"
            yield Fault("/model.name", model, accepted, ("client.optimizer",))


@optimizer("even_sgd")
class ClientEvenSGD(ClientSecondMoment, ClientNormalizedSGD):
    """SGD on the unit sphere, for planted directions of even exponent; uploads the top eigenvector of its mean θθᵀ."""

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> EvenSGD:
        """The optimizer of these parameters, its learning rate times ``scale``."""
        return EvenSGD(list(parameters), self.lr * scale)


@optimizer("even_spherical_langevin")
class ClientEvenSphericalLangevin(ClientSecondMoment, ClientSphericalLangevin):
    """Langevin dynamics on the sphere, for planted directions of even exponent; uploads the top eigenvector of θθᵀ."""

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> EvenSphericalLangevin:
        """The optimizer of these parameters, its step size times ``scale``."""
        return EvenSphericalLangevin(list(parameters), self.lr * scale, self.inverse_temperature)
