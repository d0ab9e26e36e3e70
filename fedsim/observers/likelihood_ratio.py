"""LiRA's arithmetic: confidences on a logit scale, likelihood ratios of Gaussians, and what they tell apart.

For an example (x, y) and a model f with the softmax f(x), the confidence is φ = log(f(x)_y / (1 − f(x)_y)). Shadow
models that were trained with the example give N(μ_in, σ²_in), those without it N(μ_out, σ²_out); with the attacked
model's φ:

    online:   Λ = log p(φ | N(μ_in, σ²_in)) − log p(φ | N(μ_out, σ²_out))
    offline:  Λ = (φ − μ_out)/σ_out, which orders as Pr[N(μ_out, σ²_out) < φ] does

With few shadow models the variances are those of all examples together. An (ε, δ)-private algorithm keeps every such
test below TPR ≤ e^ε·FPR + δ and, read for the complements, TPR ≤ 1 − e^−ε·(1 − δ − FPR).

Carlini, Chien, Nasr, Song, Terzis & Tramèr, "Membership Inference Attacks From First Principles", IEEE S&P 2022,
arXiv:2112.03570; the bound: Kairouz, Oh & Viswanath, "The Composition Theorem for Differential Privacy", ICML 2015.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.analysis.statistics import wilson
from fedsim.errors import FedsimError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SMALLEST = 1e-6
"""Standard deviation at the least: shadow models that all agree say no more than that."""


class Operating(NamedTuple):
    """What a test finds at a false positive rate.

    Args:
        asked: the false positive rate that is not to be exceeded.
        fpr, fpr_high: the one that is reached, and the upper end of its Wilson interval.
        tpr, tpr_low, tpr_high: the true positive rate with its Wilson interval.
    """

    asked: float
    fpr: float
    fpr_high: float
    tpr: float
    tpr_low: float
    tpr_high: float


def confidences(logits: Floats, labels: NDArray[np.int64]) -> Floats:
    """(n,) φ from (n, C) logits: z_y − log Σ_{c ≠ y} exp(z_c), exact also where the softmax rounds to 1."""
    from scipy.special import logsumexp

    own = np.take_along_axis(logits, labels[:, None], 1)[:, 0]
    others = logits.copy()
    np.put_along_axis(others, labels[:, None], -np.inf, 1)
    return np.asarray(own - logsumexp(others, axis=1), dtype=np.float64)


def likelihood_ratios(
    target: Floats,
    shadows: Floats,
    inside: Flags,
    mode: Literal["online", "offline"] = "online",
    pooled: bool = True,
) -> Floats:
    """(n,) Λ, high where an example looks like a member.

    Args:
        target: (n,) confidences of the attacked model.
        shadows: (k, n) those of the shadow models.
        inside: (k, n) which example each shadow model was trained on.
        mode: with the shadow models that saw an example, or without them.
        pooled: one variance for all examples, instead of each example's own.

    Raises:
        FedsimError: an example with fewer than two shadow models on a side that is needed.
    """
    out = _gaussians(shadows, ~inside, pooled)
    if mode == "offline":
        return (target - out[0]) / out[1]
    mean, deviation = _gaussians(shadows, inside, pooled)
    return _log_density(target, mean, deviation) - _log_density(target, *out)


def operating_point(scores: Floats, members: Flags, asked: float) -> Operating:
    """The most members found at a false positive rate of at most ``asked``.

    Args:
        scores: (n,) high where an example looks like a member.
        members: (n,) the truth.
        asked: largest share of the others that may be taken for members.
    """
    inner, outer = scores[members], np.sort(scores[~members])[::-1]
    if not len(inner) or not len(outer):
        raise FedsimError("operating_point: given members or others alone; accepted: some of both")
    allowed = int(asked * len(outer) + 1e-9)
    threshold = outer[allowed] if allowed < len(outer) else -math.inf
    hits, wrong = int((inner > threshold).sum()), int((outer > threshold).sum())
    low, high = wilson(hits, len(inner))
    return Operating(asked, wrong / len(outer), wilson(wrong, len(outer))[1], hits / len(inner), low, high)


def curve(scores: Floats, members: Flags) -> tuple[Floats, Floats]:
    """(false positive rates, true positive rates) at every threshold, ascending; ties are taken together."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits, wrong = np.cumsum(members[order])[ends], np.cumsum(~members[order])[ends]
    return (
        np.concatenate([[0.0], wrong / max(1, int((~members).sum()))]),
        np.concatenate([[0.0], hits / max(1, int(members.sum()))]),
    )


def bound(fpr: float, epsilon: float, delta: float) -> float:
    """The largest true positive rate that (ε, δ)-privacy allows at a false positive rate."""
    first = math.exp(min(epsilon, 700.0)) * fpr + delta
    second = 1 - math.exp(-epsilon) * (1 - delta - fpr)
    return min(1.0, first, max(second, fpr))


def _gaussians(shadows: Floats, which: Flags, pooled: bool) -> tuple[Floats, Floats]:
    """(n,) means and standard deviations over the shadow models that are meant."""
    counts = which.sum(0)
    if (counts < 2).any():
        raise FedsimError("likelihood_ratios: given an example with fewer than 2 shadow models; accepted: 2 or more")
    means = np.where(which, shadows, 0.0).sum(0) / counts
    squares = np.where(which, (shadows - means) ** 2, 0.0)
    if pooled:
        variances = np.full(len(means), squares.sum() / (counts.sum() - len(means)))
    else:
        variances = squares.sum(0) / (counts - 1)
    return means, np.sqrt(variances).clip(min=SMALLEST)


def _log_density(values: Floats, mean: Floats, deviation: Floats) -> Floats:
    return -0.5 * ((values - mean) / deviation) ** 2 - np.log(deviation) - 0.5 * math.log(2 * math.pi)
