"""CAF: the covariance-bound-agnostic filter, which down-weights what lies along the largest spread.

c_i = 1; as long as Σ c_i > n − 2f, with μ = Σ c_i Δ_i / Σ c_i and (λ, v) the largest eigenvalue and its vector of
Σ c_i (Δ_i − μ)(Δ_i − μ)ᵀ / Σ c_i:

    τ_i = ⟨v, Δ_i − μ⟩²,   c_i = c_i · (1 − τ_i / max_j τ_j)        (max over c_j > 0)

The mean with the smallest λ on the way is the aggregate. It needs no bound on the honest clients' variance. All of it
runs on the (n, n) distances. Needs n > 2f. (ByzFL guesses v from one power step on a random vector, and takes the
maximum over all rows: one that is out already keeps the others in.)

Allouah, Guerraoui & Stephan, "Towards Trustworthy Federated Learning with Untrusted Participants", ICML 2025,
arXiv 2505.01874, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedsim.errors import Fault
from fedsim.updates import Selection, Updates
from strategies.defense import Defense, Round, defense, require
from strategies.spread import centred_gram

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("caf")
class CAF(Defense):
    """The weighted mean with the smallest spread that filtering along the top eigenvector meets.

    Args:
        malicious: assumed number of malicious clients f in a round; needs n > 2f.
    """

    cost = "n²·d + n⁴"
    translation_equivariant = True
    scale_equivariant = True

    malicious: Annotated[int, Field(ge=0)] = 1

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from at_most_half(self.malicious, scenario)

    def select(self, updates: Updates, ctx: Round) -> Selection:
        n, f = len(updates), self.malicious
        require(n > 2 * f, "caf", f"{n} clients with malicious = {f}", f"more than 2·{f} clients")
        distances = updates.squared_distances()
        weights = torch.ones(n, dtype=torch.float64)
        best, smallest = weights, torch.inf
        while float(weights.sum()) > n - 2 * f or best is weights:
            used = weights.nonzero().flatten()
            share = weights[used] / weights.sum()
            spread = centred_gram(distances[used[:, None], used], share)
            roots = share.sqrt()
            values, vectors = torch.linalg.eigh(roots[:, None] * spread * roots)
            if float(values[-1]) < smallest:
                best, smallest = weights, float(values[-1])
            along = (spread @ (roots * vectors[:, -1])).square()
            if float(along.max()) <= 0:
                break
            weights = weights.clone()
            weights[used] *= 1 - along / along.max()
            if float(weights.sum()) <= 0:
                break
        return Selection(best, 1 - best)


def at_most_half(malicious: int, scenario: Scenario) -> Iterable[Fault]:
    """A fault where a round has n ≤ 2f clients."""
    n = scenario.cohort
    if n <= 2 * malicious:
        yield Fault("malicious", malicious, f"at most {(n - 1) // 2} of {n} clients a round", ("client.per_round",))
