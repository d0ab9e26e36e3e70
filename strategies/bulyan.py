"""Bulyan: Krum again and again, then the values around the median of what it chose.

1. θ = n − 2f times: Krum among the clients that are left picks one, which moves to the selection.
2. In every coordinate the mean of the β = θ − 2f selected values that are closest to the median of the selected.

Needs n ≥ 4f + 3. Krum's n' − f − 2 neighbours, n' the clients left, are at least one. The selection is iterative as in
the paper; implementations that take Krum's θ best at once (Flower's) are a different rule.

El Mhamdi, Guerraoui & Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018,
arXiv 1802.07927.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsim.blocks import exact, map_blocks
from fedsim.errors import Fault
from fedsim.order_statistics import COLUMNS, ranks
from fedsim.updates import Aggregate, Selection, Updates, ranked
from strategies.defense import Defense, Round, defense, require
from strategies.krum import neighbour_scores

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("bulyan")
class Bulyan(Defense):
    """Iterated Krum, then the mean of the values around each coordinate's median.

    Args:
        malicious: assumed number of malicious clients f in a round; needs n ≥ 4f + 3.
    """

    cost = "n²·d + n³"
    coordinatewise = True
    translation_equivariant = True
    scale_equivariant = True

    malicious: Annotated[int, Field(ge=0)] = 1

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        n, f = scenario.cohort, self.malicious
        if n < 4 * f + 3:
            most = f"at most {(n - 3) // 4}" if n >= 3 else "which no f does"
            yield Fault("malicious", f, f"n ≥ 4f + 3 with n = {n} clients a round: {most}", ("client.per_round",))

    def select(self, updates: Updates, ctx: Round) -> Selection:
        """The θ clients; their scores are the step in which each was picked, n for the others."""
        n, f = len(updates), self.malicious
        require(n >= 4 * f + 3, "bulyan", f"{n} clients with malicious = {f}", f"at least 4·{f} + 3 clients")
        distances = updates.squared_distances().clone()
        left = torch.ones(n, dtype=torch.bool)
        steps = torch.full((n,), float(n), dtype=torch.float64)
        for step in range(n - 2 * f):
            remaining = n - step
            order = ranked(neighbour_scores(distances, min(max(remaining - f - 2, 1), remaining - 1)), updates)
            picked = int(order[left[order]][0])
            steps[picked] = step
            left[picked] = False
            distances[picked, :] = distances[:, picked] = torch.inf
        return Selection.of((~left).nonzero().flatten(), updates, steps)

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        n = len(updates)
        beta = n - 2 * self.malicious
        require(beta >= 1, "bulyan", f"{n} selected clients", f"more than {2 * self.malicious}")
        return Aggregate(around_median(updates.values, beta), torch.full((n,), torch.nan, dtype=torch.float64))


def around_median(rows: Tensor, count: int) -> Tensor:
    """(d,) mean, in every coordinate, of the ``count`` values of the (n, d) rows closest to their median."""
    n, d = rows.shape
    result = torch.empty(d, dtype=rows.dtype, device=rows.device)

    def block(columns: slice) -> None:
        mean = _mean_around_median([exact(row) for row in ranks(rows[:, columns], 0, n - 1)], count)
        result[columns] = mean.to(dtype=rows.dtype, device=rows.device)

    map_blocks(block, n, d, columns=COLUMNS, parallel=rows.device.type == "cpu")
    return result


def _mean_around_median(ordered: Sequence[Tensor], count: int) -> Tensor:
    """(w,) mean of the ``count`` values closest to the median, which lie side by side in ascending ``ordered`` rows."""
    n = len(ordered)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    start, reach = torch.zeros_like(median), torch.full_like(median, torch.inf)
    for first in range(n - count + 1):
        farthest = torch.maximum(median - ordered[first], ordered[first + count - 1] - median)
        start = torch.where(farthest < reach, float(first), start)
        reach = torch.minimum(reach, farthest)
    total = torch.zeros_like(median)
    for rank, values in enumerate(ordered):
        total += torch.where((start <= rank) & (rank < start + count), values, 0.0)
    return total / count
