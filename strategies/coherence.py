"""Coherence of a round: how much clients, or the examples of all of them, have in common.

Of the round's rows G_k, each client counted once, with S = Σ G_k and Q = Σ |G_k|²,

    m-coherence = |S|² / Q ∈ [0, n],    A = |mean G_k|² / mean |G_k|² = m-coherence / n,

1/n for orthogonal updates, 1 for equal ones. With ``examples`` every client of the cohort answers with the sum S_k of
its examples' gradients at the received parameters and with Q_k = Σ_i |g_ki|², one scalar more than a gradient; S and Q
add over clients, so that m-coherence and α of all their examples are exact.

Chatterjee & Zielinski, "On the Generalization Mystery in Deep Learning", 2022, arXiv 2203.10036.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, ClassVar

import torch
from flwr.app import MetricRecord, RecordDict

from fedsim.analysis.coherence import GradientSums
from fedsim.flower import Flat, flatten
from fedsim.updates import Updates
from strategies.analysis import Analysis, Measures, analysis
from strategies.defense import Reply, Request, Round

SUMS = "query.coherence"


@analysis("coherence")
class Coherence(Analysis):
    """Agreement of the round's rows, and of the clients' single examples.

    Args:
        examples: also ask each client of the cohort for its examples' gradients: their sum, and the sum of their
            squared lengths.
    """

    handlers: ClassVar = {SUMS: "sums"}

    examples: bool = False

    def before(self, ctx: Round) -> Generator[Request, list[Reply], Measures | None]:
        """m-coherence and α of all examples of the cohort, before the training."""
        if not self.examples:
            return None
        replies = yield Request("coherence", SUMS)
        assert ctx.layout is not None
        total: GradientSums | None = None
        for reply in replies:
            row = flatten(reply.content["arrays"], ctx.layout, torch.float64)[: ctx.layout.d]  # type: ignore[arg-type]
            told: Any = reply.content["sums"]
            found = GradientSums(row.numpy(), float(told["squares"]), int(told["examples"]))
            total = found if total is None else total + found
        assert total is not None
        result = total.coherence()
        return {"m_coherence": result.m_coherence, "alpha": result.alpha, "examples": float(total.examples)}

    def measure(self, updates: Updates, ctx: Round) -> Measures:
        """m-coherence of the rows and A between the clients, of those that have examples."""
        rows = updates.rows((updates.num_examples > 0).nonzero().flatten())
        gram = rows.gram
        squares, total = float(gram.diagonal().sum()), float(gram.sum())
        coherence = total / squares if squares > 0 else math.nan
        return {"rows": coherence, "clients": coherence / max(1, len(rows))}

    def sums(self, node: Any, content: RecordDict) -> RecordDict:
        """A client's S_k, Q_k and number of examples; an example whose gradient is not finite adds nothing."""
        from fedsim.privacy.clipping import clipped_gradient_sum

        examples, layout = node.examples(), node.workload.layout
        loss = node.workload.example_loss
        found = clipped_gradient_sum(node.module.eval(), loss, examples.inputs, examples.targets, math.inf)
        finite = found.norms[found.norms.isfinite()]
        row = torch.cat([found.total, found.total.new_zeros(layout.b)])
        told = MetricRecord({"squares": float(finite.square().sum()), "examples": len(finite)})
        return RecordDict({"arrays": Flat(row, layout), "sums": told})
