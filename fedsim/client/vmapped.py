"""The vmap path: k models at once for what has no stacked twin, by ``vmap(grad(functional_call))``.

``functional_call`` puts the parameters into the module object itself, so every worker thread has an engine, with a
module, of its own.

torch.func, https://docs.pytorch.org/docs/stable/func.html.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jacrev, vmap

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
            if objective.objectives > 1:
                summed = objective.losses(outputs, inputs, targets).sum()
                return summed, summed
            features = None if self.tap is None else self.tap.pop()
            return objective.total(outputs, features, targets, Aside(present, references))

        def example(parameters: Views, one: Tensor, target: Tensor, present: Any) -> Any:
            outputs = functional_call(self.module, parameters, (one.unsqueeze(0),))
            each = objective.example_losses(outputs, target.unsqueeze(0), present).squeeze(0)
            return each, each

        def several(parameters: Views, inputs: Tensor, targets: Tensor, present: Any) -> Any:
            losses = objective.losses(functional_call(self.module, parameters, (inputs,)), inputs, targets)
            return losses, losses

        def outputs(parameters: Views, inputs: Tensor) -> Any:
            return functional_call(self.module, parameters, (inputs,))

        self.objective, self.tap = objective, tap(objective, module)
        self.batched: Any = vmap(grad_and_value(loss))
        self.outputs: Any = vmap(outputs)
        masked = 0 if objective.loss is not None and objective.loss.masks else None
        self.whole: Any = vmap(grad_and_value(total, has_aux=True), in_dims=(0, 0, 0, masked, None))
        apart: Any = jacrev(several, has_aux=True)
        if objective.objectives == 1:
            apart = vmap(grad(example, has_aux=True), in_dims=(None, 0, 0, None))
        self.parts: Any = vmap(apart, in_dims=(0, 0, 0, masked))
        self.together: Any = vmap(total, in_dims=(0, 0, 0, masked, None))

    def views(self, rows: Tensor) -> Views:
        """Named parameters as views into (r, d) rows."""
        return self.layout.views(rows)

    def gradient(
        self, weights: Views, gradients: Views, inputs: Tensor, targets: Tensor, aside: Aside = NOTHING
    ) -> Tensor:
        """Write the gradients of the mean losses; (r,) sums of the losses over each client's batch."""
        with self._autocast(inputs):
            if self.objective.plain:
                found, losses = self.batched(weights, inputs, targets)
            else:
                found, (_, losses) = self.whole(weights, inputs, targets, aside.present, aside.references)
        for name, into in gradients.items():
            into.copy_(found[name])
        return losses.detach() * inputs.shape[1]  # type: ignore[no-any-return]

    def apart(self, weights: Views, parts: Tensor, inputs: Tensor, targets: Tensor, aside: Aside = NOTHING) -> Tensor:
        """Write the gradients of a batch's parts, its examples or objectives, into (r, G, d); (r,) sums of losses."""
        with self._autocast(inputs):
            found, losses = self.parts(weights, inputs, targets, aside.present)
        for name, into in self.layout.views(parts).items():
            into.copy_(found[name])
        summed: Tensor = losses.detach().sum(1)
        return summed * inputs.shape[1] if self.objective.objectives > 1 else summed

    def totals(self, weights: Views, inputs: Tensor, targets: Tensor, aside: Aside = NOTHING) -> tuple[Tensor, Tensor]:
        """(r,) objectives in evaluation mode, differentiable twice by the parameters; (r,) their losses."""
        self.module.eval()
        try:
            return self.together(weights, inputs, targets, aside.present, aside.references)  # type: ignore[no-any-return]
        finally:
            self.module.train()

    def logits(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """(r, B, …) outputs for (r, d) rows, differentiable."""
        # A model with several objectives has outputs of its own in training.
        self.module.train(self.objective.objectives == 1)
        try:
            return self.outputs(self.layout.views(rows), inputs)  # type: ignore[no-any-return]
        finally:
            self.module.train()

    def _autocast(self, inputs: Tensor) -> torch.autocast:
        enabled = self.compute is not None
        return torch.autocast(inputs.device.type, dtype=self.compute or torch.bfloat16, enabled=enabled)
