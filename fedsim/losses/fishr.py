"""Fishr: the variance of the head's gradients is the same in every domain.

With v_e, (C, m + 1), the variance over domain e's examples of each entry of the head's gradient (p − y) z̃ᵀ, the penalty
is the mean over domains and entries of (v_e − v̄)². As (p − y)_c² z̃_j² factors, no gradient of an example is ever
formed. DomainBed's form smooths v_e over steps: :class:`FishrAverage`.

Rame, Dancette & Cord, "Fishr: invariant gradient variances for out-of-distribution generalization", ICML 2022,
arXiv 2109.02934.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedsim.losses.hessian_alignment import head_terms


def gradient_variance(
    features: Tensor, logits: Tensor, labels: Tensor, *, head: Literal["softmax", "sigmoid"] = "softmax"
) -> Tensor:
    """v_e: the variance (over n, not n − 1) of the head's gradients over examples, (C, m + 1), the bias last.

    Args:
        features: (n, m) inputs of the head.
        logits: (n, C) outputs of the head.
        labels: (n,) classes for softmax, targets in the shape of the logits for sigmoid.
        head: what turns logits into probabilities.
    """
    inputs, probabilities, targets = head_terms(features, logits, labels, head)
    errors = probabilities - targets
    mean = errors.T @ inputs / len(inputs)
    return errors.square().T @ inputs.square() / len(inputs) - mean.square()


def fishr_penalty(variances: Sequence[Tensor]) -> Tensor:
    """mean over domains and entries of (v_e − v̄)², a scalar.

    Args:
        variances: v_e, (C, m + 1) each.
    """
    stacked = torch.stack(list(variances))
    return (stacked - stacked.mean(0)).square().mean()


class FishrAverage:
    """v_e smoothed over steps, ema · old + (1 − ema) · new; gradients flow through the new part alone.

    As in DomainBed the average starts at zero and the result is divided by 1 − ema, which keeps the gradient's size
    whatever the smoothing.

    Args:
        ema: share of the old average, in [0, 1).
    """

    def __init__(self, ema: float = 0.95) -> None:
        self.ema = ema
        self._old: dict[int, Tensor] = {}

    def __call__(self, variances: Sequence[Tensor]) -> list[Tensor]:
        """The smoothed v_e of each domain, in the order of the domains."""
        smoothed = []
        for domain, new in enumerate(variances):
            value = (1 - self.ema) * new + self.ema * self._old.get(domain, torch.zeros_like(new))
            self._old[domain] = value.detach()
            smoothed.append(value / (1 - self.ema))
        return smoothed
