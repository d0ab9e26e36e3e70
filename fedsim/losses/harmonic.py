"""Harmonic loss: a class's probability falls with a power of the distance to its prototype.

    p_i ∝ d_i^{−n},  d_i = dist(w_i, x):    logits_i = −n · log(d_i + ε), then cross-entropy;

no bias, n ≈ √D by default. Only logarithms are taken: the power itself gives NaN at x = w_i.

The exponent belongs to the distance. The paper's formula has d^{−n}, its code (d²)^{−n}: ``squared_euclidean`` with n
is ``euclidean`` with 2n. Published vision heads feed −d^{−n} to cross-entropy, which is another loss:
:func:`negative_power_logits`, kept for comparison.

Distances, with u = x − w:

    euclidean           √Σ u²                       minkowski       (Σ |u|^p)^{1/p}
    squared_euclidean   Σ u²                        chebyshev       max |u|
    manhattan           Σ |u|                       canberra        Σ |u| / (|x| + |w|), 0/0 = 0
    cosine              1 − cos(x, w)               bray_curtis     Σ |u| / Σ (|x| + |w|)
    mahalanobis         √(uᵀ L Lᵀ u), L learnt      hamming         mean 1 − exp(−(u/τ)²)

Bray–Curtis as written keeps to [0, 1] for signed data (scipy divides by Σ |x + w|, which is the same for non-negative
data); the soft Hamming distance is the share of differing coordinates as τ → 0.

In a federation the rows of the weight are prototypes, and a client only pushes away those of classes that it does not
hold: :func:`mask_absent` leaves them out of its loss, :func:`prototype_average` weighs every row by class counts.

Baek, Liu, Tyagi & Tegmark, "Harmonic loss trains interpretable AI models", 2025, arXiv 2502.01628; non-Euclidean
distances: Miller-Golub et al., 2026, arXiv 2603.10225.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fedsim.errors import FedsimError, nearest

Distance = Literal[
    "euclidean",
    "squared_euclidean",
    "manhattan",
    "minkowski",
    "chebyshev",
    "cosine",
    "canberra",
    "bray_curtis",
    "mahalanobis",
    "hamming",
]

BROADCAST = 2**21
"""Numbers that one broadcast (B, C, D) may hold; more are taken in chunks of rows, recomputed on the way back."""


class HarmonicHead(nn.Module):
    """The last layer of a classifier: x (…, in_features) → logits (…, out_features).

    Args:
        in_features: D.
        out_features: classes C.
        exponent: n; by default √D.
        distance: a name of the table above.
        eps: ε inside the logarithm.
        p: order of the Minkowski distance, at least 1.
        temperature: τ of the soft Hamming distance.

    Attributes:
        weight: (C, D), the prototypes.
        factor: L, (D, D), of the Mahalanobis distance; the identity at the start, None for the other distances.
    """

    factor: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        exponent: float | None = None,
        distance: Distance = "euclidean",
        eps: float = 1e-8,
        *,
        p: float = 3.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise FedsimError(f"harmonic head: given {in_features} → {out_features}; accepted: 1 and up")
        exponent = math.sqrt(in_features) if exponent is None else exponent
        if not (exponent > 0 and eps > 0 and p >= 1 and temperature > 0):
            given = f"exponent {exponent}, eps {eps}, p {p}, temperature {temperature}"
            raise FedsimError(f"harmonic head: given {given}; accepted: all above 0, p from 1 on")
        _known(distance)
        self.in_features, self.out_features = in_features, out_features
        self.exponent, self.distance, self.eps = float(exponent), distance, eps
        self.p, self.temperature = p, temperature
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.factor = nn.Parameter(torch.eye(in_features)) if distance == "mahalanobis" else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def distances(self, x: Tensor) -> Tensor:
        """x (…, D) → (…, C), not negative."""
        rows = x.reshape(-1, self.in_features)
        options = {"p": self.p, "temperature": self.temperature, "factor": self.factor}
        return distances(rows, self.weight, self.distance, **options).reshape(*x.shape[:-1], self.out_features)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return harmonic_logits(self.distances(x), self.exponent, self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, exponent={self.exponent:g}, distance={self.distance}"


def harmonic_logits(distance: Tensor, exponent: float, eps: float = 1e-8) -> Tensor:
    """−n · log(d + ε), elementwise."""
    return -exponent * (distance + eps).log()


def negative_power_logits(distance: Tensor, exponent: float, eps: float = 1e-8) -> Tensor:
    """−(d + ε)^{−n}, which published vision heads feed to cross-entropy.

    It is not the harmonic loss: the nearest class gets the LOWEST logit, so that training pushes prototypes away.
    """
    return -((distance + eps) ** -exponent)


def distances(
    x: Tensor,
    weight: Tensor,
    distance: Distance = "euclidean",
    *,
    p: float = 3.0,
    temperature: float = 1.0,
    factor: Tensor | None = None,
) -> Tensor:
    """All distances between rows and prototypes: x (…, B, D), weight (…, C, D) → (…, B, C).

    Leading axes (the clients of a chunk) are the same in both. The gradient is 0 where a row meets a prototype.

    Args:
        x: rows; of float16 ones the distances are float32.
        weight: prototypes.
        distance: a name of the module's table.
        p: order of the Minkowski distance.
        temperature: τ of the soft Hamming distance.
        factor: L, (…, D, D), of the Mahalanobis distance; the identity by default.
    """
    _known(distance)
    if x.dtype == torch.float16:  # 1e-8 and its inverse are beyond it
        full = {"p": p, "temperature": temperature, "factor": None if factor is None else factor.float()}
        return distances(x.float(), weight.float(), distance, **full)  # type: ignore[arg-type]
    if x.shape[-1] != weight.shape[-1] or x.shape[:-2] != weight.shape[:-2]:
        given = f"rows {tuple(x.shape)} and prototypes {tuple(weight.shape)}"
        raise FedsimError(f"harmonic distances: given {given}; accepted: (…, B, D) and (…, C, D)")
    if distance == "cosine":
        return _cosine(x, weight)
    if distance == "mahalanobis":
        if factor is not None:
            x, weight = x @ factor, weight @ factor
        return _root(_squared(x, weight))
    if distance == "euclidean":
        return _root(_squared(x, weight))
    if distance == "squared_euclidean":
        return _squared(x, weight)
    if distance == "bray_curtis":
        sizes = x.abs().sum(-1)[..., :, None] + weight.abs().sum(-1)[..., None, :]
        return _ratio(_chunked(_manhattan, x, weight), sizes)
    pairwise: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "manhattan": _manhattan,
        "minkowski": lambda a, b: _minkowski(a, b, p),
        "chebyshev": lambda a, b: (a - b).abs().amax(-1),
        "canberra": lambda a, b: _ratio((a - b).abs(), a.abs() + b.abs()).sum(-1),
        "hamming": lambda a, b: -torch.expm1(-((a - b) / temperature).square()).mean(-1),
    }
    return _chunked(pairwise[distance], x, weight)


def present_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Which classes occur among the labels, (C,) bool."""
    return class_counts(labels, num_classes) > 0


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """How often each class occurs, (C,) int64."""
    return torch.bincount(labels.reshape(-1), minlength=num_classes)


def mask_absent(logits: Tensor, present: Tensor) -> Tensor:
    """Logits in which absent classes have no probability and get no gradient.

    Args:
        logits: (…, C).
        present: (C,) bool, or one that broadcasts to the logits.
    """
    return logits.masked_fill(~present, torch.finfo(logits.dtype).min)


def prototype_average(weights: Tensor, counts: Tensor, previous: Tensor) -> Tensor:
    """The clients' prototypes averaged row by row, each row weighted by the examples of its class.

    Args:
        weights: (K, C, D) prototypes of K clients.
        counts: (K, C) examples of each class on each client.
        previous: (C, D), what a class keeps that no client holds.
    """
    totals = counts.sum(0)
    shares = counts.to(weights.dtype) / totals.clamp(min=1).to(weights.dtype)
    return torch.where(totals[:, None] > 0, (shares[..., None] * weights).sum(0), previous)


def _known(distance: str) -> None:
    known = get_args(Distance)
    if distance not in known:
        raise FedsimError(f"distance: given {distance!r}; accepted: {', '.join(known)}{nearest(distance, known)}")


def _squared(x: Tensor, weight: Tensor) -> Tensor:
    """Σ (x − w)²: from the differences while they are few, else by a product of matrices about the prototypes' mean."""
    if x.shape[-2] * weight.shape[-2] * x.shape[-1] <= BROADCAST:
        return _chunked(lambda a, b: (a - b).square().sum(-1), x, weight)
    middle = weight.mean(-2, keepdim=True).detach()
    x, weight = x - middle, weight - middle
    sizes = x.square().sum(-1)[..., :, None] + weight.square().sum(-1)[..., None, :]
    return (sizes - 2 * (x @ weight.transpose(-1, -2))).clamp(min=0)


def _cosine(x: Tensor, weight: Tensor) -> Tensor:
    """Rounding may bring 1 − cos below 0, of which no logarithm can be taken."""
    return (1 - functional.normalize(x, dim=-1) @ functional.normalize(weight, dim=-1).transpose(-1, -2)).clamp(min=0)


def _manhattan(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().sum(-1)


def _minkowski(a: Tensor, b: Tensor, p: float) -> Tensor:
    """The largest difference is taken out of the power: neither overflow nor underflow for any p."""
    differences = (a - b).abs()
    largest = differences.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(a.dtype).tiny)
    total = (differences / largest).pow(p).sum(-1)
    return largest.squeeze(-1) * torch.where(total > 0, total.clamp(min=0.5).pow(1 / p), 0.0)


def _root(squares: Tensor) -> Tensor:
    """√, with gradient 0 at 0."""
    met = squares == 0
    return torch.where(met, 0.0, torch.where(met, 1.0, squares).sqrt())


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """top / bottom, 0 (and gradient 0) where both are 0."""
    empty = bottom == 0
    return torch.where(empty, 0.0, top / torch.where(empty, 1.0, bottom))


def _chunked(pairwise: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """``pairwise`` on the broadcast of x (…, B, 1, D) against weight (…, 1, C, D), in chunks of rows if it is large."""
    each = max(1, BROADCAST // max(weight.numel(), 1))
    if x.shape[-2] <= each:
        return pairwise(x.unsqueeze(-2), weight.unsqueeze(-3))

    def rows(part: Tensor, prototypes: Tensor) -> Tensor:
        return pairwise(part.unsqueeze(-2), prototypes.unsqueeze(-3))

    parts = [checkpoint(rows, part, weight, use_reentrant=False) for part in torch.split(x, each, dim=-2)]
    return torch.cat(parts, dim=-2)
