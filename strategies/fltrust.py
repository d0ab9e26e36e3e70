"""FLTrust: the server trains on clean data of its own, and trusts clients by how far they agree with it.

With g_0 the server's own update, trained from the same parameters on its root data as clients are:

    TS_i = max(0, cos(Δ_i, g_0)),   Δ = Σ TS_i · (‖g_0‖ / ‖Δ_i‖) · Δ_i / Σ TS_i

Every update is brought to the length of the server's; example counts do not matter. Where no client agrees with the
server the model stays as it is. The server trains with the model in evaluation mode (batch-norm statistics as
received), by plain SGD, without touching any client's random stream. Needs ``data.root``.

Cao, Fang, Liu & Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021,
arXiv 2012.13995.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim import runtime
from fedsim.blocks import exact
from fedsim.client.task import mean_loss
from fedsim.errors import Fault
from fedsim.updates import Aggregate, Updates
from strategies.defense import Defense, Round, defense, require

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("fltrust")
class FLTrust(Defense):
    """The mean weighted by the agreement with the server's own update.

    Args:
        lr: learning rate of the server's training on its root data; that of the clients, as a rule.
        epochs: passes over the root data in a round.
        batch_size: examples in a step.
    """

    cost = "n·d + training on the root data"
    sees = "updates, the model, root data"

    lr: Annotated[float, Field(gt=0)] = 0.05
    epochs: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 32

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        if not scenario.data.root:
            yield Fault(
                "/data.root", scenario.data.root, "1 or more, with server.defenses 'fltrust' (100 in the paper)"
            )

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        n = len(updates)
        own = exact(self.own_update(updates.reference, ctx))
        length = float(own.norm())
        norms = updates.norms.clamp(min=1e-300)
        along = torch.stack([exact(row).to(own) @ own for row in updates.values]).cpu()
        cosine = along / (norms * max(length, 1e-300))
        scores = cosine.clamp(min=0)
        total = float(scores.sum())
        if total <= 0:
            return Aggregate(torch.zeros_like(updates.reference), torch.zeros(n, dtype=torch.float64), {"": -cosine})
        return Aggregate(updates.weighted_sum(scores / total * length / norms), scores / total, {"": -cosine})

    def own_update(self, start: Tensor, ctx: Round) -> Tensor:
        """(d,) g_0, what training on the root data adds to the parameters."""
        root, predict = ctx.root, ctx.predict
        require(root is not None and predict is not None, "fltrust", "no root data", "data.root = 1 or more")
        assert root is not None
        assert predict is not None
        parameters = start.detach().clone()
        stream = ctx.stream("root")
        with runtime.one_thread(), torch.enable_grad():
            for _ in range(self.epochs):
                order = stream.permutation(len(root))
                for first in range(0, len(root), self.batch_size):
                    batch = root.take(np.sort(order[first : first + self.batch_size]))
                    point = parameters.requires_grad_()
                    outputs = predict(point, batch.inputs)
                    targets = batch.targets.to(outputs.device)
                    loss = mean_loss(outputs, targets, 0 if targets.is_floating_point() else outputs.shape[-1])
                    (gradient,) = torch.autograd.grad(loss, point)
                    parameters = (parameters - self.lr * gradient).detach()
        return parameters - start
