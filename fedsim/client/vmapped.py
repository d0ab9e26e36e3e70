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

from fedsim.client.task import mean_loss
from fedsim.updates import Layout

Views = dict[str, Tensor]


class Vmapped:
    """The engine that gives a chunk's gradients by vmap.

    Args:
        module: the model; this engine's own.
        layout: where its parameters stand in a row.
        num_classes: classes of the target; 0 for regression.
        compute: precision of autocast, None for the rows' own.
    """

    name = "vmap"
    flat_inputs = False

    def __init__(self, module: nn.Module, layout: Layout, num_classes: int, compute: torch.dtype | None = None) -> None:
        self.module, self.layout, self.compute = module.train(), layout, compute

        def loss(parameters: Views, inputs: Tensor, targets: Tensor) -> Tensor:
            return mean_loss(functional_call(self.module, parameters, (inputs,)), targets, num_classes)

        self.batched: Any = vmap(grad_and_value(loss))

    def views(self, rows: Tensor) -> Views:
        """Named parameters as views into (r, d) rows."""
        return self.layout.views(rows)

    def gradient(self, weights: Views, gradients: Views, inputs: Tensor, targets: Tensor) -> Tensor:
        """Write the gradients of the mean losses; (r,) sums of the losses over each client's batch."""
        with torch.autocast(inputs.device.type, dtype=self.compute or torch.bfloat16, enabled=self.compute is not None):
            found, losses = self.batched(weights, inputs, targets)
        for name, into in gradients.items():
            into.copy_(found[name])
        return losses.detach() * inputs.shape[1]  # type: ignore[no-any-return]
