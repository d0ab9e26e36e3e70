"""Mimic: all attackers copy one honest client, so that its data weighs more than it should.

The copied row lies farthest along z, argmax_i |⟨z, Δ_i − μ⟩| over the honest rows with mean μ; z is the direction of
their largest variance. It starts as the first principal direction of the first attack round; in each further one of
``warmup`` rounds, the t-th, it turns by a step of Oja's rule to the direction of (t − 1)·z + g/‖g‖ with
g = Σ_i ⟨z, Δ_i − μ⟩ (Δ_i − μ), and then it stays.

The paper fixes the client, which is in every round; here the copied client is chosen anew among those that answered
(ByzFL copies the row whose number it is told).

Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022,
arXiv:2006.09365, section 4.2 and appendix B.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks import moments
from attacks.attack import Attack, Craft, attack


@attack("mimic")
class Mimic(Attack):
    """A copy of the honest update that differs most from the others.

    Args:
        warmup: attack rounds in which the direction is learnt.
    """

    cost = "n·d (n²·d in the first round)"
    knowledge = "omniscient"

    warmup: Annotated[int, Field(ge=1)] = 10

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        honest = ctx.honest()
        if len(honest) == 0:
            return ctx.skip(rows)
        mean = moments.mean(honest)
        seen = int(ctx.state.get("rounds", 0))
        direction = ctx.state.get("direction")
        if direction is None:
            direction = _principal(honest, mean)
        elif seen < self.warmup:
            turned = moments.centred_mix(_along(honest, mean, direction), honest, mean)
            direction = _unit(seen * direction + _unit(turned))
        ctx.state["direction"], ctx.state["rounds"] = direction, seen + 1
        return moments.repeated(honest[int(_along(honest, mean, direction).abs().argmax())], rows)


def _along(rows: Tensor, mean: Tensor, direction: Tensor) -> Tensor:
    """(n,) ⟨z, Δ_i − μ⟩."""
    return moments.centred_sum(lambda piece, columns: piece @ direction[columns], rows, mean)


def _principal(rows: Tensor, mean: Tensor) -> Tensor:
    """(d,) first principal direction of the rows, from their (n, n) Gram matrix."""
    gram = moments.centred_sum(lambda piece, _: piece @ piece.T, rows, mean)
    weights = torch.linalg.eigh(gram.cpu()).eigenvectors[:, -1].to(mean.device)
    return _unit(moments.centred_mix(weights, rows, mean))


def _unit(vector: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vector)
    return vector / norm if float(norm) > 0 else vector
