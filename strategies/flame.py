"""FLAME: clients outside of the one large cluster of angles are dropped, the rest clipped to the median, and noised.

1. c_ij = 1 − cos(w_i, w_j) between the clients' models; HDBSCAN with clusters of ⌊n/2⌋ + 1 at least admits one cluster.
2. Δ_i · min(1, S / ‖Δ_i‖) for those admitted, S the median norm of all clients' updates; their mean, all alike.
3. After the server's step N(0, (λ·S)²) on every parameter.

``of = "updates"`` takes the angles between updates instead, as many implementations do; between models they differ by
little more than rounding in float32, so they come from :mod:`fedsim.geometry`. Where HDBSCAN finds no cluster all are
admitted: the paper assumes that there is one, and its absence must not stop the training. Needs three clients.

Nguyen et al., "FLAME: Taming Backdoors in Federated Learning", USENIX Security 2022, arXiv 2101.02281, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.errors import Fault
from fedsim.geometry import geometry
from fedsim.updates import Aggregate, Selection, Updates
from strategies.clusters import density, largest
from strategies.defense import Defense, Round, defense, require
from strategies.foolsgold import angles
from strategies.noise import noisy
from strategies.norm_bound import shortened

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

FEWEST = 3


@defense("flame")
class FLAME(Defense):
    """Clustering by angle, clipping to the median norm, noise.

    Args:
        noise: λ, the noise's standard deviation as a share of the median norm (0.001 in the paper's image tasks).
        of: whose angles are clustered, the clients' ``models`` or their ``updates``.
    """

    cost = "n²·d"
    sees = "updates, the model"

    noise: Annotated[float, Field(ge=0)] = 0.001
    of: Literal["models", "updates"] = "models"

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        n = scenario.cohort
        if n < FEWEST:
            yield Fault("name", "flame", f"at least {FEWEST} clients a round, here {n}", ("client.per_round",))

    def select(self, updates: Updates, ctx: Round) -> Selection:
        n = len(updates)
        require(n >= FEWEST, "flame", f"{n} clients", f"at least {FEWEST}")
        if self.of == "models":
            apart = geometry(updates.values, updates.reference).one_minus_cosine
        else:
            apart = angles(updates.values)
        admitted = largest(density(apart, updates, n // 2 + 1), updates)
        if not bool(admitted.any()):
            admitted = torch.ones(n, dtype=torch.bool)
        ctx.state["clip"] = float(updates.norms.median())
        return Selection.equal(admitted.nonzero().flatten(), updates, apart[:, admitted].mean(dim=1))

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        return super().combine(shortened(updates, max(float(ctx.state["clip"]), 1e-300)), ctx)

    def finish(self, parameters: Tensor, ctx: Round) -> Tensor:
        return noisy(parameters, self.noise * float(ctx.state.get("clip", 0.0)), ctx)
