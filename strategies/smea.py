"""SMEA: the mean of the n − f updates with the smallest largest spread.

Among all subsets S of n − f updates the one whose covariance (1/|S|) Σ_S (Δ_i − μ_S)(Δ_i − μ_S)ᵀ has the smallest
largest eigenvalue is averaged, every client with the same weight: the optimal rule of the paper, at the price of
C(n, f) eigenvalues of (n − f, n − f) matrices, of which fedsim computes at most ``MOST``. Needs n > 2f. (ByzFL guesses
each eigenvalue from one power step on a random vector, and so picks another subset than the best one, d = 1 aside.)

Allouah et al., "On the Privacy-Robustness-Utility Trilemma in Distributed Learning", ICML 2023, arXiv 2302.04787.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations, islice
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedsim.errors import Fault
from fedsim.updates import Selection, Updates
from strategies.caf import at_most_half
from strategies.defense import Defense, Round, defense, require
from strategies.spread import centred_gram, in_id_order

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

MOST = 200_000
"""Subsets that are tried in a round at most."""

AT_ONCE = 1024
TIE = 1e-10


@defense("smea")
class SMEA(Defense):
    """The mean of the subset whose covariance has the smallest largest eigenvalue.

    Args:
        malicious: assumed number of malicious clients f in a round, which are left out; needs n > 2f.
    """

    cost = "n²·d + C(n, f)·n³"
    translation_equivariant = True
    scale_equivariant = True

    malicious: Annotated[int, Field(ge=0)] = 1

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from at_most_half(self.malicious, scenario)
        n, f = scenario.cohort, self.malicious
        if n > 2 * f and math.comb(n, f) > MOST:
            accepted = f"C(n, f) ≤ {MOST} subsets, here C({n}, {f}) = {math.comb(n, f)}"
            yield Fault("malicious", f, accepted, ("client.per_round",))

    def select(self, updates: Updates, ctx: Round) -> Selection:
        n, f = len(updates), self.malicious
        require(n > 2 * f, "smea", f"{n} clients with malicious = {f}", f"more than 2·{f} clients")
        require(math.comb(n, f) <= MOST, "smea", f"{math.comb(n, f)} subsets", f"at most {MOST}")
        order = in_id_order(updates.client_ids)
        distances = updates.squared_distances()[order[:, None], order]
        best, smallest = torch.arange(n - f), torch.inf
        subsets = combinations(range(n), n - f)
        while some := list(islice(subsets, AT_ONCE)):
            index = torch.tensor(some)
            spreads = centred_gram(distances[index[:, :, None], index[:, None, :]])
            largest = torch.linalg.eigvalsh(spreads)[:, -1].clamp(min=0)
            if float(largest.min()) < smallest * (1 - TIE):
                smallest = float(largest.min())
                best = index[int((largest <= smallest * (1 + TIE)).nonzero()[0])]
        kept = order[best]
        return Selection.equal(kept, updates, updates.squared_distances()[:, kept].mean(dim=1))
