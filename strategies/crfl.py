"""CRFL: the global model itself is clipped and perturbed in every round.

    w = w / max(1, ‖w‖ / ρ_t) + N(0, σ²·I),   ρ_t = ρ + growth·t

The bound is on the model, not on updates, and grows with the rounds as the paper's does (MNIST: 0.025·t + 2). At test
time the paper classifies by the vote of many noisy copies of the model (:func:`votes`), from which it certifies that a
bounded trigger changes nothing (:mod:`strategies.crfl_certificate`). The paper leaves the noise out of the last round,
and its votes add it; here every round has it, since a run may be continued.

Xie et al., "CRFL: Certifiably Robust Federated Learning against Backdoor Attacks", ICML 2021, arXiv 2106.08283.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsim import rng
from strategies.defense import Defense, Round, defense
from strategies.noise import noisy


@defense("crfl")
class CRFL(Defense):
    """The model's norm is bounded, and noise is added to it.

    Args:
        radius: ρ, largest norm of the model in round 0.
        growth: by how much the bound grows in a round.
        noise: σ, standard deviation of the noise on each parameter.
    """

    cost = "d"
    sees = "the model"

    radius: Annotated[float, Field(gt=0)] = 15.0
    growth: Annotated[float, Field(ge=0)] = 0.05
    noise: Annotated[float, Field(ge=0)] = 0.01

    def finish(self, parameters: Tensor, ctx: Round) -> Tensor:
        bound = self.radius + self.growth * ctx.round
        norm = float(torch.linalg.vector_norm(parameters, dtype=torch.float64))
        return noisy(parameters * (bound / norm) if norm > bound else parameters, self.noise, ctx)


def votes(
    predict: Callable[[Tensor, Tensor], Tensor],
    parameters: Tensor,
    inputs: Tensor,
    *,
    noise: float,
    copies: int = 100,
    seed: int = 0,
) -> Tensor:
    """(m, classes) how many of the noisy copies of the model name each class: the smoothed classifier.

    Args:
        predict: (parameters, inputs) -> logits (m, classes).
        parameters: (d,).
        inputs: (m, …).
        noise: σ.
        copies: M.
        seed: of the noise.
    """
    counts: Tensor | None = None
    for copy in range(copies):
        generator = rng.torch_stream(seed, "server.crfl.votes", round=copy)
        drawn = torch.randn(parameters.shape, generator=generator, dtype=parameters.dtype).to(parameters.device)
        logits = predict(parameters + noise * drawn, inputs)
        named = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        counts = named if counts is None else counts + named
    if counts is None:
        raise ValueError("copies: given 0; accepted: 1 or more")
    return counts
