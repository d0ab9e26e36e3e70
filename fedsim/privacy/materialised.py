"""Clipped sums of per-example gradients of any model, each gradient formed: by ``vmap``, a few examples at a time.

Only models whose examples do not meet qualify; every example is computed as a batch of its own, so that they cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from fedsim.blocks import exact
from fedsim.errors import FedsimError, one_line
from fedsim.functional import functional_call
from fedsim.privacy.ghost import Loss, check_losses
from fedsim.privacy.rows import block_rows, clip_factors, row_norms, scaled
from fedsim.updates import Layout

CHUNK = 256
CHUNK_NUMBERS = 1 << 22
"""Numbers of a chunk's gradients at one point."""

Rows = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]


def chunk_size(layout: Layout) -> int:
    """Examples at once."""
    return max(1, min(CHUNK, CHUNK_NUMBERS // max(layout.d, 1)))


def gradient_rows(module: nn.Module, loss: Loss, layout: Layout) -> Rows:
    """A function (parameters, inputs, targets) -> (B, d) gradients of each example's loss; frozen parameters' are 0.

    A module with a method of this name says itself what they are, as the audit's does (:mod:`fedsim.canary`).
    """
    own: Rows | None = getattr(module, "gradient_rows", None)
    if own is not None:
        return own
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    buffers = dict(module.named_buffers())

    def of_one(own: dict[str, Tensor], other: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(module, ({**own, **other}, buffers), (x.unsqueeze(0),))
        losses = loss(outputs, y.unsqueeze(0))
        check_losses(losses, 1)
        return losses.sum()

    gradients = vmap(grad(of_one), in_dims=(None, None, 0, 0))

    def rows(parameters: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        own = {name: value for name, value in parameters.items() if name in trained}
        other = {name: value for name, value in parameters.items() if name not in trained}
        try:
            found = gradients(own, other, inputs, targets)
        except (RuntimeError, IndexError, NotImplementedError) as error:
            raise FedsimError(
                "model: given one whose examples' gradients torch.func.vmap does not form "
                f"({one_line(error)}); accepted: layers that it takes one example at a time"
            ) from error
        result = torch.zeros(len(inputs), layout.d, dtype=next(iter(own.values())).dtype, device=inputs.device)
        for name, view in layout.views(result).items():
            if name in found:
                view.copy_(found[name])
        return result

    return rows


def clipped(rows: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Sum (d,) float64 of the clipped rows, and their norms (B,) float64."""
    norms = row_norms(rows)
    factors, ignored = clip_factors(norms, clip, rows.dtype)
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=norms.device)
    size = block_rows(rows.shape[1])
    for block in zip(torch.split(rows, size), torch.split(factors, size), torch.split(ignored, size), strict=True):
        total += exact(scaled(*block)).sum(0)
    return total, norms
