"""The vmap path: k models at once for what has no stacked twin, by ``vmap(grad(functional_call))``.

``functional_call`` puts the parameters into the module object itself, so every worker thread has an engine, with a
module, of its own.

torch.func, https://docs.pytorch.org/docs/stable/func.html.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fedsim.client.objective import NOTHING, Aside, Objective, tap
from fedsim.client.task import mean_loss
from fedsim.updates import Layout

Views = dict[str, Tensor]


class Vmapped:
    """The engine that gives a chunk's gradients by vmap.

    Args:
        module: the model; this engine's own.
        layout: where its parameters stand in a row.
        objective: what is minimised.
        compute: precision of autocast, None for the rows' own.
    """

    name = "vmap"
    flat_inputs = False

    def __init__(
        self, module: nn.Module, layout: Layout, objective: Objective, compute: torch.dtype | None = None
    ) -> None:
        self.module, self.layout, self.compute = module.train(), layout, compute

        def loss(parameters: Views, inputs: Tensor, targets: Tensor) -> Tensor:
            return mean_loss(functional_call(self.module, parameters, (inputs,)), targets, objective.num_classes)

        def total(parameters: Views, inputs: Tensor, targets: Tensor, present: Any, references: Any) -> Any:
            outputs = functional_call(self.module, parameters, (inputs,))
            features = None if self.tap is None else self.tap.pop()
            return objective.total(outputs, features, targets, Aside(present, references))

        def outputs(parameters: Views, inputs: Tensor) -> Any:
            return functional_call(self.module, parameters, (inputs,))

        self.objective, self.tap = objective, tap(objective, module)
        self.batched: Any = vmap(grad_and_value(loss))
        self.outputs: Any = vmap(outputs)
        masked = 0 if objective.loss is not None and objective.loss.masks else None
        self.whole: Any = vmap(grad_and_value(total, has_aux=True), in_dims=(0, 0, 0, masked, None))

    def views(self, rows: Tensor) -> Views:
        """Named parameters as views into (r, d) rows."""
        return self.layout.views(rows)

    def gradient(
        self, weights: Views, gradients: Views, inputs: Tensor, targets: Tensor, aside: Aside = NOTHING
    ) -> Tensor:
        """Write the gradients of the mean losses; (r,) sums of the losses over each client's batch."""
        with torch.autocast(inputs.device.type, dtype=self.compute or torch.bfloat16, enabled=self.compute is not None):
            if self.objective.plain:
                found, losses = self.batched(weights, inputs, targets)
            else:
                found, (_, losses) = self.whole(weights, inputs, targets, aside.present, aside.references)
        for name, into in gradients.items():
            into.copy_(found[name])
        return losses.detach() * inputs.shape[1]  # type: ignore[no-any-return]

    def logits(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """(r, B, …) outputs for (r, d) rows, differentiable."""
        return self.outputs(self.layout.views(rows), inputs)  # type: ignore[no-any-return]
