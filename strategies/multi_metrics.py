"""Multi-metrics: drop the updates that are far away in three distances at once, weighted by how these vary.

Variant "code" (the authors' repository), on weights w_i = reference + update, over all j ≠ i:

    c_i = Σ (1 − cos(w_i, w_j))²,   m_i = Σ ‖w_i − w_j‖₁,   l_i = Σ |‖w_i‖₂ − ‖w_j‖₂|,
    s_i = t_iᵀ S⁻¹ t_i   with t_i = (c_i, m_i, l_i) and S the sample covariance of the t.

Variant "paper", against the received model w_0:

    x_i = (‖w_i − w_0‖₁, ‖w_i − w_0‖₂, cos(w_0, w_i)),   t_i = Σ_j |x_i − x_j| per metric,   s_i = sqrt(t_iᵀ S⁻¹ t_i).

The ⌊keep·n⌋ clients with the lowest score are averaged, weighted by example count. Needs four clients.

S spans twenty orders of magnitude and the cosines lie closer to 1 than float64 resolves: distances come from
differences (:mod:`fedsim.geometry`), and S⁻¹ from the singular values of the centred columns, each divided by its
standard deviation. A constant column says nothing and is left out.

Huang et al., "Multi-metrics adaptively identifies backdoors in Federated learning", ICCV 2023, arXiv 2303.06601.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.blocks import exact_rows, sum_blocks
from fedsim.errors import Fault
from fedsim.geometry import geometry
from fedsim.pairwise import manhattan
from fedsim.updates import Selection, Updates, lowest, share
from strategies.defense import Defense, Round, defense, require

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

Metric = Literal["cosine", "manhattan", "euclidean"]
FEWEST = 4


@defense("multi_metrics")
class MultiMetrics(Defense):
    """The clients with the lowest whitened score over cosine, Manhattan and Euclidean distance.

    Args:
        keep: p, a share (float) or count (int) of the round's clients.
        variant: "code" is the authors' repository, "paper" the text; they score differently.
        weighting: "whitened" by S⁻¹ as published, or "max": the sum of the metrics, each divided by its largest value.
        metrics: which distances count; the published rule takes all three.
    """

    cost = "n²·d"
    sees = "updates, the model"
    scale_equivariant = False

    keep: Annotated[float, Field(gt=0, le=1)] | Annotated[int, Field(ge=1)] = 0.3
    variant: Literal["code", "paper"] = "code"
    weighting: Literal["whitened", "max"] = "whitened"
    metrics: Annotated[list[Metric], Field(min_length=1)] = field(
        default_factory=lambda: ["cosine", "manhattan", "euclidean"]
    )

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        n = scenario.cohort
        if n < FEWEST:
            yield Fault("name", "multi_metrics", f"at least {FEWEST} clients a round, here {n}", ("client.per_round",))
        elif not 1 <= share(self.keep, n) <= n:
            yield Fault(
                "keep", self.keep, f"1 to {n} clients a round, or the share that they are", ("client.per_round",)
            )

    def select(self, updates: Updates, ctx: Round) -> Selection:
        n = len(updates)
        require(n >= FEWEST, "multi_metrics", f"{n} clients", f"at least {FEWEST}")
        features = code_features(updates) if self.variant == "code" else paper_features(updates)
        columns = torch.stack([features[metric] for metric in dict.fromkeys(self.metrics)], dim=1)
        if self.weighting == "max":
            scores = (columns / columns.amax(dim=0).clamp(min=1e-300)).sum(dim=1)
        else:
            scores = whitened(columns)
            if self.variant == "paper":
                scores = scores.sqrt()
        keep = max(1, min(n, share(self.keep, n)))
        return Selection.of(lowest(scores, keep, updates), updates, scores)


def code_features(updates: Updates) -> dict[Metric, Tensor]:
    """Metric → (n,) float64, as the authors' repository computes it."""
    models = geometry(updates.values, updates.reference)
    return {
        "cosine": models.one_minus_cosine.square().sum(dim=1),
        "manhattan": manhattan(updates.values).sum(dim=1),
        "euclidean": models.norm_differences.abs().sum(dim=1),
    }


def paper_features(updates: Updates) -> dict[Metric, Tensor]:
    """Metric → (n,) float64, as the paper writes it."""

    def block(columns: slice) -> Tensor:
        piece = exact_rows(updates.values, columns)
        manhattan_norms = piece.abs_().sum(dim=1)
        return torch.stack([manhattan_norms, piece.square_().sum(dim=1)])

    total = sum_blocks(block, len(updates), updates.d, parallel=updates.values.device.type == "cpu")
    sizes = torch.zeros(2, len(updates), dtype=torch.float64) if total is None else total.cpu()
    models = geometry(updates.values, updates.reference, with_reference=True)
    return {
        "cosine": _spread(models.one_minus_cosine[-1, :-1]),
        "manhattan": _spread(sizes[0]),
        "euclidean": _spread(sizes[1].sqrt()),
    }


def whitened(columns: Tensor) -> Tensor:
    """(n,) t_iᵀ S⁻¹ t_i for the rows t_i of (n, k) ``columns`` and their sample covariance S (pseudo-inverse)."""
    mean = columns.mean(dim=0)
    deviations = columns - mean
    sd = (deviations.square().sum(dim=0) / (len(columns) - 1)).sqrt()
    varies = sd > 1e-12 * columns.abs().amax(dim=0)
    if not bool(varies.any()):
        return torch.zeros(len(columns), dtype=torch.float64)
    scaled = deviations[:, varies] / sd[varies] / (len(columns) - 1) ** 0.5
    _, singular, directions = torch.linalg.svd(scaled, full_matrices=False)
    significant = singular > 1e-10 * singular[0]
    along = columns[:, varies] / sd[varies] @ directions[significant].T
    scores: Tensor = (along / singular[significant]).square().sum(dim=1)
    return scores


def _spread(values: Tensor) -> Tensor:
    return (values[:, None] - values[None, :]).abs().sum(dim=1)
