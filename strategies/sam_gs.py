"""SAM-GS: clients as tasks whose gradients differ in length, reconciled by their similarity in magnitude.

With g_k = −Δ_k, K clients and ψ(a, b) = 2‖a‖‖b‖ / (‖a‖² + ‖b‖²), Ψ its mean over pairs i < j (as in the authors'
code; the paper's sum has i = j as well, and with K = 2 would never fall under γ ≤ ½):

    m_k = β₁ m_k + (1 − β₁) g_k,   h = β₂ h + (1 − β₂)(1 − Ψ)² + ε,   m̂_k = m_k/(1 − β₁^t_k),   ĥ = h/(1 − β₂^t)
    w_k = mean_j ‖g_j‖ / ‖g_k‖           if Ψ < γ  (lengths differ: equalise)
    w_k = |m̂_k| / (√ĥ + ε), elementwise  otherwise (momentum)
    Δ = (1/K) Σ_k w_k ⊙ Δ_k

The paper takes the sum, K times this; as a mean it is a step of a client's size. m_k and t_k follow the client over the
rounds in which it answers. The momentum branch is quadratic in the updates' scale: put an adaptive server optimizer
behind it. Equal and opposite gradients stay a saddle.

Borsani et al., "Gradient Similarity Surgery in Multi-Task Deep Learning", 2025, arXiv 2506.06130.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fedsim.blocks import exact
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
    """

    cost = "n·d"
    sees = "updates, each client's momentum"

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.5
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    eps: Annotated[float, Field(gt=0)] = 1e-8

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        n, norms = len(updates), updates.norms
        similarity = magnitude_similarity(norms)
        rows = exact(updates.values)
        moments = self._moments(updates.client_ids, -rows, ctx.state)
        spread = self.beta_2 * float(ctx.state.get("h", 0.0)) + (1 - self.beta_2) * (1 - similarity) ** 2 + self.eps
        step = int(ctx.state.get("t", 0)) + 1
        ctx.state["h"], ctx.state["t"] = spread, step
        if similarity < self.gamma:
            weights = norms.mean() / norms.clamp(min=1e-300) * (norms > 0)
            update = (weights.to(rows) / n) @ rows
        else:
            root = (spread / (1 - self.beta_2**step)) ** 0.5 + self.eps
            update = (moments.abs() / root * rows).mean(dim=0)
        largest = torch.finfo(updates.values.dtype).max
        update = update.clamp(-largest, largest).to(dtype=updates.values.dtype, device=updates.values.device)
        return Aggregate(update, torch.full((n,), torch.nan, dtype=torch.float64))

    def _moments(self, clients: list[int], gradients: Tensor, state: dict[str, Any]) -> Tensor:
        """(n, d) bias-corrected m̂_k of these clients, whose memory moves on."""
        memory: dict[str, Tensor] = dict(state.get("moments", {}))
        counts: dict[str, int] = dict(state.get("counts", {}))
        found = []
        for client, gradient in zip(map(str, clients), gradients, strict=True):
            before = memory.get(client)
            moment = (1 - self.beta_1) * gradient
            memory[client] = moment if before is None else self.beta_1 * before.to(moment) + moment
            counts[client] = counts.get(client, 0) + 1
            found.append(memory[client] / (1 - self.beta_1 ** counts[client]))
        state["moments"], state["counts"] = memory, counts
        return torch.stack(found)


def magnitude_similarity(norms: Tensor) -> float:
    """Ψ, the mean over pairs i < j of 2ab / (a² + b²); pairs of zeros are alike."""
    n = len(norms)
    if n < 2:
        return 1.0
    first, second = torch.triu_indices(n, n, 1)
    a, b = norms[first], norms[second]
    largest = torch.maximum(a, b)
    ratio = torch.minimum(a, b) / largest.clamp(min=1e-300)
    ratio = torch.where(largest > 0, ratio, 1.0)
    return float((2 * ratio / (1 + ratio.square())).mean())
