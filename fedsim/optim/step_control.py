"""Step controls: what scales the step that any optimizer has made, by what it would do to the model's outputs.

``softmax_radius``: s = min(1, 1/r) with r the step's size in units of the softmax's radius, over the examples of the
step's own batch. The optimizer's state is as if nothing had been scaled. See :mod:`fedsim.optim.softmax_radius`.

Sao, "Ghosts of Softmax: Complex Singularities That Limit Safe Step Sizes in Cross-Entropy", 2026 (arXiv:2603.13552).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from fedsim.errors import Fault, FedsimError
from fedsim.optim.softmax_radius import Model, softmax_radius, step_scale
from fedsim.registry import register

step_control = partial(register, "step_control")


class StepControl:
    """Base of all step controls."""

    def fit(self, num_classes: int) -> None:
        """Called when the data are known.

        Raises:
            FedsimError: the control is not for such targets.
        """

    def scale(self, model_fn: Model, before: Any, step: Any, inputs: Tensor, batch_dims: int = 0) -> Tensor:
        """Factor on the step, in [0, 1]: a scalar, or (k,) for k clients.

        Args:
            model_fn: (parameters, inputs) → outputs.
            before: parameters before the step.
            step: what was added to them, learning rate, momentum and decay included.
            inputs: the step's batch.
            batch_dims: 1 where parameters, step and inputs are those of k clients.
        """
        raise NotImplementedError


@step_control("softmax_radius")
class SoftmaxRadius(StepControl):
    """Keeps each step within the radius in which the cross-entropy's series along it converges.

    Args:
        quantile: of the examples' sizes of the step; 1 is the largest, less keeps outliers from throttling it.
        temperature: by which the loss divides the logits.
    """

    quantile: Annotated[float, Field(ge=0, le=1)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0

    def check(self, scenario: Any) -> Iterable[Fault]:
        """It looks at raw examples, and at the softmax."""
        client = scenario.client
        if client.optimizer.name == "dp_sgd":
            accepted = "none with client.optimizer = 'dp_sgd': its factor is read off the batch, without noise"
            yield Fault("", self.name, accepted, ("client.optimizer",))  # type: ignore[attr-defined]
        if client.loss is not None and client.loss.name == "squared_error":
            accepted = "none with client.loss = 'squared_error', which has no softmax"
            yield Fault("", self.name, accepted, ("client.loss",))  # type: ignore[attr-defined]

    def fit(self, num_classes: int) -> None:
        if num_classes < 2:
            accepted = "none for targets that are numbers: there is no softmax"
            raise FedsimError(f"client.step_control: given 'softmax_radius'; accepted: {accepted}")

    def scale(self, model_fn: Model, before: Any, step: Any, inputs: Tensor, batch_dims: int = 0) -> Tensor:
        radius = softmax_radius(
            model_fn,
            before,
            step,
            inputs,
            quantile=self.quantile,
            temperature=self.temperature,
            batch_dims=batch_dims,
        )
        return step_scale(radius)
