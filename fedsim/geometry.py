"""Angles and norms of models that hardly differ, from their updates: w_i = reference + u_i.

1 − cos(w_i, w_j) is about |u|²/|w|²: 1e-14 for updates of norm 1e-6 around weights of norm 10, below what float64
resolves of a cosine. So no weights are formed. With m the mean of the w_i, e_i = w_i − m, α_i = ⟨e_i, m⟩/|m|² and
t_i = (e_i − α_i m)/(1 + α_i), the part of w_i across m, w_i points along m + t_i, or against it where 1 + α_i < 0, and

    1 − cos(m + t_i, m + t_j) = (|t_i − t_j|² − (a_i − a_j)²) / (2 a_i a_j),   a_i = |m + t_i| = sqrt(|m|² + |t_i|²),
    a_i − a_j = (|t_i|² − |t_j|²)/(a_i + a_j),   |w_i|² − |w_j|² = 2⟨m, e_i − e_j⟩ + |e_i|² − |e_j|².

Nothing in these cancels but |t_i − t_j|² between rows that nearly agree, which is then summed from differences, and
|w_i| where an update all but undoes the model, which is then summed from weights. All sums are float64, in one pass
over blocks of columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.blocks import CANCELLED, exact, exact_rows, squared_distances, sum_blocks

ACROSS = 1e-6
"""Weights whose squared cosine to the mean is below this have no useful t; their angles are wide and need none."""

TINY = 1e-300


@dataclass(frozen=True)
class Geometry:
    """How models lie to each other.

    Args:
        one_minus_cosine: (n, n) float64, 1 for a model of norm 0.
        norm_differences: (n, n) float64, |w_i| − |w_j|.
    """

    one_minus_cosine: Tensor
    norm_differences: Tensor


def geometry(values: Tensor, reference: Tensor, *, with_reference: bool = False) -> Geometry:
    """The geometry of the models reference + values.

    Args:
        values: (n, d) updates.
        reference: (d,).
        with_reference: the reference itself is one more model, the last.
    """
    d = len(reference)
    n = len(values) + with_reference
    parallel = values.device.type == "cpu"

    def offsets(columns: slice) -> Tensor:
        """The rows e_1 … e_n, m of a block."""
        piece = exact_rows(values, columns, extra=n + 1 - len(values))
        piece[len(values) :] = 0.0
        center = piece[:n].mean(dim=0)
        piece[:n] -= center
        piece[n] = exact(reference[columns]) + center
        return piece

    def block(columns: slice) -> Tensor:
        piece = offsets(columns)
        return piece @ piece.T

    total = sum_blocks(block, n + 1, d, parallel=parallel)
    products = torch.zeros(n + 1, n + 1, dtype=torch.float64) if total is None else total.cpu()
    e2, along, m2 = products[:n, :n], products[:n, n], products[n, n]
    squares = e2.diagonal()
    dots = m2 + along[:, None] + along[None, :] + e2
    small = dots.diagonal() < CANCELLED * (m2 + squares)
    if bool(small.any()):
        _replace_dots(dots, small.nonzero().flatten(), offsets, d, parallel)
    norm2 = dots.diagonal().clamp(min=0)
    norms = norm2.sqrt()

    either = small[:, None] | small[None, :]
    difference = 2 * (along[:, None] - along[None, :]) + squares[:, None] - squares[None, :]
    sums = (norms[:, None] + norms[None, :]).clamp(min=TINY)
    norm_differences = torch.where(either, norms[:, None] - norms[None, :], difference / sums)

    directed = (norm2[:, None] > 0) & (norm2[None, :] > 0)
    angles = torch.where(directed, 1 - dots / (norms[:, None] * norms[None, :]).clamp(min=TINY), 1.0)
    stretch = 1 + along / m2.clamp(min=TINY)
    index = ((norm2 > 0) & (m2 > 0) & (stretch.square() * m2 >= ACROSS * norm2)).nonzero().flatten()
    if len(index):
        s, q = stretch[index], along[index]

        k = len(index)

        def across(rows: Tensor, columns: slice) -> Tensor:
            """t of these rows; row k is zero."""
            piece = offsets(columns)
            some = rows[rows < k]
            alpha = (q[some] / m2).to(piece.device)[:, None]
            t = piece.new_zeros(len(rows), piece.shape[1])
            t[(rows < k).to(t.device)] = (piece[index[some].to(t.device)] - alpha * piece[n]) / (1 + alpha)
            return t

        inner = torch.zeros(k + 1, k + 1, dtype=torch.float64)
        inner[:k, :k] = (e2[index[:, None], index] - q[:, None] * q[None, :] / m2) / (s[:, None] * s[None, :])
        scale = torch.cat([(squares[index] + q.square() / m2) / s.square(), torch.zeros(1, dtype=torch.float64)])
        distances = squared_distances(inner, across, d, scale=scale, parallel=parallel)
        distances, t2 = distances[:k, :k], distances[:k, k]
        a = (m2 + t2).sqrt()
        radial = (t2[:, None] - t2[None, :]) / (a[:, None] + a[None, :])
        narrow = ((distances - radial.square()) / (2 * a[:, None] * a[None, :])).clamp(0, 2)
        angles[index[:, None], index] = torch.where(s[:, None] * s[None, :] > 0, narrow, 2 - narrow)
    angles.fill_diagonal_(0)
    return Geometry(angles.clamp(0, 2), norm_differences)


def _replace_dots(dots: Tensor, small: Tensor, offsets: Callable[[slice], Tensor], d: int, parallel: bool) -> None:
    """Inner products ⟨w_i, w_j⟩ of the models i that are much shorter than what they are the sum of."""

    def block(columns: slice) -> Tensor:
        piece = offsets(columns)
        models = piece[:-1]
        models += piece[-1].clone()
        return models[small.to(models.device)] @ models.T

    total = sum_blocks(block, len(dots) + 1, d, parallel=parallel)
    if total is not None:
        dots[small], dots[:, small] = total.cpu(), total.cpu().T
