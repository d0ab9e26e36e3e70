"""Clients whose whole update goes beyond the softmax's radius: r as an anomaly score.

On the server's root data, with a = J_z(x) Δ_k the change of the logits to first order,

    r_k = max_x (max_c a_c − min_c a_c) / (πT);

updates that plant a backdoor or replace the model have to move logits far. The share with the lowest r stays. Needs
``data.root``.

Sao, "Ghosts of Softmax: Complex Singularities That Limit Safe Step Sizes in Cross-Entropy", 2026, arXiv 2603.13552,
gives r; the use as a score is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsim import runtime
from fedsim.blocks import exact
from fedsim.errors import Fault, FedsimError
from fedsim.optim.softmax_radius import spread
from fedsim.updates import Selection, Updates, lowest, share
from strategies.defense import Defense, Round, defense, require

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("softmax_radius")
class SoftmaxRadius(Defense):
    """Keeps the clients whose updates have the smallest r.

    Args:
        keep: how many of the clients stay, a share or a count.
        temperature: T, by which the loss divides the logits.
    """

    cost = "n backward passes over the root data"
    sees = "updates, the model, root data"
    scale_equivariant = True

    keep: Annotated[float, Field(gt=0, le=1)] | Annotated[int, Field(ge=1)] = 0.7
    temperature: Annotated[float, Field(gt=0)] = 1.0

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        if not scenario.data.root:
            yield Fault("/data.root", scenario.data.root, "1 or more, with server.defenses 'softmax_radius'")

    def fit(self, num_classes: int) -> None:
        if num_classes < 2:
            accepted = "none for targets that are numbers: there is no softmax"
            raise FedsimError(f"server.defenses: given 'softmax_radius'; accepted: {accepted}")

    def select(self, updates: Updates, ctx: Round) -> Selection:
        scores = self.radii(updates, ctx)
        kept = max(1, min(len(updates), share(self.keep, len(updates))))
        return Selection.of(lowest(scores, kept, updates), updates, scores)

    def radii(self, updates: Updates, ctx: Round) -> Tensor:
        """(n,) r_k of the rows, float64: Jv = ∂⟨Jᵀu, v⟩/∂u, one backward through the backward for each row."""
        root, predict = ctx.root, ctx.predict
        require(root is not None and predict is not None, "softmax_radius", "no root data", "data.root = 1 or more")
        assert root is not None
        assert predict is not None
        found = []
        with runtime.one_thread(), torch.enable_grad():
            point = updates.reference.detach().clone().requires_grad_()
            logits = predict(point, root.inputs)
            along = torch.zeros_like(logits, requires_grad=True)
            (pulled,) = torch.autograd.grad(logits, point, along, create_graph=True)
            for row in updates.values:
                length = exact(row).norm().clamp(min=1e-300)
                unit = (exact(row) / length).to(pulled)
                (change,) = torch.autograd.grad(pulled, along, unit, retain_graph=True)
                found.append(exact(spread(change)).amax() * length)
        return torch.stack(found).cpu() / (math.pi * self.temperature)
