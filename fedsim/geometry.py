"""Angles and norms of models that hardly differ, from their updates: w_i = reference + u_i.

1 − cos(w_i, w_j) is about |u|²/|w|²: 1e-14 for updates of norm 1e-6 around weights of norm 10, below what float64
resolves of a cosine. So no weights are formed. With m the mean of the w_i, e_i = w_i − m, α_i = ⟨e_i, m⟩/|m|² and
t_i = (e_i − α_i m)/(1 + α_i), the part of w_i across m, w_i points along m + t_i, or against it where 1 + α_i < 0, and

    1 − cos(m + t_i, m + t_j) = (|t_i − t_j|² − (a_i − a_j)²) / (2 a_i a_j),   a_i = |m + t_i| = sqrt(|m|² + |t_i|²),
    a_i − a_j = (|t_i|² − |t_j|²)/(a_i + a_j),   |w_i|² − |w_j|² = 2⟨m, e_i − e_j⟩ + |e_i|² − |e_j|².

Nothing in these cancels but |t_i − t_j|² between rows that nearly agree, which is then summed from differences. All
sums are float64, in one pass over blocks of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.blocks import exact, exact_rows, squared_distances, sum_blocks

ACROSS = 1e-6
"""Weights whose squared cosine to the mean is below this have no useful t; their angles are wide and need none."""


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
    norm2 = (m2 + 2 * along + squares).clamp(min=0)
    norms = norm2.sqrt()
    sums = norms[:, None] + norms[None, :]
    difference = 2 * (along[:, None] - along[None, :]) + squares[:, None] - squares[None, :]
    norm_differences = torch.where(sums > 0, difference / sums.clamp(min=1e-300), 0.0)

    stretch = 1 + along / m2.clamp(min=1e-300)
    usable = (m2 > 0) & (stretch.square() * m2 >= ACROSS * norm2) & (norm2 > 0)
    wide = 1 - (m2 + along[:, None] + along[None, :] + e2) / (norms[:, None] * norms[None, :]).clamp(min=1e-300)
    wide = torch.where((norm2[:, None] > 0) & (norm2[None, :] > 0), wide, 1.0)
    index = usable.nonzero().flatten()
    if len(index):
        s, q = stretch[index], along[index]

        def across(rows: Tensor, columns: slice) -> Tensor:
            piece = offsets(columns)
            a = (q[rows] / m2).to(piece.device)
            return (piece[index[rows].to(piece.device)] - a[:, None] * piece[n]) / (1 + a)[:, None]

        gram = (e2[index[:, None], index] - q[:, None] * q[None, :] / m2) / (s[:, None] * s[None, :])
        scale = (squares[index] + q.square() / m2) / s.square()
        distances = squared_distances(gram, across, d, scale=scale, parallel=parallel)
        t2 = gram.diagonal().clamp(min=0)
        a = (m2 + t2).sqrt()
        radial = (t2[:, None] - t2[None, :]) / (a[:, None] + a[None, :])
        narrow = ((distances - radial.square()) / (2 * a[:, None] * a[None, :])).clamp(0, 2)
        narrow = torch.where(s[:, None] * s[None, :] > 0, narrow, 2 - narrow)
        wide[index[:, None], index] = narrow
    wide.fill_diagonal_(0)
    return Geometry(wide.clamp(0, 2), norm_differences)
