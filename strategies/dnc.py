"""Divide-and-conquer: updates that lie far along the main direction of a random part of the coordinates are dropped.

``iterations`` times: b coordinates are drawn, the updates' part there is centred, v is its first right singular
vector, s_i = ⟨Δ_i − μ, v⟩², and the n − ⌊c·f⌋ lowest s_i are good. The clients that are good every time are averaged,
all with the same weight. Where no client is, those that are good most often are taken, on which the paper is silent.

Shejwalkar & Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
Learning", NDSS 2021, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedsim.blocks import exact
from fedsim.errors import Fault
from fedsim.updates import Selection, Updates, lowest
from strategies.defense import Defense, Round, defense, require

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("dnc")
class DnC(Defense):
    """Spectral outliers of random coordinates are dropped.

    Args:
        malicious: assumed number of malicious clients f in a round; needs n > c·f.
        factor: c, how many times f clients are dropped in an iteration.
        iterations: how often coordinates are drawn.
        coordinates: b, how many (all, where the model has fewer).
    """

    cost = "n²·b + n³, b the coordinates drawn"
    translation_equivariant = True
    scale_equivariant = True

    malicious: Annotated[int, Field(ge=0)] = 1
    factor: Annotated[float, Field(gt=0)] = 1.0
    iterations: Annotated[int, Field(ge=1)] = 1
    coordinates: Annotated[int, Field(ge=1)] = 10_000

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        n, dropped = scenario.cohort, int(self.factor * self.malicious)
        if n <= dropped:
            accepted = f"fewer than the {n} clients a round that it drops, here {dropped}"
            yield Fault("malicious", self.malicious, accepted, ("client.per_round",))

    def select(self, updates: Updates, ctx: Round) -> Selection:
        n, dropped = len(updates), int(self.factor * self.malicious)
        require(n > dropped, "dnc", f"{n} clients, of which {dropped} are to be dropped", f"more than {dropped}")
        stream = ctx.stream("coordinates")
        good = torch.zeros(n, dtype=torch.float64)
        scores = torch.zeros(n, dtype=torch.float64)
        for _ in range(self.iterations):
            rows = updates.values
            if self.coordinates < updates.d:
                drawn = torch.from_numpy(stream.choice(updates.d, self.coordinates, replace=False)).sort().values
                rows = rows[:, drawn.to(rows.device)]
            piece = exact(rows).cpu()
            piece = piece - piece[updates.client_ids.index(min(updates.client_ids))]
            piece = piece - piece.mean(dim=0)
            spread = piece @ piece.T
            values, vectors = torch.linalg.eigh(spread)
            found = vectors[:, -1].square() * values[-1].clamp(min=0)
            good[lowest(found, n - dropped, updates)] += 1
            scores += found
        kept = (good == good.max()).nonzero().flatten()
        return Selection.equal(kept, updates, scores / self.iterations)
