"""Hessian alignment: a head whose gradient and Hessian agree over the domains does not lean on what differs there.

The head is the last linear layer, w = its weight and bias, (C, m + 1). Per domain e with loss L_e:
g_e = ∇_w L_e, H_e = ∇²_w L_e, and the penalty is

    Σ_e [α ‖h_e − h̄‖² + β ‖g_e − ḡ‖²],    h_e = H_e g_e (HGP) or diag(H_e),

with ḡ and h̄ of the mean loss L̄ = Σ_e w_e L_e: for HGP h̄ = H̄ ḡ, which is not the mean of the h_e.

Nothing is differentiated twice. With z̃ = [features, 1], p the probabilities and y the targets (one-hot for softmax):

    g       = mean (p − y) z̃ᵀ
    H[V]    = mean (diag p − p pᵀ)(V z̃) z̃ᵀ     softmax;   mean p(1 − p)(V z̃) z̃ᵀ   sigmoid
    diag H  = mean p(1 − p) z̃²                   both

and gradients flow through features and logits. ``head = "sigmoid"`` is the loss summed over outputs and averaged over
examples; its logits are (n,) or (n, C) with targets alike.

Two forms: DomainBed's (mean over domains, h̄ and ḡ detached, no annealing) and CMNIST's (sum, nothing detached,
λ annealed, see :func:`cmnist_objective`).

Hemati, Zhang, Estiri & Chen, "Understanding Hessian alignment for domain generalization", ICCV 2023, arXiv 2308.11778.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.losses.loss import indicator

Head = Literal["softmax", "sigmoid"]
Domain = tuple[Tensor, Tensor, Tensor]
"""Features (n, m), logits (n, C) and labels of one domain."""

CHUNK = 2**22
"""Numbers that Hutchinson's draws may hold at once."""
_WORD = 2**32 - 1


def head_gradient(features: Tensor, logits: Tensor, labels: Tensor, *, head: Head = "softmax") -> Tensor:
    """g = ∇_w of the mean loss, (C, m + 1), the bias last.

    Args:
        features: (n, m) inputs of the head.
        logits: (n, C) outputs of the head; (n,) for one sigmoid output.
        labels: (n,) classes for softmax, targets in the shape of the logits for sigmoid.
        head: what turns logits into probabilities.

    Raises:
        FedsimError: shapes that do not fit, or no examples.
    """
    inputs, probabilities, targets = head_terms(features, logits, labels, head)
    return (probabilities - targets).T @ inputs / len(inputs)


def hessian_vector_product(features: Tensor, logits: Tensor, vector: Tensor, *, head: Head = "softmax") -> Tensor:
    """H[V] of the mean loss, (C, m + 1); the Hessian of these losses does not depend on the labels.

    Args:
        features: (n, m) inputs of the head.
        logits: (n, C) outputs of the head.
        vector: V, (C, m + 1), or several, (S, C, m + 1).
        head: what turns logits into probabilities.
    """
    inputs, probabilities, _ = head_terms(features, logits, None, head)
    if vector.shape[-2:] != (probabilities.shape[1], inputs.shape[1]):
        wanted = f"(…, {probabilities.shape[1]}, {inputs.shape[1]})"
        raise FedsimError(f"Hessian product: a vector of shape {tuple(vector.shape)}; accepted: {wanted}")
    return _product(inputs, probabilities, vector, head)


def hessian_gradient_product(features: Tensor, logits: Tensor, labels: Tensor, *, head: Head = "softmax") -> Tensor:
    """HGP: h = H g of the mean loss, (C, m + 1), the bias last; arguments as of :func:`head_gradient`."""
    gradient = head_gradient(features, logits, labels, head=head)
    return hessian_vector_product(features, logits, gradient, head=head)


def hessian_diagonal(
    features: Tensor,
    logits: Tensor,
    labels: Tensor | None = None,
    *,
    head: Head = "softmax",
    hutchinson_samples: int | None = None,
    generator: torch.Generator | None = None,
    seed: Tensor | None = None,
) -> Tensor:
    """diag(H) of the mean loss, (C, m + 1), the bias last: exact, or Hutchinson's estimate mean_j z_j ⊙ (H z_j).

    Args:
        features: (n, m) inputs of the head.
        logits: (n, C) outputs of the head.
        labels: as of :func:`head_gradient`; the Hessian does not depend on them.
        head: what turns logits into probabilities.
        hutchinson_samples: draws of z ∈ {±1}; by default the exact diagonal.
        generator: of the draws, on the features' device.
        seed: a whole number, (); the draws are :func:`signs` of it, in place of a generator's.
    """
    inputs, probabilities, _ = head_terms(features, logits, labels, head)
    if hutchinson_samples is None:
        return (probabilities * (1 - probabilities)).T @ inputs.square() / len(inputs)
    if hutchinson_samples < 1:
        raise FedsimError(f"hutchinson_samples: given {hutchinson_samples}; accepted: 1 and up, or none: exact")
    shape = (probabilities.shape[1], inputs.shape[1])
    each = max(1, CHUNK // (len(inputs) * shape[0]))
    total = torch.zeros(shape, dtype=inputs.dtype, device=inputs.device)
    for start in range(0, hutchinson_samples, each):
        draws = (min(each, hutchinson_samples - start), *shape)
        if seed is None:
            z = torch.randint(0, 2, draws, generator=generator, device=inputs.device).to(inputs.dtype) * 2 - 1
        else:
            z = signs(seed.to(inputs.device), draws, start * shape[0] * shape[1]).to(inputs.dtype)
        total = total + (z * _product(inputs, probabilities, z, head)).sum(0)
    return total / hutchinson_samples


def signs(seed: Tensor, shape: Sequence[int], start: int = 0) -> Tensor:
    """z ∈ {±1}, a function of the seed and of each number's position: the same on every device, and under ``vmap``.

    Args:
        seed: a whole number, ().
        shape: of z.
        start: position of its first number.
    """
    position = torch.arange(start, start + math.prod(shape), device=seed.device)
    bits = _scrambled(_scrambled(seed.long() & _WORD) ^ _scrambled(position & _WORD))
    return ((bits >> 15 & 1) * 2 - 1).reshape(tuple(shape))


def _scrambled(word: Tensor) -> Tensor:
    """32 bits hashed to 32 bits: ``lowbias32`` of C. Wellons' hash-prospector, one to one."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        word = (word ^ word >> shift) * factor & _WORD
    return word ^ word >> 16


@dataclass(frozen=True)
class Statistics:
    """What the penalty compares.

    Args:
        gradients: g_e, (E, C, m + 1).
        hessians: h_e, (E, C, m + 1).
        mean_gradient: ḡ, (C, m + 1), of the mean loss.
        mean_hessian: h̄, (C, m + 1), of the mean loss.
    """

    gradients: Tensor
    hessians: Tensor
    mean_gradient: Tensor
    mean_hessian: Tensor


def hgp_statistics(
    domains: Sequence[Domain], *, weights: Sequence[float] | None = None, head: Head = "softmax"
) -> Statistics:
    """g_e and h_e = H_e g_e; the references ḡ and h̄ = H̄ ḡ.

    Args:
        domains: (features, logits, labels) each.
        weights: w_e of the mean loss; by default all domains count alike.
        head: what turns logits into probabilities.
    """
    shares = _shares(domains, weights)
    gradients = torch.stack([head_gradient(*each, head=head) for each in domains])
    mean = torch.tensordot(shares, gradients, 1)
    products = [hessian_vector_product(x, o, g, head=head) for (x, o, _), g in zip(domains, gradients, strict=True)]
    references = torch.stack([hessian_vector_product(x, o, mean, head=head) for x, o, _ in domains])
    return Statistics(gradients, torch.stack(products), mean, torch.tensordot(shares, references, 1))


def diagonal_statistics(
    domains: Sequence[Domain],
    *,
    weights: Sequence[float] | None = None,
    head: Head = "softmax",
    hutchinson_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Statistics:
    """g_e and h_e = diag(H_e), exact or Hutchinson's estimate; diag(H̄) is the weighted mean of the diagonals.

    Args:
        domains: (features, logits, labels) each.
        weights: w_e of the mean loss; by default all domains count alike.
        head: what turns logits into probabilities.
        hutchinson_samples: draws of z ∈ {±1}; by default the exact diagonal.
        generator: of the draws.
    """
    shares = _shares(domains, weights)
    gradients = torch.stack([head_gradient(*each, head=head) for each in domains])
    diagonals = torch.stack(
        [
            hessian_diagonal(*each, head=head, hutchinson_samples=hutchinson_samples, generator=generator)
            for each in domains
        ]
    )
    means = (torch.tensordot(shares, each, 1) for each in (gradients, diagonals))
    return Statistics(gradients, diagonals, *means)


def alignment_penalty(
    gradient: Tensor, hessian: Tensor, mean_gradient: Tensor, mean_hessian: Tensor, *, alpha: float, beta: float
) -> Tensor:
    """α ‖h − h̄‖² + β ‖g − ḡ‖², summed over all axes: one domain, or a stack of them.

    Args:
        gradient: g_e, (…, C, m + 1).
        hessian: h_e, (…, C, m + 1).
        mean_gradient: ḡ, (C, m + 1).
        mean_hessian: h̄, (C, m + 1).
        alpha: α, weight of the Hessians' distance.
        beta: β, weight of the gradients' distance.
    """
    return alpha * (hessian - mean_hessian).square().sum() + beta * (gradient - mean_gradient).square().sum()


def domainbed_penalty(statistics: Statistics, *, alpha: float = 1e-4, beta: float = 0.005) -> Tensor:
    """DomainBed's form: the mean over domains, towards references that are held fixed.

    Args:
        statistics: of the domains.
        alpha: α; 1e-4 for HGP, 1e-3 for Hutchinson's diagonal (with 300 draws).
        beta: β.
    """
    total = alignment_penalty(
        statistics.gradients,
        statistics.hessians,
        statistics.mean_gradient.detach(),
        statistics.mean_hessian.detach(),
        alpha=alpha,
        beta=beta,
    )
    return total / len(statistics.gradients)


def cmnist_penalty(statistics: Statistics, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """CMNIST's form: the sum over domains; gradients flow through the references as well.

    Args:
        statistics: of the domains.
        alpha: α.
        beta: β.
    """
    means = (statistics.mean_gradient, statistics.mean_hessian)
    return alignment_penalty(statistics.gradients, statistics.hessians, *means, alpha=alpha, beta=beta)


def cmnist_weight(step: int, *, anneal: int = 190, weight: float = 91257.186) -> float:
    """λ of CMNIST's form: 1 before step ``anneal`` (steps count from 0), ``weight`` from there on."""
    return weight if step >= anneal else 1.0


def cmnist_objective(loss: Tensor, penalty: Tensor, weight: float) -> Tensor:
    """(loss + λ·penalty), all of it divided by λ once λ > 1, so that only Adam-like optimizers still move.

    Args:
        loss: mean loss of the domains, with its weight decay (l2 ‖θ‖²).
        penalty: of :func:`cmnist_penalty`.
        weight: λ, of :func:`cmnist_weight`.
    """
    total = loss + weight * penalty
    return total / weight if weight > 1 else total


def _product(inputs: Tensor, probabilities: Tensor, vector: Tensor, head: Head) -> Tensor:
    moved = inputs @ vector.transpose(-1, -2)
    curved = probabilities * moved
    if head == "softmax":
        curved = curved - probabilities * curved.sum(-1, keepdim=True)
    else:
        curved = curved * (1 - probabilities)
    return curved.transpose(-1, -2) @ inputs / len(inputs)


def head_terms(features: Tensor, logits: Tensor, labels: Tensor | None, head: Head) -> tuple[Tensor, Tensor, Tensor]:
    """z̃ (n, m + 1), p (n, C) and the targets (n, C), zeros if there are none; arguments as of :func:`head_gradient`."""
    if head not in ("softmax", "sigmoid"):
        raise FedsimError(f"head: given {head!r}; accepted: softmax, sigmoid")
    outputs = logits[:, None] if head == "sigmoid" and logits.ndim == 1 else logits
    if features.ndim != 2 or outputs.ndim != 2 or len(features) != len(outputs) or not len(features):
        given = f"features {tuple(features.shape)} and logits {tuple(logits.shape)}"
        raise FedsimError(f"head statistics: given {given}; accepted: (n, m) and (n, C), n at least 1")
    if head == "softmax" and outputs.shape[1] < 2:
        raise FedsimError("head statistics: a softmax of one class is constant; accepted: two or more, or sigmoid")
    inputs = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    if head == "softmax":
        probabilities = outputs.softmax(1)
        if labels is None:
            return inputs, probabilities, torch.zeros_like(probabilities)
        if labels.shape != outputs.shape[:1] or labels.is_floating_point():
            given = f"labels {tuple(labels.shape)} of {labels.dtype}"
            raise FedsimError(f"head statistics: given {given}; accepted: ({len(outputs)},) classes")
        return inputs, probabilities, indicator(labels, outputs.shape[1]).to(outputs.dtype)
    probabilities = outputs.sigmoid()
    if labels is None:
        return inputs, probabilities, torch.zeros_like(probabilities)
    if labels.numel() != outputs.numel() or len(labels) != len(outputs):
        accepted = "as many as logits, in their shape"
        raise FedsimError(f"head statistics: given labels {tuple(labels.shape)}; accepted: {accepted}")
    return inputs, probabilities, labels.reshape(outputs.shape).to(outputs.dtype)


def _shares(domains: Sequence[Domain], weights: Sequence[float] | None) -> Tensor:
    if not domains:
        raise FedsimError("head statistics: no domain; accepted: one or more")
    if weights is not None and len(weights) != len(domains):
        raise FedsimError(f"head statistics: {len(weights)} weights for {len(domains)} domains; accepted: one each")
    reference = domains[0][0]
    shares = (
        torch.ones(len(domains), dtype=torch.float64)
        if weights is None
        else torch.as_tensor(weights, dtype=torch.float64)
    )
    return (shares / shares.sum()).to(device=reference.device, dtype=reference.dtype)
