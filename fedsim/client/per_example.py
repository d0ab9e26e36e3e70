"""The gradients of single examples, for optimizers that combine them otherwise than by their mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fedsim.client.objective import Aside
from fedsim.client.replica import Replica
from fedsim.errors import FedsimError
from fedsim.functional import functional_call


def combined_gradient(replica: Replica, inputs: Tensor, targets: Tensor, aside: Aside) -> Tensor:
    """Write the gradient that the optimizer makes of a batch's examples; the batch's mean loss.

    Raises:
        FedsimError: the model does not treat each example by itself.
    """
    workload, module = replica.workload, replica.module
    objective = workload.objective

    def loss(parameters: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        outputs = functional_call(module, parameters, (one.unsqueeze(0),))
        return objective.example_losses(outputs, target.unsqueeze(0), aside.present).squeeze(0)

    point: dict[str, Tensor] = dict(module.named_parameters())
    try:
        with torch.no_grad(), replica.autocast():
            found, losses = vmap(grad_and_value(loss), in_dims=(None, 0, 0), randomness="different")(
                point, inputs, targets
            )
    except Exception as error:
        raise FedsimError(
            f"client.optimizer: given '{workload.optimizer.name}', which takes each example's gradient; accepted: "
            f"a model that treats each by itself ({type(error).__name__}: {str(error).strip().splitlines()[0][:120]})"
        ) from error
    rows = torch.cat([found[name].reshape(len(inputs), -1) for name, _ in workload.layout.parameters], dim=1)
    replica.write(replica.gradient, workload.optimizer.combine(rows))
    mean: Tensor = losses.mean()
    return mean
