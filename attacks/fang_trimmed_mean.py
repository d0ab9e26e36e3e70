"""Fang's attack on the trimmed mean and the median: values just beyond the honest ones, on the wrong side.

In every coordinate j the benign models' values w_ij lie in [min_j, max_j], and s_j is the sign of the direction in
which the model would change without attack. Each malicious client sends a random value beyond the end against s_j:

    s_j = −1:  in [max_j, b·max_j]  if max_j > 0,  else [max_j, max_j / b]
    s_j = +1:  in [min_j / b, min_j] if min_j > 0,  else [b·min_j, min_j]

as a model, from which the received one is taken off. b = 2 in the paper; s is the sign of what the server makes of all
clients' updates as trained, 0 counts as +1 (public code takes their mean). This is the attack with full knowledge.

Fang, Cao, Jia & Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
arXiv:1911.11815, section 4.3.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Craft, attack
from attacks.fang_krum import against
from fedsim.blocks import exact


@attack("fang_trimmed_mean")
class FangTrimmedMean(Attack):
    """Random values beyond the honest extremes of each coordinate.

    Args:
        beyond: b, how far beyond, as a factor on the extreme value.
    """

    cost = "n·d, a run of the server"
    knowledge = "omniscient"
    knows_defense = True

    beyond: Annotated[float, Field(gt=1)] = 2.0

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        honest = ctx.honest()
        if len(honest) == 0:
            return ctx.skip(rows)
        rising = against(ctx) >= 0
        reference = exact(ctx.reference)
        highest = exact(honest.amax(dim=0)) + reference
        lowest = exact(honest.amin(dim=0)) + reference
        above = torch.where(highest > 0, self.beyond * highest, highest / self.beyond)
        below = torch.where(lowest > 0, lowest / self.beyond, self.beyond * lowest)
        near, far = torch.where(rising, lowest, highest), torch.where(rising, below, above)
        share = torch.special.ndtr(exact(ctx.noise("fang_trimmed_mean")))
        crafted: Tensor = (near + share * (far - near) - reference).to(rows)
        return crafted
