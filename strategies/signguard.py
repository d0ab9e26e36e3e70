"""SignGuard: clients of unusual length, or with an unusual share of positive and negative signs, are dropped.

1. S₁ = {i : L ≤ ‖Δ_i‖ / M ≤ R}, M the median norm (the lower of the middle two).
2. Of a random tenth of the coordinates the shares of positive, zero and negative values are each client's features;
   mean shift clusters them, and S₂ is the largest cluster.
3. The mean, all alike, of Δ_i · min(1, M / ‖Δ_i‖) over S₁ ∩ S₂; where that is empty the model stays as it is.

``similarity`` adds the cosine to the last aggregate as a feature: SignGuard-Sim.

Xu et al., "Byzantine-robust Federated Learning through Collaborative Malicious Gradient Filtering", ICDCS 2022,
arXiv 2109.05872.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsim.blocks import exact
from fedsim.updates import Aggregate, Selection, Updates
from strategies.clusters import largest, mean_shift
from strategies.defense import Defense, Round, defense
from strategies.norm_bound import shortened


@defense("signguard")
class SignGuard(Defense):
    """Filters by norm and by the statistics of signs.

    Args:
        lower: L, shortest norm that passes, as a share of the median.
        upper: R, longest norm that passes, as a share of the median.
        coordinates: share of the coordinates whose signs are counted.
        similarity: whether the cosine to the last aggregate is a feature as well.
    """

    cost = "n·d"
    sees = "updates (their last aggregate with similarity)"
    scale_equivariant = True

    lower: Annotated[float, Field(ge=0, lt=1)] = 0.1
    upper: Annotated[float, Field(gt=1)] = 3.0
    coordinates: Annotated[float, Field(gt=0, le=1)] = 0.1
    similarity: bool = False

    def select(self, updates: Updates, ctx: Round) -> Selection:
        norms, middle = updates.norms, float(updates.norms.median())
        usual = (norms >= self.lower * middle) & (norms <= self.upper * middle)
        features = self._features(updates, ctx)
        alike = largest(mean_shift(features, updates), updates)
        ctx.state["clip"] = middle
        center = features[alike].mean(dim=0) if bool(alike.any()) else features.mean(dim=0)
        return Selection.equal((usual & alike).nonzero().flatten(), updates, (features - center).norm(dim=1))

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        result = super().combine(shortened(updates, max(float(ctx.state["clip"]), 1e-300)), ctx)
        if self.similarity:
            ctx.state["last"] = result.update
        return result

    def _features(self, updates: Updates, ctx: Round) -> Tensor:
        count = max(1, int(self.coordinates * updates.d))
        drawn = torch.from_numpy(ctx.stream("coordinates").choice(updates.d, count, replace=False)).sort().values
        signs = updates.values[:, drawn.to(updates.values.device)].sign().cpu()
        features = [(signs == value).double().mean(dim=1) for value in (1, 0, -1)]
        last = ctx.state.get("last")
        if self.similarity and last is not None:
            along = torch.stack([exact(row) @ exact(last) for row in updates.values]).cpu()
            features.append(along / (updates.norms * float(exact(last).norm())).clamp(min=1e-300))
        return torch.stack(features, dim=1)
