"""Gradients that resist memorising: what few examples want is cut off, what many want stays.

Per-example gradients (m, d), or the gradients of single mini-batches in a row:

- winsorized: in each coordinate the per-example gradients are clipped to their c-th and (100 - c)-th percentile, then
  averaged; c ∈ {0, 1, 2, 4, 8}, 0 is the mean.
- RM3 (running median of 3): the coordinate-wise median of the last three mini-batch gradients; no update in the first
  two steps. Momentum has to be 0: it would average what the median has cut.
- M3: the same median, one update for every three mini-batches.
- RA3 (running average of 3): the mean for the median, the control.

On a server the rows are clients: the coordinate median over clients, or RM3 over rounds.

Zielinski et al., "Weak and strong gradient directions", 2020 (arXiv:2003.07422); Chatterjee & Zielinski, "On the
generalization mystery in deep learning", 2022 (arXiv:2203.10036).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.errors import Fault, FedsimError
from fedsim.optim.elementwise import NonNegative, Positive, optimizer
from fedsim.order_statistics import COLUMNS, ranks

Rule = Literal["rm3", "m3", "ra3"]


def winsorized(per_example: Tensor, percent: float) -> Tensor:
    """(d,) mean of (m, d) gradients, clipped in each coordinate to their percentiles.

    Args:
        per_example: (m, d), a row for each example.
        percent: c, in percent of the examples, at each end; percentiles are interpolated linearly.

    Raises:
        FedsimError: percent is not in [0, 50].
    """
    mean = torch.empty_like(per_example[0])
    for start in range(0, per_example.shape[1], COLUMNS):
        columns = slice(start, start + COLUMNS)
        mean[columns] = winsorized_rows(per_example[:, columns], percent).mean(0)
    return mean


def winsorized_rows(per_example: Tensor, percent: float) -> Tensor:
    """(m, d) gradients, clipped in each coordinate to their percentiles; see :func:`winsorized`."""
    if not 0 <= percent <= 50:
        raise FedsimError(f"winsorized: percent: given {percent}; accepted: 0 to 50")
    if not percent:
        return per_example
    last = len(per_example) - 1
    position = last * percent / 100
    below = int(position)
    share = position - below
    above = min(below + 1, last)
    ordered = ranks(per_example, 0, last)
    low = torch.lerp(ordered[below], ordered[above], share)
    high = torch.lerp(ordered[last - below], ordered[last - above], share)
    return per_example.clamp(low, torch.maximum(low, high))


def median_of_three(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The middle one of three, in each coordinate."""
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def mean_of_three(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The mean of three, in each coordinate."""
    return (a + b + c) / 3


class LastThree(torch.optim.Optimizer):
    """SGD without momentum on the median or the mean of the last three mini-batch gradients; rows of (k, d) never mix.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: learning rate.
        rule: "rm3", "m3" or "ra3".
        weight_decay: L2 penalty, added to the gradient that the rule gives.

    Raises:
        FedsimError: an unknown rule, a negative rate or decay.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.1, rule: Rule = "rm3", weight_decay: float = 0.0) -> None:
        if rule not in ("rm3", "m3", "ra3"):
            raise FedsimError(f"LastThree: rule: given {rule!r}; accepted: 'rm3', 'm3', 'ra3'")
        if not (0 <= lr < math.inf and 0 <= weight_decay < math.inf):
            raise FedsimError(f"LastThree: given lr = {lr}, weight_decay = {weight_decay}; accepted: finite and ≥ 0")
        super().__init__(params, {"lr": lr, "rule": rule, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take in a mini-batch's gradient and move, if the rule moves now; what ``closure`` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._advance(parameter, parameter.grad, group)
        return loss

    def _advance(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["before_last"], state["last"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        seen = int(state["step"])
        if seen >= 3 and (group["rule"] != "m3" or seen % 3 == 0):
            rule = mean_of_three if group["rule"] == "ra3" else median_of_three
            combined = rule(state["before_last"], state["last"], gradient)
            if group["weight_decay"]:
                combined = combined.add(parameter, alpha=group["weight_decay"])
            parameter.add_(combined, alpha=-group["lr"])
        state["before_last"].copy_(state["last"])
        state["last"].copy_(gradient)


class ClientLastThree:
    """Base of the parts that are :class:`LastThree` with one of its rules."""

    row_wise: ClassVar[bool] = True
    rule: ClassVar[Rule]
    lr: float
    weight_decay: float

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> LastThree:
        """The optimizer of these parameters, its learning rate times ``scale``."""
        return LastThree(list(parameters), self.lr * scale, self.rule, self.weight_decay)


@optimizer("rm3")
class RunningMedian(ClientLastThree):
    """SGD on the coordinate-wise median of the last three mini-batch gradients; no update in the first two steps.

    Args:
        lr: learning rate.
        weight_decay: L2 penalty, added to the median.
    """

    rule: ClassVar[Rule] = "rm3"
    lr: Positive = 0.1
    weight_decay: NonNegative = 0.0


@optimizer("m3")
class MedianOfThree(ClientLastThree):
    """SGD on the coordinate-wise median of three mini-batch gradients, one update for every three of them.

    Args:
        lr: learning rate.
        weight_decay: L2 penalty, added to the median.
    """

    rule: ClassVar[Rule] = "m3"
    lr: Positive = 0.1
    weight_decay: NonNegative = 0.0


@optimizer("ra3")
class RunningAverage(ClientLastThree):
    """SGD on the mean of the last three mini-batch gradients: the control of rm3.

    Args:
        lr: learning rate.
        weight_decay: L2 penalty, added to the mean.
    """

    rule: ClassVar[Rule] = "ra3"
    lr: Positive = 0.1
    weight_decay: NonNegative = 0.0


@optimizer("winsorized")
class ClientWinsorized:
    """SGD on winsorized gradients: each coordinate of the examples' gradients is clipped to their percentiles.

    Args:
        lr: learning rate.
        percent: c, in percent of a batch's examples, at each end; 0 is the mean.
        momentum: share of the last step that is kept.
        weight_decay: L2 penalty, added to the gradient.
    """

    row_wise: ClassVar[bool] = True
    lr: Positive = 0.1
    percent: Annotated[float, Field(ge=0, le=50)] = 4.0
    momentum: NonNegative = 0.0
    weight_decay: NonNegative = 0.0

    def check(self, scenario: Any) -> Iterable[Fault]:
        """It needs the gradient of each example."""
        if scenario.client.regularizers:
            given = [part.name for part in scenario.client.regularizers]
            accepted = "none with client.optimizer = 'winsorized': a penalty belongs to a batch, not to its examples"
            yield Fault("/client.regularizers", given, accepted, ("client.optimizer",))

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> torch.optim.Optimizer:
        """The optimizer of these parameters, its learning rate times ``scale``."""
        options: dict[str, Any] = {"momentum": self.momentum, "weight_decay": self.weight_decay, "foreach": False}
        return torch.optim.SGD(list(parameters), lr=self.lr * scale, **options)

    def combine(self, per_example: Tensor) -> Tensor:
        """(d,) gradient of a batch from the (m, d) of its examples."""
        return winsorized(per_example, self.percent)
