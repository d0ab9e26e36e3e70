"""Whether an example's gradient, loss and view by its client can be had alone: what a clip per example counts on.

A loss or a partition's view of one's own may mix examples, by a batch's mean or a client's largest value. Then a clip
of "one example's gradient" bounds nobody, and the noise is for less than what one example moves. They are tried on a
few examples of the server's test set, one of which is replaced: what becomes of the others must stay as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedsim.errors import Fault, one_line
from fedsim.tables import Tables

if TYPE_CHECKING:
    from fedsim.data.examples import Examples

TRIED = 4
"""Examples, the last of which is replaced."""


def faults(
    scenario: Tables,
    examples: Examples,
    module: nn.Module,
    losses: Callable[[Tensor, Tensor], Tensor] | None,
    view: Callable[[Examples, int, int], Examples] | None,
) -> Iterator[Fault]:
    """What mixes examples.

    Args:
        scenario: what names the parts.
        examples: nobody's; of fewer than five nothing is learnt.
        module: the model.
        losses: (outputs (B, …), targets (B, …)) -> (B,) of the loss part; None without.
        view: a client's examples as it sees them; None where they are as they are.
    """
    if len(examples) <= TRIED:
        return
    if words := _unformed(module, examples):
        yield Fault("model.name", scenario.model.name, f"a model whose gradient by one example can be had: {words}")
        return
    if losses is not None and scenario.client.loss is not None and _mixes(_losses(module, losses), examples):
        accepted = "a loss of each example by itself: this one's depends on others in the batch, which no clip bounds"
        yield Fault("client.loss", scenario.client.loss.name, accepted)
    if view is not None and _mixes(lambda seen: view(seen, 0, scenario.seed).inputs, examples):
        accepted = "a view of each example by itself: this one's depends on the client's others, which no clip bounds"
        yield Fault("data.partition", scenario.data.partition.name, accepted)


def _unformed(module: nn.Module, examples: Examples) -> str:
    """Why the model has no clipped sum; nothing where it has."""
    from fedsim.privacy.clipping import clipped_gradient_sum

    one = examples.take(torch.tensor([0]))
    try:
        clipped_gradient_sum(copy.deepcopy(module), _squares, one.inputs, one.targets, 1.0)
    except Exception as error:
        return one_line(error)
    return ""


def _squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.flatten(1).square().sum(1)


def _mixes(make: Callable[[Examples], Tensor], examples: Examples) -> bool:
    chosen = [*range(TRIED - 1)]
    try:
        before, after = (make(examples.take(torch.tensor([*chosen, last]))) for last in (TRIED - 1, TRIED))
    except Exception:  # what cannot be computed is told where clients train
        return False
    if before.shape != after.shape or len(before) != TRIED:
        return True
    return not torch.allclose(before[:-1].double(), after[:-1].double(), rtol=1e-4, atol=1e-7, equal_nan=True)


def _losses(module: nn.Module, losses: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Examples], Tensor]:
    tried, first = copy.deepcopy(module).eval(), next(module.parameters())

    def of(examples: Examples) -> Tensor:
        inputs = examples.inputs.to(first) if examples.inputs.is_floating_point() else examples.inputs
        with torch.no_grad():
            return losses(tried(inputs), examples.targets)

    return of
