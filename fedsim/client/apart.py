"""The gradients of a batch's parts for a chunk of clients, for optimizers that combine them: examples, or objectives.

An optimizer part's ``combine`` makes one gradient (d,) of the (m, d) of a client's examples. An optimizer's
``combine_objectives`` makes (r, d) of the (r, K, d) of r clients' objectives, of which it may remember something.

Of examples there are r·m·d numbers: so many clients at a time as fit in ``EXAMPLE_BYTES``, one at least.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from fedsim.client.objective import Aside
from fedsim.client.workload import Workload

EXAMPLE_BYTES = 64 * 2**20
"""Gradients of examples that are held at once, by each worker."""


class TakesApart(Protocol):
    """What an engine of the stacked or the vmap path does beside the gradients of whole batches."""

    def views(self, rows: Tensor) -> Any:
        """Whatever it reads parameters from, as views into (r, d) rows."""

    def apart(self, weights: Any, parts: Tensor, inputs: Tensor, targets: Tensor, aside: Aside) -> Tensor:
        """Write the gradients of each batch's G parts into (r, G, d); (r,) sums of the losses over each batch."""


class Apart:
    """Combined gradients of k clients.

    Args:
        engine: gives the gradients.
        workload: what is trained.
        rows: (k, d) parameters.
        gradient: (k, d), written to.
    """

    def __init__(self, engine: TakesApart, workload: Workload, rows: Tensor, gradient: Tensor) -> None:
        self.engine, self.part, self.rows, self.gradient = engine, workload.optimizer, rows, gradient
        self.objectives: Tensor | None = None
        if workload.apart == "objectives":
            self.objectives = rows.new_zeros(len(rows), workload.objective.objectives, rows.shape[1])
        self._buffer = rows.new_empty(0)

    def take(self, start: int, stop: int, inputs: Tensor, targets: Tensor, aside: Aside) -> Tensor:
        """The gradients of rows ``start`` to ``stop`` on batches (r, B, …); (r,) sums of their losses."""
        if self.objectives is not None:
            return self._take(self.objectives[start:stop], start, stop, inputs, targets, aside)
        examples, sums = inputs.shape[1], []
        count = clients_at_once(examples, self.rows)
        for first in range(start, stop, count):
            last = min(first + count, stop)
            here = slice(first - start, last - start)
            parts = self._held(last - first, examples)
            sums.append(self._take(parts, first, last, inputs[here], targets[here], aside))
            for row, each in enumerate(parts, start=first):
                self.gradient[row] = self.part.combine(each)
        return torch.cat(sums)

    def finish(self, optimizer: Any, active: int) -> None:
        """Combine the objectives of the first rows, those at work in this step."""
        if self.objectives is not None:
            self.gradient[:active] = optimizer.combine_objectives(self.objectives[:active])

    def _take(self, parts: Tensor, start: int, stop: int, inputs: Tensor, targets: Tensor, aside: Aside) -> Tensor:
        weights = self.engine.views(self.rows[start:stop])
        return self.engine.apart(weights, parts, inputs, targets, aside.rows(start, stop))

    def _held(self, clients: int, examples: int) -> Tensor:
        """(r, m, d) of memory that is used over again."""
        size = clients * examples * self.rows.shape[1]
        if len(self._buffer) < size:
            self._buffer = self.rows.new_empty(size)
        return self._buffer[:size].view(clients, examples, -1)


def clients_at_once(examples: int, rows: Tensor) -> int:
    """Of how many clients the gradients of so many examples each are held at once."""
    return max(1, EXAMPLE_BYTES // max(1, examples * rows.shape[1] * rows.element_size()))
