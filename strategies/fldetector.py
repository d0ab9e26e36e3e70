"""FLDetector: clients whose updates do not follow from their earlier ones are dropped.

With g_i = −Δ_i and Ĥ v the L-BFGS approximation of the Hessian's product, from the last N changes of the model and of
the mean update:

    ĝ_i = g_i^{t−1} + Ĥ (w_t − w_{t−1}),   d_i = ‖ĝ_i − g_i‖ / Σ_j ‖ĝ_j − g_j‖,   s_i = mean of the last N d_i

Where the gap statistic finds more than one cluster of scores, 2-means divides them, and the cluster with the larger
mean is dropped. The paper stops there and restarts training; here they are dropped in that round. Scores begin when
two changes are known; a client that was not in an earlier round is predicted by the mean update of the round before,
and is judged by what it has.

Zhang, Cao, Jia & Gong, "FLDetector: Defending Federated Learning Against Model Poisoning Attacks via Detecting
Malicious Clients", KDD 2022, arXiv 2207.09209.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fedsim.blocks import exact
from fedsim.updates import Selection, Updates
from strategies.clusters import gap, k_means
from strategies.defense import Defense, Round, defense


@defense("fldetector")
class FLDetector(Defense):
    """Clients that are inconsistent over the rounds are dropped.

    Args:
        window: N, rounds from which the Hessian is approximated and over which scores are averaged.
    """

    cost = "n·d·N + N³, N the window"
    sees = "updates, the model, all earlier ones of each client"
    scale_equivariant = False

    window: Annotated[int, Field(ge=1)] = 10

    def select(self, updates: Updates, ctx: Round) -> Selection:
        state, rows = ctx.state, -exact(updates.values)
        weights = exact(updates.reference)
        mean = rows.mean(dim=0)
        scores = self._scores(updates.client_ids, rows, weights, state)
        self._remember(updates.client_ids, rows, weights, mean, state)
        kept = torch.arange(len(updates))
        if scores is not None:
            column = scores[:, None]
            if gap(column, updates, 2, ctx.stream("gap")) > 1:
                labels, _ = k_means(column, updates, 2, int(ctx.stream("k_means").integers(2**31)))
                means = torch.stack([scores[labels == label].mean() for label in (0, 1)])
                kept = (labels == int(means.argmin())).nonzero().flatten()
        return Selection.of(kept, updates, scores)

    def _scores(self, clients: list[int], rows: Tensor, weights: Tensor, state: dict[str, Any]) -> Tensor | None:
        """(n,) s_i with this round's d_i, which are remembered; None while there is no Hessian."""
        steps, turns = list(state.get("steps", {}).values()), list(state.get("turns", {}).values())
        if len(turns) == 0 or "weights" not in state:
            return None
        change = hessian_product(torch.stack(steps[-len(turns) :]), torch.stack(turns), weights - state["weights"])
        before: dict[str, Tensor] = state["rows"]
        predicted = torch.stack([before.get(str(client), state["mean"]).to(change) + change for client in clients])
        distances = (predicted - rows).norm(dim=1).cpu()
        distances = distances / distances.sum().clamp(min=1e-300)
        past: dict[str, Tensor] = dict(state.get("past", {}))
        for client, distance in zip(clients, distances, strict=True):
            known = past.get(str(client), distance.new_zeros(0))
            past[str(client)] = torch.cat([known, distance[None]])[-self.window :]
        state["past"] = past
        return torch.stack([past[str(client)].mean() for client in clients])

    def _remember(self, clients: list[int], rows: Tensor, weights: Tensor, mean: Tensor, state: dict[str, Any]) -> None:
        if "weights" in state:
            for name, change in (("steps", weights - state["weights"]), ("turns", mean - state["mean"])):
                kept = [*state.get(name, {}).values(), change][-self.window :]
                state[name] = {str(age): each for age, each in enumerate(kept)}
        state["weights"], state["mean"] = weights.clone(), mean
        state["rows"] = {**state.get("rows", {}), **{str(c): row for c, row in zip(clients, rows, strict=True)}}


def hessian_product(steps: Tensor, turns: Tensor, vector: Tensor) -> Tensor:
    """(d,) B·vector, B the L-BFGS approximation from N steps Δw and turns Δg (N, d), oldest first.

    Byrd, Nocedal & Schnabel 1994, theorem 2.3: B = σI − [σΔW ΔG] [[σΔWᵀΔW, L], [Lᵀ, −D]]⁻¹ [σΔWᵀ; ΔGᵀ]. Pairs
    with ⟨Δw, Δg⟩ ≤ 0, which no positive definite B has, are left out; without any the product is zero.
    """
    curved = (steps * turns).sum(dim=1) > 1e-12 * steps.norm(dim=1) * turns.norm(dim=1)
    steps, turns = steps[curved], turns[curved]
    if len(steps) == 0:
        return torch.zeros_like(vector)
    products = steps @ turns.T
    sigma = products[-1, -1] / (steps[-1] @ steps[-1])
    lower = products.tril(-1)
    top = torch.cat([sigma * steps @ steps.T, lower], dim=1)
    middle = torch.cat([top, torch.cat([lower.T, -torch.diag(products.diagonal())], dim=1)])
    basis = torch.cat([sigma * steps, turns])
    solved = torch.linalg.lstsq(middle, (basis @ vector)[:, None]).solution[:, 0]
    product: Tensor = sigma * vector - basis.T @ solved
    return product
