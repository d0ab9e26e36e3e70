"""SAM-GS: clients as tasks, g_k = −Δ_k, reconciled by how alike the lengths of their updates are.

The rule is :func:`fedsim.optim.sam_gs.surgery`, with the formulas. m_k and t_k follow the client over the rounds in
which it answers; h and t are the server's. The paper takes the sum of the weighted gradients; here it is their mean.
Equalised it is a step of a client's size. The momentum branch is quadratic in the updates' scale, divided by how
unlike they are: where clients are alike its step is many times a client's, so put an adaptive server optimizer behind
it, or ``rescale``. Equal and opposite gradients stay a saddle.

A single client has no pair, and nothing to be reconciled with: its update passes as it is, and nothing is remembered.

Borsani et al., "Gradient Similarity Surgery in Multi-Task Deep Learning", 2025, arXiv 2506.06130.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fedsim.blocks import exact
from fedsim.optim.sam_gs import Pairs, State, surgery
from fedsim.updates import Aggregate, Updates
from strategies.defense import Defense, Round, defense

Decay = Annotated[float, Field(ge=0, lt=1)]


@defense("sam_gs")
class SAMGS(Defense):
    """Gradient surgery by similarity in magnitude.

    Args:
        gamma: γ, similarity under which the lengths are equalised.
        beta_1: β₁, decay of the clients' momentum.
        beta_2: β₂, decay of the dissimilarity's mean.
        eps: ε.
        pairs: what the similarity runs over: "distinct" clients (the authors' code), or "all" pairs, each client with
            itself too (the paper).
        rescale: give the momentum branch the length that the plain mean has.
    """

    cost = "n·d"
    sees = "updates, each client's momentum"

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.5
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    eps: Annotated[float, Field(gt=0)] = 1e-8
    pairs: Pairs = "distinct"
    rescale: bool = False

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        if len(updates) == 1:
            return Aggregate(updates.values[0].clone(), torch.full((1,), torch.nan, dtype=torch.float64))
        rows = exact(updates.values)
        clients = list(map(str, updates.client_ids))
        state = _state(clients, rows, ctx.state)
        combined = surgery(
            -rows,
            state,
            betas=(self.beta_1, self.beta_2),
            gamma=self.gamma,
            eps=self.eps,
            pairs=self.pairs,
            rescale=self.rescale,
        )
        _keep(clients, state, ctx.state)
        update = -combined.gradient / len(rows)
        largest = torch.finfo(updates.values.dtype).max
        update = update.clamp(-largest, largest).to(dtype=updates.values.dtype, device=updates.values.device)
        return Aggregate(update, torch.full((len(rows),), torch.nan, dtype=torch.float64))


def _state(clients: list[str], rows: Tensor, kept: dict[str, Any]) -> State:
    """What SAM-GS remembers of these clients; nothing of those that answer for the first time."""
    state = State.fresh(len(rows), rows.shape[1], rows.dtype, rows.device)
    state.spread.fill_(float(kept.get("h", 0.0)))
    state.steps.fill_(int(kept.get("t", 0)))
    for row, client in enumerate(clients):
        if client in kept.get("counts", {}):
            state.momentum[row] = kept["moments"][client]
            state.counts[row] = kept["counts"][client]
    return state


def _keep(clients: list[str], state: State, kept: dict[str, Any]) -> None:
    """Write it back; clients that did not answer keep what they had."""
    kept["h"], kept["t"] = float(state.spread), int(state.steps)
    moments = (row.clone() for row in state.momentum)
    kept["moments"] = kept.get("moments", {}) | dict(zip(clients, moments, strict=True))
    kept["counts"] = kept.get("counts", {}) | dict(zip(clients, state.counts.tolist(), strict=True))
