"""Neurotoxin: the backdoor is written only where honest clients hardly write, so that they do not overwrite it.

With g = w_t − w_{t−1}, the global step of the round before, which stands for what honest clients will do next, and
S = the ⌊k·d⌋ coordinates with the largest |g_j|, the malicious client's parameters are projected after every step:

    w_j = w_received,j   for j ∈ S

In the first round there is no step before it, and the mask is empty. Masking the gradient alone, as some code does,
leaves momentum and weight decay free to move S; what is sent is projected here. (BackFed defines the class and never
uses it; here a run in which an attack changed nothing says so.)

Zhang et al., "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022, arXiv:2206.10341, algorithm 1.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, LocalStep, attack


@attack("neurotoxin")
class Neurotoxin(Attack):
    """Only coordinates outside of the benign top k are trained.

    Args:
        top: k, share of the coordinates that are left alone: those of the largest benign step.
    """

    cost = "d·log d a local step"
    untargeted = False
    wants_previous = True

    top: Annotated[float, Field(gt=0, lt=1)] = 0.05

    @torch.no_grad()
    def after_step(self, parameters: Tensor, step: LocalStep) -> None:
        for row, node in zip(parameters, step.clients, strict=True):
            if node.model is None or node.model.previous is None:
                continue
            mask = benign_top(step.reference, node.model.previous, self.top).to(row.device)
            row[mask] = step.reference[mask].to(row)


def benign_top(reference: Tensor, previous: Tensor, share: float) -> Tensor:
    """Positions of the ⌊share·d⌋ coordinates that moved most between two rounds; ties to the smaller position."""
    moved = (reference - previous.to(reference)).abs()
    return moved.sort(descending=True, stable=True).indices[: int(share * len(moved) + 1e-9)]
