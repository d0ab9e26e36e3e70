"""IRM: a predictor that no domain would rescale (IRMv1).

The penalty of a domain is (∂/∂s L_e(s · logits) at s = 1)². In closed form ∂L_e/∂s = mean Σ_c (p − y)_c logits_c, so
nothing is differentiated twice. ``irm_penalty`` is the square on the whole domain (CMNIST); ``irm_penalty_unbiased`` is
DomainBed's product of the derivatives on the even and the odd examples.

Arjovsky, Bottou, Gulrajani & Lopez-Paz, "Invariant risk minimization", 2019, arXiv 1907.02893.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.losses.loss import indicator


def irm_penalty(logits: Tensor, labels: Tensor, *, head: Literal["softmax", "sigmoid"] = "softmax") -> Tensor:
    """(∂L_e/∂s)² of one domain, a scalar.

    Args:
        logits: (n, C); (n,) for one sigmoid output.
        labels: (n,) classes for softmax, targets in the shape of the logits for sigmoid.
        head: what turns logits into probabilities.
    """
    return _slopes(logits, labels, head).mean().square()


def irm_penalty_unbiased(logits: Tensor, labels: Tensor, *, head: Literal["softmax", "sigmoid"] = "softmax") -> Tensor:
    """The product of ∂L_e/∂s on the even and on the odd examples; it may be negative.

    Args:
        logits: (n, C), n at least 2.
        labels: as of :func:`irm_penalty`.
        head: what turns logits into probabilities.
    """
    if len(logits) < 2:
        raise FedsimError(f"IRM: given {len(logits)} examples; accepted: 2 and up, to be halved")
    slopes = _slopes(logits, labels, head)
    return slopes[0::2].mean() * slopes[1::2].mean()


def _slopes(logits: Tensor, labels: Tensor, head: str) -> Tensor:
    """∂/∂s of each example's loss at s · logits, (n,)."""
    if head == "softmax":
        errors = logits.softmax(-1) - indicator(labels, logits.shape[-1]).to(logits.dtype)
    else:
        errors = logits.sigmoid() - labels.reshape(logits.shape)
    return (errors * logits).reshape(len(logits), -1).sum(1)
