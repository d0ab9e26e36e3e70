"""Winsorized mean: in every coordinate values beyond a percentile are moved to it, then averaged.

    mean over k of  min(max(Δ_kj, q_c), q_{100−c}),   q the percentiles of the coordinate over the clients,

interpolated linearly between ranks. On the examples of one batch it is what keeps a model from memorising wrong labels;
over clients it bounds what each can move. Every client counts once; c = 0 is the plain mean.

Chatterjee & Zielinski, "On the Generalization Mystery in Deep Learning", 2022, arXiv 2203.10036, section on winsorized
gradients.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from fedsim.blocks import exact, map_blocks
from fedsim.order_statistics import COLUMNS, ranks
from fedsim.updates import Aggregate, Updates
from strategies.defense import Defense, Round, defense


@defense("winsorized_mean")
class WinsorizedMean(Defense):
    """The coordinate-wise mean of values clipped to percentiles.

    Args:
        percent: c, values below the c-th and above the (100 − c)-th percentile are moved to it.
    """

    cost = "n·log²n·d"
    coordinatewise = True
    translation_equivariant = True
    scale_equivariant = True

    percent: Annotated[float, Field(ge=0, le=50)] = 8.0

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        n, rows = len(updates), updates.values
        update = torch.empty(updates.d, dtype=rows.dtype, device=rows.device)
        place = self.percent / 100 * (n - 1)
        rank, part = int(place), place - int(place)

        def block(columns: slice) -> None:
            ordered = torch.stack([exact(row) for row in ranks(rows[:, columns], 0, n - 1)])
            low = ordered[rank] + part * (ordered[min(rank + 1, n - 1)] - ordered[rank])
            high = ordered[n - 1 - rank] + part * (ordered[max(n - 2 - rank, 0)] - ordered[n - 1 - rank])
            mean = ordered.clamp(low, torch.maximum(low, high)).mean(dim=0)
            update[columns] = mean.to(dtype=rows.dtype, device=rows.device)

        map_blocks(block, n, updates.d, columns=COLUMNS, parallel=rows.device.type == "cpu")
        return Aggregate(update, torch.full((n,), torch.nan, dtype=torch.float64))
