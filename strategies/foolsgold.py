"""FoolsGold: clients whose updates point the same way over the rounds are taken for sybils and lose weight.

With h_i the sum of client i's updates so far and cs_ij the cosine of h_i and h_j, v_i = max_{j≠i} cs_ij:

    cs_ij = cs_ij · v_i / v_j  where v_j > v_i                                  (pardoning)
    α_i = 1 − max_j cs_ij in [0, 1],   α_i = α_i / max α,   α_i = κ·(ln(α_i / (1 − α_i)) + ½) in [0, 1]

and the α are the weights of the mean; example counts do not matter. The memory follows the client, by its partition
id, also if it is not in every round. ``features = "output"`` compares the output layer alone, the paper's indicative
features. Where all clients point the same way nobody is trusted, and the model stays as it is.

Fung, Yoon & Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", RAID 2020, arXiv 1808.04866.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.blocks import gram
from fedsim.updates import Selection, Updates
from strategies.defense import Defense, Round, defense
from strategies.output_layer import output_columns


@defense("foolsgold")
class FoolsGold(Defense):
    """The mean weighted against similarity of the clients' histories.

    Args:
        confidence: κ.
        features: what is compared, ``all`` parameters or those of the ``output`` layer.
    """

    cost = "n²·d"
    sees = "updates, each client's sum of earlier ones"
    scale_equivariant = True

    confidence: Annotated[float, Field(gt=0)] = 1.0
    features: Literal["all", "output"] = "all"

    def select(self, updates: Updates, ctx: Round) -> Selection:
        columns = output_columns(updates) if self.features == "output" else slice(None)
        history: dict[str, Tensor] = dict(ctx.state.get("history", {}))
        for client, row in zip(updates.client_ids, updates.values[:, columns], strict=True):
            known = history.get(str(client))
            history[str(client)] = row.clone() if known is None else known.to(row) + row
        ctx.state["history"] = history
        sums = torch.stack([history[str(client)] for client in updates.client_ids])
        alpha = trust(cosines(sums), self.confidence)
        return Selection(alpha, 1 - alpha)


def cosines(rows: Tensor) -> Tensor:
    """(n, n) float64 cosines between rows, 0 for a row of norm 0."""
    products = gram(rows)
    norms = products.diagonal().clamp(min=0).sqrt()
    return (products / (norms[:, None] * norms[None, :]).clamp(min=1e-300)).clamp(-1, 1)


def angles(rows: Tensor) -> Tensor:
    """(n, n) float64 1 − cos between rows, symmetric; 0 where it is no more than rounding."""
    apart = 1 - cosines(rows)
    apart = ((apart + apart.T) / 2).fill_diagonal_(0)
    return torch.where(apart < ROUNDING, 0.0, apart)


ROUNDING = 1e-12
"""A 1 − cos below this comes from float64's rounding."""


def trust(similarity: Tensor, confidence: float) -> Tensor:
    """(n,) weights in [0, 1] from the (n, n) cosines."""
    others = similarity - torch.diag(similarity.diagonal())
    most = others.amax(dim=1)
    pardoned = torch.where(
        most[None, :] > most[:, None], others * most[:, None] / most[None, :].clamp(min=1e-300), others
    )
    alpha = (1 - pardoned.amax(dim=1)).clamp(0, 1)
    if float(alpha.max()) < EQUAL:
        return torch.zeros_like(alpha)
    alpha = alpha / alpha.max()
    return (confidence * (torch.logit(alpha, eps=1e-12) + 0.5)).clamp(0, 1)


EQUAL = 1e-9
"""An α below this is a cosine of 1 up to rounding."""
