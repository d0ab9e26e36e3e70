"""diffGrad: Adam whose step shrinks where the gradient has stopped changing.

    m_t = β1·m_{t-1} + (1 - β1)·g_t                v_t = β2·v_{t-1} + (1 - β2)·g_t²
    ξ_t = sigmoid(|g_{t-1} - g_t|)                 the friction, in [½, 1]; g_0 = 0
    θ_t = θ_{t-1} - lr · sqrt(1 - β2^t) / (1 - β1^t) · ξ_t · m_t / (sqrt(v_t) + ε)

g_{t-1} has to be a copy. The paper's own experiments kept a reference to the gradient's tensor, which the next backward
pass overwrites: ξ is then ½ from the second step on, and the method is Adam at half the learning rate (``aliased``).
On a network ξ hardly leaves ½ either (:meth:`DiffGrad.mean_friction`), so Adam at lr/2 is the control to show.

The step is Adam's own, taken from zero and multiplied by ξ: it runs in torch's kernels.

Dubey et al., "diffGrad: An Optimization Method for Convolutional Neural Networks", IEEE TNNLS 2020 (arXiv:1909.11015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim.adam import adam

from fedsim.errors import Fault, FedsimError
from fedsim.optim.elementwise import Decay, NonNegative, Positive, optimizer

LANES = 64
"""A multiple of the numbers that one vector instruction takes, whatever the processor and the precision."""

Moments = dict[str, Tensor]


class DiffGrad(torch.optim.Optimizer):
    """Adam with diffGrad's friction on every coordinate.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: learning rate.
        betas: decay β1 of the first and β2 of the second moment.
        eps: ε, added to the root of the second moment.
        weight_decay: L2 penalty, added to the gradient.
        aliased: the paper's experiments: g_{t-1} is no copy, so that ξ_t = ½ from the second step on.
        fused: Adam's fused kernel on the CPU, where it serves. Without it the bits of a number never depend on where in
            its tensor it stands, so that a row of a (k, d) tensor moves as it would alone.
        log_friction: keep each step's mean ξ, for :meth:`mean_friction` and :meth:`row_friction`.

    Raises:
        FedsimError: an option out of range; a sparse or complex gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        aliased: bool = False,
        fused: bool = True,
        log_friction: bool = False,
    ) -> None:
        accepted = {
            "lr": (lr, 0 <= lr < math.inf, "finite, lr ≥ 0"),
            "betas": (betas, all(0 <= beta < 1 for beta in betas), "0 ≤ beta < 1"),
            "eps": (eps, 0 < eps < math.inf, "finite, eps > 0"),
            "weight_decay": (weight_decay, 0 <= weight_decay < math.inf, "finite, weight_decay ≥ 0"),
        }
        for name, (given, fits, wanted) in accepted.items():
            if not fits:
                raise FedsimError(f"DiffGrad: {name}: given {given}; accepted: {wanted}")
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**options, "aliased": aliased, "fused": fused, "log_friction": log_friction})
        self._friction: dict[Tensor, Tensor] = {}

    @overload
    def step(self, closure: None = None, *, rows: Tensor | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, rows: Tensor | None = None) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, rows: Tensor | None = None) -> float | None:
        """One step; what ``closure`` gives, if there is one.

        Args:
            closure: computes the loss and the gradients anew.
            rows: (k,) bool: of parameters (k, …) only these rows move, by their own number of steps; for the others
                nothing advances.
        """
        loss: float | None = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._friction.clear()
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            gradients = [_gradient(each, group["weight_decay"]) for each in parameters]
            states = [self._state(each, group["aliased"]) for each in parameters]
            if rows is not None or any(state["step"].ndim for state in states):
                for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
                    _advance_rows(parameter, gradient, state, rows, group)
                continue
            counts = [int(state["step"]) for state in states]
            for t in sorted(set(counts)):
                here = [count == t for count in counts]
                moving = list(compress(parameters, here))
                moves = self._zeros(moving, keep=group["fused"])
                seen = _advance(moving, list(compress(gradients, here)), list(compress(states, here)), moves, t, group)
                self._friction |= dict(zip(moving, seen, strict=group["log_friction"]))
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After a copy, a pickle or ``load_state_dict``: groups of an older state lack the newer options."""
        super().__setstate__(state)
        self._friction = {}
        for group in self.param_groups:
            for name, default in (("aliased", False), ("fused", True), ("log_friction", False)):
                group.setdefault(name, default)

    def mean_friction(self) -> float:
        """Mean ξ over all coordinates in the last step; NaN without ``log_friction`` or before the first step."""
        parameters = [each for group in self.param_groups for each in group["params"]]
        logged = [(each.numel(), self._friction[each].mean()) for each in parameters if each in self._friction]
        if not logged:
            return math.nan
        return float(sum(n * float(mean) for n, mean in logged) / sum(n for n, _ in logged))

    def row_friction(self, parameter: Tensor) -> Tensor:
        """(k,) mean ξ of each row of a (k, …) parameter in the last step, with ``log_friction``."""
        return self._friction[parameter]

    def _zeros(self, parameters: list[Tensor], keep: bool) -> list[Tensor]:
        """Room for the steps; what is kept need not be allocated again, a sixth of a step's time."""
        if not keep:
            return [torch.zeros_like(each) for each in parameters]
        kept: dict[Tensor, Tensor] = self.__dict__.setdefault("_moves", {})
        for each in parameters:
            if each not in kept or (kept[each].shape, kept[each].dtype) != (each.shape, each.dtype):
                kept[each] = torch.empty_like(each)
        moves = [kept[each] for each in parameters]
        torch._foreach_zero_(moves)
        return moves

    def _state(self, parameter: Tensor, aliased: bool) -> Moments:
        state: Moments = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq") if aliased else ("exp_avg", "exp_avg_sq", "previous_grad"):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def friction(previous: Tensor, gradient: Tensor) -> Tensor:
    """ξ = sigmoid(|g_{t-1} - g_t|)."""
    return _sigmoid_((previous - gradient).abs_())


def _gradient(parameter: Tensor, weight_decay: float) -> Tensor:
    """The gradient that enters m, and that the next step compares itself with."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse or gradient.is_complex():
        kind = "sparse" if gradient.is_sparse else "complex"
        raise FedsimError(f"DiffGrad: given a {kind} gradient; accepted: dense real ones")
    return gradient.add(parameter, alpha=weight_decay) if weight_decay else gradient


def _advance(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[Moments],
    moves: list[Tensor],
    t: int,
    group: dict[str, Any],
) -> list[Tensor]:
    """One step of parameters that have all made t steps; ``moves`` are zeros. Gives their rows' mean ξ, if logged."""
    beta1, beta2 = group["betas"]
    first, second = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    fused = group["fused"] and all(
        each.device.type == "cpu" and each.is_contiguous() for each in (*parameters, *gradients, *first, *second)
    )
    adam(
        moves,
        gradients,
        first,
        second,
        [],
        [state["step"] for state in states],
        foreach=None if group["fused"] and not fused else False,
        fused=fused,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=0.0,
        eps=group["eps"] / math.sqrt(1 - beta2 ** (t + 1)),  # Adam divides sqrt(v) by this before it adds ε
        maximize=False,
    )
    if group["aliased"] and t:
        torch._foreach_add_(parameters, moves, alpha=0.5)
        frictions = None
    elif group["aliased"]:
        frictions = [friction(torch.zeros_like(each), each) for each in gradients]
        torch._foreach_addcmul_(parameters, frictions, moves)
    else:
        previous = [state["previous_grad"] for state in states]
        torch._foreach_sub_(previous, gradients)
        torch._foreach_abs_(previous)
        frictions = [_sigmoid_(each) for each in previous]
        torch._foreach_addcmul_(parameters, frictions, moves)
    seen: list[Tensor] = []
    if group["log_friction"]:
        seen = [_row_means(each) for each in frictions or map(_halves, gradients)]
    if not group["aliased"]:
        torch._foreach_copy_(previous, gradients)
    return seen


def _row_means(numbers: Tensor) -> Tensor:
    """(k,) means of the rows of (k, …); (1,) of a vector."""
    return numbers.flatten(1).mean(1) if numbers.ndim > 1 else numbers.mean().reshape(1)


def _halves(like: Tensor) -> Tensor:
    return torch.full_like(like, 0.5)


def _advance_rows(
    parameter: Tensor, gradient: Tensor, state: Moments, rows: Tensor | None, group: dict[str, Any]
) -> None:
    """One step of some rows, those together that have made as many steps."""
    if group["log_friction"]:
        raise FedsimError("DiffGrad: log_friction: given with steps of single rows; accepted: steps of all rows")
    if not state["step"].ndim:
        state["step"] = state["step"].repeat(len(parameter))
    steps, plain = state["step"].clone(), {**group, "fused": False}
    chosen = torch.ones(len(parameter), dtype=torch.bool) if rows is None else rows.cpu()
    for t in sorted(set(steps[chosen].tolist())):
        index = (chosen & (steps == t)).nonzero()[:, 0]
        here = index.to(parameter.device)
        part = {name: each[here] for name, each in state.items() if name != "step"}
        part["step"] = torch.tensor(t)
        values = parameter[here]
        _advance([values], [gradient[here]], [part], [torch.zeros_like(values)], int(t), plain)
        parameter[here] = values
        state["step"][index] += 1
        for name, each in part.items():
            if name != "step":
                state[name][here] = each


def _sigmoid_(numbers: Tensor) -> Tensor:
    """The sigmoid in place, each number by vector instructions.

    torch takes the last few numbers of a tensor one by one, by another exponential function: their bits would depend on
    how many numbers stand before them, here on the other rows.
    """
    if not numbers.is_contiguous():
        return numbers.copy_(_sigmoid_(numbers.contiguous()))
    flat = numbers.view(-1)
    whole = len(flat) - len(flat) % LANES
    flat[:whole].sigmoid_()
    if whole < len(flat):
        padded = flat.new_zeros(LANES)
        padded[: len(flat) - whole] = flat[whole:]
        flat[whole:] = padded.sigmoid_()[: len(flat) - whole]
    return numbers


@optimizer("diffgrad")
class ClientDiffGrad:
    """diffGrad on each client: Adam whose step shrinks where the gradient has stopped changing.

    Args:
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: L2 penalty, added to the gradient.
        aliased: the paper's experiments, whose friction is ½ from the second step on.
        log_friction: clients tell the mean ξ of their last step, and the round's record has their mean.
    """

    row_wise: ClassVar[bool] = True
    lr: Positive = 0.001
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    aliased: bool = False
    log_friction: bool = False

    def check(self, scenario: Any) -> Iterable[Fault]:
        """Whether anybody reads what the clients tell."""
        if self.log_friction and scenario.guest:
            yield Fault("log_friction", True, "false behind a stock Flower strategy, which leaves it unread")

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> DiffGrad:
        """The optimizer of these parameters, its learning rate times ``scale``."""
        return DiffGrad(
            list(parameters),
            lr=self.lr * scale,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            aliased=self.aliased,
            fused=False,
            log_friction=self.log_friction,
        )

    def diagnostics(self, optimizer: DiffGrad, rows: Tensor | None = None) -> list[dict[str, float]]:
        """What each client tells of its last step.

        Args:
            optimizer: built by this part, after a step.
            rows: its one (k, d) parameter of k clients; None where it is one client's.
        """
        if not self.log_friction:
            return []
        means = [optimizer.mean_friction()] if rows is None else optimizer.row_friction(rows).tolist()
        return [{"friction": mean} for mean in means]
