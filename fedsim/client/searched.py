"""The objectives of a chunk's batches as functions of the parameters, for optimizers that evaluate them themselves.

Such an optimizer part's ``build_rows`` makes an optimizer of k clients, whose ``step`` asks for losses and gradients,
and for products with the Hessian, of those rows that need them: rows whose batches have the same size go together. As
on the reference path all evaluations of a step are of one function: in evaluation mode, with the proximal term and the
attacks' objectives in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedsim.client.objective import Aside

VECTORS = 16
"""Vectors of a client that a search holds at once, counted in the parameters' precision: its own are in float64."""

Parameters = dict[str, Tensor]


class Evaluates(Protocol):
    """What an engine does beside giving gradients."""

    def views(self, rows: Tensor) -> Parameters:
        """Named parameters as views into (r, d) rows."""

    def totals(self, weights: Parameters, inputs: Tensor, targets: Tensor, aside: Aside) -> tuple[Tensor, Tensor]:
        """(r,) objectives in evaluation mode, differentiable twice by the parameters; (r,) their losses."""


@dataclass(frozen=True)
class Batch:
    """The batches (r, B, …) of rows ``start`` to ``start`` + r."""

    start: int
    inputs: Tensor
    targets: Tensor


class Searched:
    """The objectives of the clients at work in one step.

    Args:
        engine: gives the batches' objectives.
        batches: of the rows, in their order.
        aside: what the objectives need beside a batch, of all rows.
        dtype: of the parameters.
        further: (objectives (r,), rows (r,), parameters (r, d)) → what is minimised in their place; None: they are.
    """

    def __init__(
        self,
        engine: Evaluates,
        batches: Sequence[Batch],
        aside: Aside,
        dtype: torch.dtype,
        further: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.engine, self.batches, self.aside, self.dtype, self.further = engine, batches, aside, dtype, further
        self.losses = torch.empty(0)
        """(k,) sums of the losses over each batch, where all were evaluated first."""

    @torch.enable_grad()
    def evaluate(self, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """f (r,) and g (r, d) of some rows, in float64."""
        values, gradients, sums = [], [], []
        for leaves, total, summed in self._parts(rows, x):
            found = torch.autograd.grad(total.sum(), leaves, allow_unused=True, materialize_grads=True)
            values.append(total.detach())
            gradients.append(_flat(found))
            sums.append(summed)
        if not len(self.losses):
            self.losses = torch.cat(sums)
        return torch.cat(values).double(), torch.cat(gradients).double()

    @torch.enable_grad()
    def products(self, rows: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        """(r, d) v → Hv of some rows, in float64."""
        graphs = []
        for leaves, total, _ in self._parts(rows, x):
            first = torch.autograd.grad(total.sum(), leaves, create_graph=True, allow_unused=True)
            curved = [i for i, each in enumerate(first) if each is not None and each.requires_grad]
            graphs.append((leaves, [first[i] for i in curved], curved))
        counts = [len(leaves[0]) for leaves, _, _ in graphs]

        def product(vectors: Tensor) -> Tensor:
            found = []
            for (leaves, outputs, curved), part in zip(graphs, torch.split(vectors, counts), strict=True):
                if not outputs:
                    found.append(torch.zeros_like(part))
                    continue
                pieces = torch.split(part.to(self.dtype), [each[0].numel() for each in leaves], 1)
                given = [pieces[i].view_as(leaves[i]) for i in curved]
                each = torch.autograd.grad(
                    outputs, leaves, given, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                found.append(_flat(each).double())
            return torch.cat(found)

        return product

    def _parts(self, rows: Tensor, x: Tensor) -> list[tuple[list[Tensor], Tensor, Tensor]]:
        """For each batch size: the parameters as leaves, the objectives (r,), sums of the losses (r,)."""
        found, position = [], 0
        for batch in self.batches:
            stop = batch.start + len(batch.inputs)
            here = rows[(rows >= batch.start) & (rows < stop)]
            if not len(here):
                continue
            point = x[position : position + len(here)].to(self.dtype)
            position += len(here)
            weights = {name: each.detach().requires_grad_() for name, each in self.engine.views(point).items()}
            own = here - batch.start
            whole = len(own) == len(batch.inputs)
            inputs, targets = (each if whole else each[own] for each in (batch.inputs, batch.targets))
            present = None if self.aside.present is None else self.aside.present[here]
            total, losses = self.engine.totals(weights, inputs, targets, Aside(present, self.aside.references))
            leaves = list(weights.values())
            if self.further is not None:
                total = self.further(total, here, _flat(leaves))
            found.append((leaves, total, losses.detach() * inputs.shape[1]))
        return found


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """(r, d) of (r, …) tensors."""
    return torch.cat([each.reshape(len(each), -1) for each in tensors], 1)
