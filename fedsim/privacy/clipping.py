"""Sums of clipped per-example gradients, and of clipped per-example gradient differences.

    Σ_i clip(∇ℓ(x, z_i), C)    and    Σ_i clip(∇ℓ(x, z_i) − ∇ℓ(x', z_i), C),    clip(g, C) = g · min(1, C/|g|)

on any model and any loss that gives one number an example. One example moves a sum by no more than C(1 + 1e-6) when it
comes or goes, 2C when it is replaced. An example whose gradient is not finite adds zero and is counted. Linear layers
take norms from activations and signals (:mod:`fedsim.privacy.ghost`), also where they stand among others
(:mod:`fedsim.privacy.mixed`); of other layers the gradients of a few examples at a time are formed
(:mod:`fedsim.privacy.materialised`). Memory is bounded, whatever the number of examples. The model runs in evaluation
mode; one that lets examples meet (batch normalisation) is refused.

Abadi et al., CCS 2016, 1607.00133 (DP-SGD's sum); Murata and Suzuki, 2023, 2302.03884 (DIFF2's difference).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim.blocks import exact
from fedsim.errors import FedsimError
from fedsim.privacy import ghost, materialised, mixed
from fedsim.privacy.chain import chain, layers_of
from fedsim.privacy.ghost import Loss, ghost_layers
from fedsim.privacy.recorder import Unsuited
from fedsim.privacy.rows import check_clip, clip_factors, clip_rows
from fedsim.updates import Layout

__all__ = ["ClippedSum", "GradientSum", "clip_rows", "clipped_difference_sum", "clipped_gradient_sum", "ghost_layers"]

Point = Mapping[str, Tensor]
Part = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(inputs (B, …), targets (B, …)) -> clipped sum (d,), norms (B,)."""


@dataclass(frozen=True, eq=False)
class ClippedSum:
    """A sum of clipped per-example vectors. All but ``total`` is a diagnostic: it is not covered by any noise.

    Args:
        total: (d,) the sum, in the model's precision, ordered as :class:`fedsim.updates.Layout` has it.
        count: n, examples that were summed over, those that are not finite included.
        clipped: share of the examples that were longer than C.
        nonfinite: examples that added zero because their vector is not finite.
        norms: (n,) float64 norms before the clip.
    """

    total: Tensor
    count: int
    clipped: float
    nonfinite: int
    norms: Tensor


def clipped_gradient_sum(
    module: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, clip: float, *, chunk: int | None = None
) -> ClippedSum:
    """Σ_i clip(∇ℓ(x, z_i), C) at the module's parameters x: a step of DP-SGD or DP-GD before the noise.

    Args:
        module: in float32 or float64; another thread may not use it meanwhile.
        loss: (outputs (B, …), targets (B, …)) -> (B,) losses, each of its own example alone.
        inputs: (n, …).
        targets: (n, …).
        clip: C ≥ 0; inf for no clipping.
        chunk: examples at once, for memory's sake; chosen by the model's size if absent.

    Raises:
        FedsimError: a module, loss or clip that this is not defined for; the text says which.
    """
    layout = _checked(module, inputs, targets)

    def way() -> tuple[Part, int]:
        return _gradient_part(module, layout, loss, clip, inputs, targets)

    return _summed(module, layout, inputs, targets, clip, chunk, way)


class GradientSum:
    """The sums of :func:`clipped_gradient_sum` over many small batches, without its diagnostics.

    What is asked of the model once is not asked again: its parameters may change between batches, in place, nothing
    else may.

    Args:
        module: in evaluation mode; see :func:`clipped_gradient_sum`.
        loss, clip: see there.

    Raises:
        FedsimError: see there.
    """

    def __init__(self, module: nn.Module, loss: Loss, clip: float) -> None:
        check_clip(clip)
        first = next(module.parameters()).detach()
        self.module, self.like = module, first
        self.layout = _checked(module, first[:0], first[:0])
        self.loss, self.clip = loss, clip
        self.way: tuple[Part, int] | None = None

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(d,) sum over a batch of (B, …), B ≥ 0, in the model's precision."""
        if not len(inputs):
            return self.like.new_zeros(self.layout.d)
        if self.way is None:
            self.way = _gradient_part(self.module, self.layout, self.loss, self.clip, inputs, targets)
        x = inputs.to(self.like.dtype) if inputs.is_floating_point() else inputs
        part, size = self.way
        written = x._version
        total = part(x[:size], targets[:size])[0]
        if len(inputs) > size:
            total = exact(total)
            for start in range(size, len(inputs), size):
                total += part(x[start : start + size], targets[start : start + size])[0]
        _untouched(x, written)
        return total.to(self.like)


def _gradient_part(
    module: nn.Module, layout: Layout, loss: Loss, clip: float, inputs: Tensor, targets: Tensor
) -> tuple[Part, int]:
    """The sum over a chunk at the module's parameters, and a chunk's examples."""
    point = {name: value.detach() for name, value in module.named_parameters()}
    if ghost_layers(module, inputs) is not None:
        steps = chain(module)

        def by_norms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            layers = ghost.layers_at(module, point, loss, x, y) if steps is None else layers_of(steps, loss, x, y)
            return ghost.single(layers, layout, clip)

        return by_norms, ghost.chunk_size(inputs, layout)
    rows = materialised.gradient_rows(module, loss, layout)

    def by_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return materialised.clipped(rows(point, x, y), clip)

    both = mixed.signals_and_rows(module, loss, layout, point, inputs, targets)
    if both is None:
        return by_rows, materialised.chunk_size(layout)
    at, size = both

    def by_both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        layers, rest = at(point, x, y)
        return ghost.single(layers, layout, clip, rest)

    return _or_rows(by_both, by_rows, layout), size


def clipped_difference_sum(
    module: nn.Module,
    parameters_now: Tensor,
    parameters_before: Tensor,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    clip: float,
    *,
    chunk: int | None = None,
) -> ClippedSum:
    """Σ_i clip(∇ℓ(x, z_i) − ∇ℓ(x', z_i), C): the difference is clipped, not the gradients.

    Args:
        module: see :func:`clipped_gradient_sum`; its own parameters are neither read nor changed.
        parameters_now: (d,) the point x.
        parameters_before: (d,) the point x'.
        loss, inputs, targets, clip, chunk: see :func:`clipped_gradient_sum`.

    Raises:
        FedsimError: see :func:`clipped_gradient_sum`; or a point is not (d,).
    """
    layout = _checked(module, inputs, targets)
    now, before = (_point(module, layout, vector) for vector in (parameters_now, parameters_before))

    def way() -> tuple[Part, int]:
        return _difference_part(module, layout, now, before, loss, clip, inputs, targets)

    return _summed(module, layout, inputs, targets, clip, chunk, way)


def _difference_part(
    module: nn.Module,
    layout: Layout,
    now: Point,
    before: Point,
    loss: Loss,
    clip: float,
    inputs: Tensor,
    targets: Tensor,
) -> tuple[Part, int]:
    """The sum over a chunk of the differences between two points, and a chunk's examples."""
    if ghost_layers(module, inputs) is not None:

        def by_norms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            new, old = (ghost.layers_at(module, point, loss, x, y) for point in (now, before))
            return ghost.difference(new, old, layout, clip)

        return by_norms, ghost.chunk_size(inputs, layout)
    rows = materialised.gradient_rows(module, loss, layout)

    def by_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return materialised.clipped(rows(now, x, y).sub_(rows(before, x, y)), clip)

    both = mixed.signals_and_rows(module, loss, layout, now, inputs, targets)
    if both is None:
        return by_rows, materialised.chunk_size(layout)
    at, size = both

    def by_both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        (new, rest), (old, earlier) = at(now, x, y), at(before, x, y)
        return ghost.difference(new, old, layout, clip, {name: rest[name].sub_(earlier[name]) for name in rest})

    return _or_rows(by_both, by_rows, layout), size


def _or_rows(by_both: Part, by_rows: Part, layout: Layout) -> Part:
    """By signals and rows; by rows where a layer is called otherwise at these parameters."""
    size = materialised.chunk_size(layout)

    def part(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return by_both(x, y)
        except Unsuited:
            pieces = [by_rows(*piece) for piece in zip(torch.split(x, size), torch.split(y, size), strict=True)]
        totals, norms = zip(*pieces, strict=True)
        return torch.stack(totals).sum(0), torch.cat(norms)

    return part


def _summed(
    module: nn.Module, layout: Layout, inputs: Tensor, targets: Tensor, clip: float, chunk: int | None,
    way: Callable[[], tuple[Part, int]],
) -> ClippedSum:  # fmt: skip
    check_clip(clip)
    if chunk is not None and chunk < 1:
        raise FedsimError(f"chunk: given {chunk}; accepted: 1 or more examples")
    first = next(module.parameters()).detach()
    total = exact(first.new_zeros(layout.d))
    norms = exact(first.new_zeros(len(inputs)))
    if not len(inputs):
        return ClippedSum(total.to(dtype=first.dtype, device=first.device), 0, 0.0, 0, norms)
    with _evaluating(module):
        part, fitting = way()
        size = chunk or fitting
        # Nothing that stays is allocated between chunks: it would keep the heap from reusing their memory.
        for start in range(0, len(inputs), size):
            x, y = inputs[start : start + size], targets[start : start + size]
            x = x.to(first.dtype) if x.is_floating_point() else x
            written = x._version
            part_total, part_norms = part(x, y)
            _untouched(x, written)
            norms[start : start + size] = part_norms
            total += part_total
    _, ignored = clip_factors(norms, clip, first.dtype)
    nonfinite = int(ignored.sum())
    clipped = int((~ignored & (norms > clip)).sum())
    return ClippedSum(
        total.to(dtype=first.dtype, device=first.device), len(inputs), clipped / len(inputs), nonfinite, norms
    )


def _untouched(inputs: Tensor, version: int) -> None:
    if inputs._version != version:
        raise FedsimError(
            "model: given one that writes over its inputs, which are needed again; accepted: one whose first layer is "
            "not in place"
        )


def _checked(module: nn.Module, inputs: Tensor, targets: Tensor) -> Layout:
    mixing = next((name for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)), None)
    if mixing is not None:
        raise FedsimError(
            f"model: given batch normalisation ('{mixing}'), whose statistics are of other examples; accepted: layers "
            "that keep examples apart, such as GroupNorm or LayerNorm"
        )
    kinds = {value.dtype for value in module.parameters()}
    if len(kinds) != 1 or not kinds <= {torch.float32, torch.float64}:
        raise FedsimError(f"model: given parameters in {kinds or 'no precision'}; accepted: all float32 or all float64")
    hooked = [name for name, value in module.named_parameters() if value._backward_hooks]
    if hooked:
        raise FedsimError(
            f"model: given a hook on the gradient of '{hooked[0]}', which no clip would see; accepted: no such hooks"
        )
    if not any(value.requires_grad for value in module.parameters()):
        raise FedsimError("model: given frozen parameters alone; accepted: at least one that requires_grad")
    if len(inputs) != len(targets):
        raise FedsimError(f"targets: given {len(targets)}; accepted: one for each of {len(inputs)} inputs")
    return Layout.of(module)


def _point(module: nn.Module, layout: Layout, vector: Tensor) -> Point:
    if vector.shape != (layout.d,):
        raise FedsimError(f"parameters: given shape {tuple(vector.shape)}; accepted: ({layout.d},)")
    first = next(module.parameters())
    return layout.views(vector.detach().to(dtype=first.dtype, device=first.device))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode; afterwards each of its parts is in its own mode again."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
