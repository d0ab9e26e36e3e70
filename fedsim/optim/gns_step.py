"""Gradient-normalized smoothness as an optimizer: one regularised Newton step on each batch.

    x⁺ = x - (H + λI)⁻¹ g,    λ = |g| / γ,    accepted if f - f⁺ ≥ |g⁺|² / (8λ), then γ ← 2γ; otherwise γ ← γ/2

A step is one iteration of :func:`fedsim.optim.gns.search`; γ stays from step to step. H is the Hessian by its products
alone (a second backward pass each, conjugate gradients), so that no matrix is ever held, or zero (a normalised gradient
step). f, g and H are of one batch: the closure has to compute the same loss whenever it is called.

On a client it is the local solver, for heads and small models: a step costs as much as the products that it takes.

Semenov, Jaggi & Doikov, "Gradient-Normalized Smoothness for Optimization with Approximate Hessians", ICLR 2026
(arXiv:2506.13710), Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.errors import Fault, FedsimError
from fedsim.optim import gns
from fedsim.optim.elementwise import NonNegative, Positive, optimizer
from fedsim.optim.gns_curvature import zero
from fedsim.optim.gns_rows import GAMMA, RowsGNS

Kind = Literal["exact", "zero"]


class GNS(torch.optim.Optimizer):
    """Newton-like steps whose regularisation follows the gradient's norm; ``step(closure)``.

    Args:
        params: parameters, or groups of them, which move as one vector.
        gamma: γ_0.
        curvature: H, "exact" (by products) or "zero".
        tolerance: below this norm of the gradient the parameters stay.
        accuracy: residual at which conjugate gradients stop, relative to the gradient.

    Raises:
        FedsimError: an option out of range, or of one group alone.
    """

    def __init__(
        self,
        params: Iterable[Any],
        gamma: float = 1.0,
        curvature: Kind = "exact",
        tolerance: float = 1e-8,
        accuracy: float = 1e-3,
    ) -> None:
        if not (0 < gamma < math.inf and 0 <= tolerance < math.inf and 0 < accuracy < 1):
            given = f"gamma = {gamma}, tolerance = {tolerance}, accuracy = {accuracy}"
            accepted = "gamma > 0 and tolerance ≥ 0, both finite, 0 < accuracy < 1"
            raise FedsimError(f"GNS: given {given}; accepted: {accepted}")
        if curvature not in ("exact", "zero"):
            raise FedsimError(f"GNS: curvature: given {curvature!r}; accepted: 'exact', 'zero'")
        options = {"gamma": gamma, "curvature": curvature, "tolerance": tolerance, "accuracy": accuracy}
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """More parameters; the step is one of all of them, with the options of the first group."""
        for name, wanted in (self.param_groups[0] if self.param_groups else {}).items():
            if name != "params" and (given := param_group.get(name, wanted)) != wanted:
                raise FedsimError(f"GNS: {name}: given {given!r} for a group; accepted: {wanted!r}, one step for all")
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; what the closure gave first, before it.

        Args:
            closure: computes the batch's loss, without a backward; called anew for each trial. Without it the step is
                that of H = 0 along ``.grad``, of length γ, and nothing is tried.

        Raises:
            FedsimError: a loss or a gradient that is not finite.
        """
        group = self.param_groups[0]
        everything = [each for part in self.param_groups for each in part["params"]]
        point = _Point([each for each in everything if each.requires_grad], closure)
        state = self.state[group["params"][0]]
        state.setdefault("gamma", torch.tensor(float(group["gamma"]), dtype=torch.float64))
        gamma = float(state["gamma"])
        if closure is None:
            gradient = point.written()
            point.move(point.read() - gamma * gradient / gradient.norm().clamp(min=1e-300))
            return None
        method = gns.search(point.read(), gamma=gamma, tolerance=group["tolerance"], max_iterations=1)
        request, first = next(method), None
        try:
            while True:
                if isinstance(request, gns.Evaluate):
                    loss, gradient = point.evaluate(request.x)
                    first = loss if first is None else first
                    request = method.send((loss, gradient))
                elif group["curvature"] == "zero":
                    request = method.send(zero(request.x))
                else:
                    request = method.send(gns.Products(point.products(request.x), group["accuracy"]))
        except StopIteration as finished:
            trace: gns.Trace = finished.value
        point.move(trace.x)
        state["gamma"].fill_(trace.gammas[-1])
        return first

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it, but γ stays in float64, whatever the parameters are."""
        super().load_state_dict(state_dict)
        saved, ours = (groups[0]["params"] for groups in (state_dict["param_groups"], self.param_groups))
        for key, parameter in zip(saved, ours, strict=True):
            if "gamma" in (kept := state_dict["state"].get(key, {})):
                self.state[parameter]["gamma"] = kept["gamma"].detach().cpu().clone()


class _Point:
    """Where the parameters are, as one vector (d,) in float64, and the loss there."""

    def __init__(self, parameters: Sequence[Tensor], closure: Callable[[], Any] | None) -> None:
        if not parameters:
            raise FedsimError("GNS: given no parameter that takes a gradient; accepted: one or more")
        self.parameters, self._closure = list(parameters), closure
        self._gradients: list[Tensor] | None = None

    def read(self) -> Tensor:
        return torch.cat([each.detach().reshape(-1) for each in self.parameters]).double()

    def written(self) -> Tensor:
        """What stands in ``.grad``; zeros where nothing does."""
        return _vector([each.grad for each in self.parameters], self.parameters)

    @torch.no_grad()
    def move(self, x: Tensor) -> None:
        self._gradients = None
        for each, part in zip(self.parameters, self._parts(x), strict=True):
            each.copy_(part)

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f and g at x; no graph of them is kept."""
        self.move(x)
        loss = self._loss()
        return loss.detach(), _vector(self._derive(loss, graph=False), self.parameters)

    def products(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """v → Hv at x; after a trial elsewhere the graph is built again."""

        def product(vector: Tensor) -> Tensor:
            if self._gradients is None:
                self.move(x)
                self._gradients = self._derive(self._loss(), graph=True)
            pairs = zip(self._gradients, self._parts(vector), strict=True)
            curved = [(each, part.to(each)) for each, part in pairs if each.requires_grad]
            if not curved:
                return torch.zeros_like(vector)
            outputs, given = zip(*curved, strict=True)
            found = torch.autograd.grad(outputs, self.parameters, given, retain_graph=True, allow_unused=True)
            return _vector(found, self.parameters)

        return product

    def _loss(self) -> Tensor:
        assert self._closure is not None
        with torch.enable_grad():
            loss: Tensor = self._closure()
        return loss

    def _derive(self, loss: Tensor, graph: bool) -> list[Tensor]:
        if not loss.requires_grad:
            raise FedsimError("GNS: closure: given a loss without a graph; accepted: the loss itself, not detached")
        try:
            found = torch.autograd.grad(loss, self.parameters, create_graph=graph, allow_unused=True)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            accepted = "a closure that gives the loss and calls no backward()"
            raise FedsimError(f"GNS: closure: given one that calls backward(); accepted: {accepted}") from error
        pairs = zip(found, self.parameters, strict=True)
        return [torch.zeros_like(each) if g is None else g for g, each in pairs]

    def _parts(self, vector: Tensor) -> list[Tensor]:
        pieces = torch.split(vector, [each.numel() for each in self.parameters])
        return [piece.view(each.shape) for piece, each in zip(pieces, self.parameters, strict=True)]


def _vector(tensors: Iterable[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    pairs = zip(tensors, like, strict=True)
    return torch.cat([(torch.zeros_like(p) if t is None else t).detach().reshape(-1) for t, p in pairs]).double()


@optimizer("gns")
class ClientGNS:
    """Gradient-normalized smoothness on each client: a regularised Newton step on each batch; for small models.

    Args:
        curvature: H, the batch's Hessian by its products, or zero (a normalised gradient step).
        gamma: γ_0.
        tolerance: below this norm of the gradient the parameters stay.
        accuracy: residual at which conjugate gradients stop, relative to the gradient.
    """

    row_wise: ClassVar[bool] = False
    evaluates: ClassVar[bool] = True
    curvature: Kind = "exact"
    gamma: Positive = 1.0
    tolerance: NonNegative = 1e-8
    accuracy: Annotated[float, Field(gt=0, lt=1)] = 1e-3

    def check(self, scenario: Any) -> Iterable[Fault]:
        """It chooses the length of its steps itself, and holds each against the loss."""
        client, engine = scenario.client, scenario.engine
        if client.step_control is not None:
            accepted = "none with client.optimizer = 'gns': a second-order step has been tried as it is"
            yield Fault("/client.step_control", client.step_control.name, accepted, ("client.optimizer",))
        if client.clip_norm is not None:
            accepted = "none with client.optimizer = 'gns', which holds its step against the whole gradient"
            yield Fault("/client.clip_norm", client.clip_norm, accepted, ("client.optimizer",))
        if client.lr_schedule.name != "constant":
            accepted = "'constant' with client.optimizer = 'gns', which has no learning rate"
            yield Fault("/client.lr_schedule", client.lr_schedule.name, accepted, ("client.optimizer",))
        if engine.precision == "bfloat16":
            accepted = "'float32' or 'float64' with client.optimizer = 'gns': differences of losses are compared"
            yield Fault("/engine.precision", engine.precision, accepted, ("client.optimizer",))
        if engine.path == "stacked":
            accepted = "'auto', 'vmap' or 'reference' with client.optimizer = 'gns': it takes products with the Hessian"
            yield Fault("/engine.path", engine.path, accepted, ("client.optimizer",))

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> GNS:
        """The optimizer of these parameters; there is no learning rate to scale."""
        return GNS(list(parameters), self.gamma, self.curvature, self.tolerance, self.accuracy)

    def build_rows(self, memories: Sequence[Mapping[str, Tensor]], device: torch.device) -> RowsGNS:
        """The optimizer of k clients at once, with what each remembers."""
        gammas = [float(memory.get(GAMMA, self.gamma)) for memory in memories]
        return RowsGNS(
            torch.tensor(gammas, dtype=torch.float64, device=device), self.curvature, self.tolerance, self.accuracy
        )
