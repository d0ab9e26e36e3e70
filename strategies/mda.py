"""MDA: the mean of the n − f updates that lie closest together.

Among all subsets of n − f updates the one with the smallest diameter max ‖Δ_i − Δ_j‖ is averaged, every client with
the same weight. Instead of trying all C(n, f) subsets the diameter is bisected: a subset with diameter ≤ t exists if
and only if f updates cover all pairs that are farther apart than t, which a bounded search tree decides in about
1.5^f steps. Where fewer than f suffice, those farthest from the others go as well. Needs n > 2f.

El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018, arXiv 1802.07927
(minimal diameter averaging); El Mhamdi, Guerraoui & Rouault, "Distributed Momentum for Byzantine-resilient Stochastic
Gradient Descent", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsim.errors import Fault
from fedsim.updates import Selection, Updates
from strategies.caf import at_most_half
from strategies.defense import Defense, Round, defense, require
from strategies.spread import in_id_order

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("mda")
class MDA(Defense):
    """The mean of the subset with the smallest diameter.

    Args:
        malicious: assumed number of malicious clients f in a round, which are left out; needs n > 2f.
    """

    cost = "n²·d + 1.5^f·n²"
    translation_equivariant = True
    scale_equivariant = True

    malicious: Annotated[int, Field(ge=0, le=30)] = 1

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from at_most_half(self.malicious, scenario)

    def select(self, updates: Updates, ctx: Round) -> Selection:
        n, f = len(updates), self.malicious
        require(n > 2 * f, "mda", f"{n} clients with malicious = {f}", f"more than 2·{f} clients")
        order = in_id_order(updates.client_ids)
        distances = updates.squared_distances()[order[:, None], order]
        kept = order[smallest_diameter(distances, n - f)]
        return Selection.equal(kept, updates, updates.squared_distances()[:, kept].amax(dim=1))


def smallest_diameter(squared_distances: Tensor, size: int) -> Tensor:
    """Positions of the ``size`` rows with the smallest largest distance between two of them."""
    n = len(squared_distances)
    thresholds = torch.tensor(sorted(set(squared_distances.flatten().tolist())), dtype=torch.float64)
    low, high, found = 0, len(thresholds) - 1, frozenset[int]()
    while low < high:
        middle = (low + high) // 2
        cover = _cover(squared_distances > thresholds[middle], n - size)
        if cover is None:
            low = middle + 1
        else:
            high, found = middle, cover
    if low == len(thresholds) - 1:
        found = frozenset()
    kept = [i for i in range(n) if i not in found]
    while len(kept) > size:
        inner = squared_distances[kept][:, kept].amax(dim=1)
        kept.pop(int((inner == inner.max()).nonzero().max()))
    return torch.tensor(kept, dtype=torch.long)


def _cover(far: Tensor, budget: int) -> frozenset[int] | None:
    """At most ``budget`` rows of which each far pair holds one; None if there are none such."""
    degrees = far.sum(dim=1)
    most = int(degrees.max())
    if most == 0:
        return frozenset()
    if budget == 0 or int(degrees.sum()) > 2 * budget * most:
        return None
    row = int(degrees.argmax())
    neighbours = far[row].nonzero().flatten().tolist()
    for taken in ([row], neighbours):
        if len(taken) > budget or (taken is neighbours and neighbours == [row]):
            continue
        left = far.clone()
        left[taken, :] = left[:, taken] = False
        rest = _cover(left, budget - len(taken))
        if rest is not None:
            return rest | frozenset(taken)
    return None
