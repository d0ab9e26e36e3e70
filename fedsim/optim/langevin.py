"""Langevin dynamics whose result is the average of the whole trajectory, not its last point.

On the sphere, at inverse temperature ε with steps h (c/d with c in [.1, .3]):

    u = h·ε·b(θ) + sqrt(h)·ξ        b the drift, the way up; ξ ~ N(0, I)
    u ← u - ⟨u, θ⟩·θ                 θ ← (θ + u) / |θ + u|

The estimate is uniform over ALL iterates, no burn-in: for an odd information exponent k the mean of θ, normalised; for
an even one, where ±θ are alike, the top eigenvector of the mean of θθᵀ. n ≳ d^{k/2} examples are enough for the
average, while the last iterate (and online SGD) needs d^{k-1}. SGD on single examples whose iterates are normalised,
θ ← (θ + η·P g) / |·|, behaves as ε = 1/η, h = η² (:class:`NormalizedSGD`). For networks, without a sphere:

    w ← w - η·g + sqrt(2·η·τ)·ξ     at temperature τ; what is uploaded is the running mean of w

Wei, Damian & Lee, "Langevin dynamics with weight averaging", ICLR 2026 (arXiv:2603.06028).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from fedsim.errors import Fault, FedsimError
from fedsim.optim.elementwise import NonNegative, Positive, optimizer


@dataclass(frozen=True)
class Trajectory:
    """What is left of a trajectory θ_1, …, θ_T.

    Args:
        last: (…, d) θ_T.
        mean: (…, d) mean of θ_t.
        second: (…, d, d) mean of θ_t θ_tᵀ; only for even information exponents.
    """

    last: Tensor
    mean: Tensor
    second: Tensor | None = None

    @property
    def direction(self) -> Tensor:
        """(…, d) the estimate: the normalised mean or, for even exponents, the top eigenvector, its sign arbitrary."""
        return normalized(self.mean) if self.second is None else top_eigenvector(self.second)

    def pooled(self) -> Trajectory:
        """The server's: means over the clients' trajectories, the first dimension."""
        second = None if self.second is None else self.second.mean(0)
        return Trajectory(self.last.mean(0), self.mean.mean(0), second)


def spherical_step(theta: Tensor, move: Tensor) -> Tensor:
    """(…, d) points on the sphere after moving along their tangent spaces and back onto the sphere."""
    tangent = move - (move * theta).sum(-1, keepdim=True) * theta
    return normalized(theta + tangent)


def normalized(theta: Tensor) -> Tensor:
    """(…, d) at norm 1; zeros stay."""
    norms = torch.linalg.vector_norm(theta, dim=-1, keepdim=True)
    unit: Tensor = theta / norms.clamp_min_(torch.finfo(theta.dtype).tiny)
    return unit


def top_eigenvector(second: Tensor) -> Tensor:
    """(…, d) eigenvector of the largest eigenvalue of (…, d, d) symmetric matrices."""
    vectors: Tensor = torch.linalg.eigh(second).eigenvectors
    return vectors[..., -1]


def spherical_langevin(
    drift: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    inverse_temperature: float,
    h: float,
    steps: int,
    exponent: int,
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Langevin dynamics on the sphere, as many trajectories at once as ``start`` (…, d) has rows.

    Args:
        drift: b(θ), (…, d) -> (…, d).
        start: θ_0, which the average does not contain.
        inverse_temperature: ε.
        h: step size, c/d.
        steps: T.
        exponent: information exponent k; only whether it is even matters.
        generator: what ξ is drawn from.
    """

    def move(theta: Tensor, _: int) -> Tensor:
        noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype, device=theta.device)
        return drift(theta).mul(h * inverse_temperature).add_(noise, alpha=math.sqrt(h))

    return _trajectory(move, start, steps, exponent)


def normalized_sgd(
    ascent: Callable[[Tensor, int], Tensor], start: Tensor, *, lr: float, steps: int, exponent: int
) -> Trajectory:
    """SGD on the sphere: its noise is that of the examples.

    Args:
        ascent: (θ, t) -> minus the gradient on the examples of step t = 0, …, (…, d) -> (…, d).
        start: θ_0, which the average does not contain.
        lr: η.
        steps: T.
        exponent: information exponent k; only whether it is even matters.
    """
    return _trajectory(lambda theta, t: lr * ascent(theta, t), start, steps, exponent)


@torch.no_grad()
def _trajectory(move: Callable[[Tensor, int], Tensor], start: Tensor, steps: int, exponent: int) -> Trajectory:
    theta = normalized(start)
    total = torch.zeros_like(theta)
    second = None if exponent % 2 else torch.zeros(*theta.shape, theta.shape[-1], dtype=theta.dtype)
    for t in range(steps):
        theta = spherical_step(theta, move(theta, t))
        total += theta
        if second is not None:
            second += theta.unsqueeze(-1) * theta.unsqueeze(-2)
    return Trajectory(theta, total / steps, None if second is None else second / steps)


class Averaging(torch.optim.Optimizer):
    """An optimizer that keeps the running mean of what its parameters were after each step.

    The mean takes in an iterate when the next step begins, so that what happens between steps (a projection) counts.
    """

    streams: Sequence[torch.Generator] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle draws its noise from copies of the streams."""
        streams = None if self.streams is None else [(each.device, each.get_state()) for each in self.streams]
        return {**super().__getstate__(), "streams": streams}

    def __setstate__(self, state: dict[str, Any]) -> None:
        streams = state.pop("streams", None)
        super().__setstate__(state)
        if streams is not None:
            self.streams = [torch.Generator(device) for device, _ in streams]
            for stream, (_, kept) in zip(self.streams, streams, strict=True):
                stream.set_state(kept)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it, but means keep their precision, whatever that of the parameters is."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved, parameters, strict=True):
            if kept := state_dict["state"].get(number):
                mean = kept["mean"].detach().to(parameter.device, _wide(parameter), copy=True)
                self.state[parameter]["mean"] = mean

    def use_streams(self, streams: Sequence[torch.Generator]) -> None:
        """Draw the noise from these: one for all, or one for each row of parameters (k, …)."""
        self.streams = list(streams)

    def upload(self, parameter: Tensor) -> Tensor:
        """The mean over all iterates so far; the parameter itself before the first step."""
        state = self.state.get(parameter)
        if not state:
            return parameter.detach().clone()
        mean: Tensor = state["mean"]
        return mean.lerp(parameter.detach().to(mean), 1.0 / float(state["step"])).to(parameter)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the parameters are their means."""
        parameters = [each for group in self.param_groups for each in group["params"]]
        kept = [each.detach().clone() for each in parameters]
        with torch.no_grad():
            for each in parameters:
                each.copy_(self.upload(each))
        try:
            yield
        finally:
            with torch.no_grad():
                for each, value in zip(parameters, kept, strict=True):
                    each.copy_(value)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; what ``closure``, which computes loss and gradients anew, gives."""
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if state:
                    self._take_in(parameter, state)
                else:
                    state["step"] = torch.tensor(0.0)
                    state["mean"] = torch.zeros_like(parameter, dtype=_wide(parameter))
                state["step"] += 1
                self._move(parameter, parameter.grad, group)
        return loss

    def _take_in(self, parameter: Tensor, state: dict[str, Tensor]) -> None:
        state["mean"].lerp_(parameter.to(state["mean"]), 1.0 / float(state["step"]))

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _noise(self, parameter: Tensor) -> Tensor:
        """Standard normal numbers in the parameter's shape."""
        noise = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        if self.streams is None:
            return noise.normal_()
        if len(self.streams) == 1:
            return noise.normal_(generator=self.streams[0])
        if len(self.streams) < len(noise):
            raise FedsimError(f"{type(self).__name__}: given {len(self.streams)} streams for {len(noise)} rows")
        for row, stream in zip(noise.unbind(), self.streams, strict=False):
            row.normal_(generator=stream)
        return noise


def _wide(parameter: Tensor) -> torch.dtype:
    """Of a mean over many iterates: in 16 bits it would soon stand still."""
    return torch.promote_types(parameter.dtype, torch.float32)


class Langevin(Averaging):
    """Euclidean Langevin dynamics, w ← w - η·(g + λ·w) + sqrt(2·η·τ)·ξ; :meth:`upload` gives the running mean.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: η.
        temperature: τ; 0 is SGD with averaging.
        weight_decay: λ.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.1, temperature: float = 1e-6, weight_decay: float = 0.0
    ) -> None:
        options = {"lr": lr, "temperature": temperature, "weight_decay": weight_decay}
        _not_negative(type(self).__name__, options)
        super().__init__(params, options)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        lr = group["lr"]
        if group["weight_decay"]:
            parameter.mul_(1.0 - lr * group["weight_decay"])
        parameter.add_(gradient, alpha=-lr)
        if group["temperature"]:
            parameter.add_(self._noise(parameter), alpha=math.sqrt(2.0 * lr * group["temperature"]))


class SphericalLangevin(Averaging):
    """Langevin dynamics of unit vectors: a parameter (d,), or each row of a (k, d) one.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: h, c/d with c in [.1, .3].
        inverse_temperature: ε; the drift is minus the gradient.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.01, inverse_temperature: float = 10.0) -> None:
        options = {"lr": lr, "inverse_temperature": inverse_temperature}
        _not_negative(type(self).__name__, options)
        super().__init__(params, options)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        h = group["lr"]
        move = gradient.mul(-h * group["inverse_temperature"]).add_(self._noise(parameter), alpha=math.sqrt(h))
        _turn(parameter, move)


class NormalizedSGD(Averaging):
    """SGD of unit vectors, a parameter (d,) or each row of a (k, d) one; for batches of few examples.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: η; behaves as Langevin dynamics with ε = 1/η and h = η².
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.1) -> None:
        _not_negative(type(self).__name__, {"lr": lr})
        super().__init__(params, {"lr": lr})

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        _turn(parameter, gradient.mul(-group["lr"]))


def _turn(parameter: Tensor, move: Tensor) -> None:
    """A step on the sphere in place, row by row: the bits of a row's sums then depend on nothing else."""
    rows = zip(parameter.view(-1, parameter.shape[-1]), move.view(-1, move.shape[-1]), strict=True)
    for theta, u in rows:
        theta.copy_(spherical_step(normalized(theta), u))


def _not_negative(name: str, options: dict[str, float]) -> None:
    for option, given in options.items():
        if not 0 <= given < math.inf:
            raise FedsimError(f"{name}: {option}: given {given}; accepted: finite and ≥ 0")


class ClientAveraging:
    """Base of the parts that send the average of a round's steps."""

    row_wise: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    def check(self, scenario: Any) -> Iterable[Fault]:
        """The average is of one round."""
        name = scenario.client.optimizer.name
        if scenario.client.optimizer_state == "persist":
            accepted = f"'reset': '{name}' sends the average of one round's steps"
            yield Fault("/client.optimizer_state", "persist", accepted, ("client.optimizer",))


@optimizer("langevin")
class ClientLangevin(ClientAveraging):
    """Langevin dynamics on each client, which uploads the mean of its iterates.

    Args:
        lr: learning rate η.
        temperature: τ; each step adds noise of standard deviation sqrt(2·η·τ). 0 is SGD that uploads its average.
        weight_decay: share of the parameters taken off in each step, times lr.
    """

    lr: Positive = 0.1
    temperature: NonNegative = 1e-6
    weight_decay: NonNegative = 0.0

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> Langevin:
        """The optimizer of these parameters, its learning rate times ``scale``."""
        return Langevin(list(parameters), self.lr * scale, self.temperature, self.weight_decay)


@optimizer("spherical_langevin")
class ClientSphericalLangevin(ClientAveraging):
    """Langevin dynamics on the unit sphere, for planted directions; uploads the mean of its iterates.

    Args:
        lr: step size h, c/d with c in [.1, .3].
        inverse_temperature: ε.
    """

    lr: Positive = 0.01
    inverse_temperature: NonNegative = 10.0

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> SphericalLangevin:
        """The optimizer of these parameters, its step size times ``scale``."""
        return SphericalLangevin(list(parameters), self.lr * scale, self.inverse_temperature)


@optimizer("normalized_sgd")
class ClientNormalizedSGD(ClientAveraging):
    """SGD on the unit sphere, for planted directions and small batches; uploads the mean of its iterates.

    Args:
        lr: learning rate η.
    """

    lr: Positive = 0.1

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> NormalizedSGD:
        """The optimizer of these parameters, its learning rate times ``scale``."""
        return NormalizedSGD(list(parameters), self.lr * scale)
