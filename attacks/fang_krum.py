"""Fang's attack on Krum: the farthest point against the honest direction that Krum still chooses.

All malicious clients send w' = w_received − λ·s, s the sign of the direction in which the model would change without
attack: of what the server makes of all updates as trained. (Public code takes the sign of their mean, whatever the
server's rule.) λ begins at the upper bound

    1/((n − 2f − 1)√d) · min_i Σ_{the n − f − 2 nearest} ‖w_l − w_i‖ + 1/√d · max_i ‖w_i − w_received‖

over the honest clients i, and is halved until Krum among all rows picks w', or λ < ``smallest``. Krum is run here with
f the attackers of the round, or the f that the defense assumes. Where that is no longer defined (n ≤ 2f + 1) the bound
is its second term alone.

Fang, Cao, Jia & Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
arXiv:1911.11815, section 4.2.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks import moments
from attacks.attack import Attack, Craft, attack
from fedsim.blocks import exact
from fedsim.updates import Updates


@attack("fang_krum")
class FangKrum(Attack):
    """The largest −λ·s that Krum chooses.

    Args:
        malicious: f that Krum assumes; the attackers of the round where it is not given.
        smallest: λ at which the search ends.
    """

    cost = "log(1/λ)·n²·d, a run of the server"
    knowledge = "omniscient"
    knows_defense = True

    malicious: Annotated[int, Field(ge=0)] | None = None
    smallest: Annotated[float, Field(gt=0)] = 1e-5

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        honest = ctx.honest()
        if len(honest) == 0:
            return ctx.skip(rows)
        direction = -against(ctx)
        assumed = ctx.num_malicious if self.malicious is None else self.malicious
        step = self.bound(honest, ctx.num_malicious)
        while step > self.smallest:
            crafted = moments.repeated(step * direction, rows)
            if krum_picks_first(torch.cat([crafted, honest]), assumed):
                break
            step /= 2
        return moments.repeated(step * direction, rows)

    def bound(self, honest: Tensor, attackers: int) -> float:
        """The paper's upper bound of λ."""
        d, n = honest.shape[1], len(honest) + attackers
        known = _updates(honest)
        width = math.sqrt(d)
        reach: float = float(known.norms.max()) / width
        if n - 2 * attackers - 1 <= 0:
            return reach
        near = known.squared_distances().sqrt().sort(dim=1).values[:, 1 : max(n - attackers - 2, 0) + 1]
        spread: float = float(near.sum(dim=1).min()) / ((n - 2 * attackers - 1) * width)
        return spread + reach


def against(ctx: Craft) -> Tensor:
    """(d,) s, 1 and −1 where the model would rise and fall without attack, 0 where it would stay."""
    return (exact(ctx.preview(ctx.rows)) - exact(ctx.reference)).sign()


def krum_picks_first(rows: Tensor, malicious: int) -> bool:
    """Whether Krum with f = ``malicious`` picks the first row (or one equal to it)."""
    neighbours = max(1, len(rows) - malicious - 2)
    distances = _updates(rows).squared_distances()
    scores = distances.sort(dim=1).values[:, 1 : neighbours + 1].sum(dim=1)
    return bool(scores[0] <= scores.min())


def _updates(rows: Tensor) -> Updates:
    return Updates(rows, torch.ones(len(rows)), list(range(len(rows))), torch.zeros_like(rows[0]))
