"""Clipped sums of per-example gradients of linear layers, from norms, without the gradients.

A linear layer's gradient of one example is the outer product b ⊗ a of the signal b that comes back to its outputs and
the input a (with a 1 appended where there is a bias): |b ⊗ a|² = |b|²|a|². Between two points,

    |b' ⊗ a' − b ⊗ a|² = |Δb|²|a'|² + |b|²|Δa|² + 2⟨Δb, b⟩⟨a', Δa⟩,

summed over all layers. With w_i = min(1, C/|·|_i) the clipped sum is (wΔb)ᵀa' + (wb)ᵀΔa: two products of matrices.

Inner products are in float64. The three terms can cancel: in float32 the products then round by a share of the terms,
not of the difference. Examples whose sum is a small share of its terms are formed in float64 and clipped as rows.

Where other layers stand beside the linear ones (:mod:`fedsim.privacy.mixed`), the rows of their parameters come along:
an example's norm is that of both, and both are weighted alike.

Goodfellow, "Efficient Per-Example Gradient Computations", 2015, 1510.01799; the difference is DIFF2's, Murata and
Suzuki, 2023, 2302.03884.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.blocks import exact
from fedsim.errors import FedsimError
from fedsim.privacy.recorder import Call, Recorder, Unsuited
from fedsim.privacy.rows import clip_factors, row_norms, scaled
from fedsim.updates import Layout

Loss = Callable[[Tensor, Tensor], Tensor]
Rest = Mapping[str, Tensor]
"""Of each parameter that no linear layer of these has: (B, its numbers) gradients, or differences of them."""

CHUNK = 1024
"""Examples at once."""

CHUNK_NUMBERS = 1 << 22
"""Numbers of a chunk's activations and signals."""

SMALL_NUMBERS = 1 << 15
"""Numbers whose float64 copies cost little."""

IN_RANGE = (1e-30, 1e38)
"""Sums of float32 squares between which none of them that counts was rounded to nothing, and none to infinity."""

CANCELLED = {torch.float32: 0.25, torch.float64: 1e-6}
"""A squared norm below this share of its terms is computed from the example's gradient itself.

In float32 the product rounds by at most 2.4e-7 · √2 of the terms: with half of them left, by less than 1e-6 of C.
"""


@dataclass
class Layer:
    """A linear layer on one batch, at one point.

    Args:
        weight: name of its weight.
        bias: name of its bias, None without.
        inputs: (B, in).
        signal: (B, out) gradient of the examples' losses by the outputs.
        fixed: the inputs depend on no parameter.
    """

    weight: str
    bias: str | None
    inputs: Tensor
    signal: Tensor
    fixed: bool = False

    @classmethod
    def of(cls, call: Call, signal: Tensor) -> Layer:
        """What a recorded call and its signal make."""
        return cls(call.weight, call.bias, call.inputs, signal, call.fixed)


def ghost_layers(module: nn.Module, inputs: Tensor) -> tuple[str, ...] | None:
    """Names of the weights of the linear layers if norms suffice for this model, else None.

    They do if every parameter is trained and used in at most one linear layer, which is called once, on
    (batch, features), and all else keeps examples apart: activations, flattening, dropout in evaluation mode,
    arithmetic with constants, sums of equal shapes.

    Args:
        module: in evaluation mode.
        inputs: (n, …), of which two are tried.
    """
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    if not all(value.requires_grad for value in module.parameters()):
        return None
    try:
        two = inputs[:2].to(next(iter(parameters.values())).dtype, copy=True)
        recorder = Recorder(module, parameters, two)
        outputs = recorder.run()
    except Unsuited:
        return None
    # The layers ran on copies: a parameter that the outputs depend on is used by what no function call shows.
    if any(reaches(outputs, list(module.parameters()))):
        return None
    return tuple(call.weight for call in recorder.calls) or None


def reaches(outputs: Tensor, parameters: Sequence[Tensor]) -> list[bool]:
    """For each parameter whether the outputs depend on it."""
    if not outputs.requires_grad or not parameters:
        return [False] * len(parameters)
    return [each is not None for each in torch.autograd.grad(outputs.sum(), parameters, allow_unused=True)]


def chunk_size(inputs: Tensor, layout: Layout) -> int:
    """Examples at once."""
    widths = inputs[0].numel() + sum(sum(shape) for _, shape in layout.parameters)
    return max(1, min(CHUNK, CHUNK_NUMBERS // max(widths, 1)))


def layers_at(
    module: nn.Module, parameters: Mapping[str, Tensor], loss: Loss, inputs: Tensor, targets: Tensor
) -> list[Layer]:
    """One forward and one backward pass that stops at the layers' outputs."""
    recorder = Recorder(module, parameters, inputs)
    outputs = recorder.run()
    with torch.enable_grad():
        losses = loss(outputs, targets)
        check_losses(losses, len(inputs))
        ends = [call.outputs for call in recorder.calls]
        if not losses.requires_grad:
            signals: Sequence[Tensor] = [torch.zeros_like(end) for end in ends]
        else:
            signals = torch.autograd.grad(losses.sum(), ends, allow_unused=True, materialize_grads=True)
    return [Layer.of(call, signal) for call, signal in zip(recorder.calls, signals, strict=True)]


def check_losses(losses: Tensor, count: int) -> None:
    """Raise unless there is one loss for each example."""
    if losses.shape != (count,):
        raise FedsimError(
            f"loss: given a function with values of shape {tuple(losses.shape)} on {count} examples; accepted: one "
            "loss for each example (reduction='none')"
        )


def single(layers: Sequence[Layer], layout: Layout, clip: float, rest: Rest | None = None) -> tuple[Tensor, Tensor]:
    """Clipped sum (d,) of the gradients at one point in the model's precision, and their norms (B,) float64."""
    rest = rest or {}
    squares = torch.stack(
        [_square(layer.signal) * _inputs_square(layer) for layer in layers] + [_square(rows) for rows in rest.values()]
    ).sum(0)
    norms = squares.sqrt()
    factors, ignored = clip_factors(norms, clip, layers[0].signal.dtype)
    kept = _only(~ignored)
    total = layers[0].signal.new_zeros(layout.d)
    views = layout.views(total)
    weights = _chosen(factors, kept)
    for layer in layers:
        _add(views, layer, _weighted(layer.signal, kept, weights), _chosen(layer.inputs, kept))
    _add_rest(views, rest, kept, weights)
    return total, norms


def difference(
    now: Sequence[Layer], before: Sequence[Layer], layout: Layout, clip: float, rest: Rest | None = None
) -> tuple[Tensor, Tensor]:
    """Clipped sum (d,) float64 of the gradients' differences between two points, and their norms (B,) float64."""
    rest = rest or {}
    dtype = now[0].signal.dtype
    signals = [new.signal - old.signal for new, old in zip(now, before, strict=True)]
    steps = [None if new.fixed else new.inputs - old.inputs for new, old in zip(now, before, strict=True)]
    squares, terms = _difference_squares(now, before, signals, steps, rest)
    norms = squares.sqrt()
    cancelled = squares < CANCELLED[dtype] * terms
    total = torch.zeros(layout.d, dtype=torch.float64, device=squares.device)
    found = cancelled.nonzero().flatten()
    for index in torch.split(found, max(1, CHUNK_NUMBERS // layout.d)) if len(found) else ():
        rows = _formed(now, before, layout, index, rest)
        norms[index] = row_norms(rows)
        total += scaled(rows, *clip_factors(norms[index], clip, dtype)).sum(0)
    factors, ignored = clip_factors(norms, clip, dtype)
    kept = _only(~ignored & ~cancelled)
    weights = _chosen(factors, kept)
    plain = now[0].signal.new_zeros(layout.d)
    views = layout.views(plain)
    for new, old, signal, step in zip(now, before, signals, steps, strict=True):
        _add(views, new, _weighted(signal, kept, weights), _chosen(new.inputs, kept))
        if step is not None:
            views[new.weight].addmm_(_weighted(old.signal, kept, weights).T, _chosen(step, kept))
    _add_rest(views, rest, kept, weights)
    return total.add_(exact(plain)), norms


def _difference_squares(
    now: Sequence[Layer],
    before: Sequence[Layer],
    signals: Sequence[Tensor],
    steps: Sequence[Tensor | None],
    rest: Rest,
) -> tuple[Tensor, Tensor]:
    """(B,) squared norms, and what their terms amount to without their signs."""
    squares = [_square(rows) for rows in rest.values()]
    terms = list(squares)
    for new, old, signal, step in zip(now, before, signals, steps, strict=True):
        change = exact(signal)
        first = torch.linalg.vecdot(change, change) * _inputs_square(new)
        squares.append(first)
        terms.append(first)
        if step is not None:
            back, move = exact(old.signal), exact(step)
            second = torch.linalg.vecdot(back, back) * torch.linalg.vecdot(move, move)
            cross = 2 * torch.linalg.vecdot(change, back) * torch.linalg.vecdot(exact(new.inputs), move)
            squares.append(second + cross)
            terms.append(second + cross.abs())
    return torch.stack(squares).sum(0).clamp_(min=0), torch.stack(terms).sum(0)


def _formed(now: Sequence[Layer], before: Sequence[Layer], layout: Layout, index: Tensor, rest: Rest) -> Tensor:
    """(m, d) float64 differences of these examples' gradients, each number rounded once."""
    rows = torch.zeros(len(index), layout.d, dtype=torch.float64, device=index.device)
    views = layout.views(rows)
    for new, old in zip(now, before, strict=True):
        signal, previous, inputs, earlier = (
            exact(_chosen(each, index)) for each in (new.signal, old.signal, new.inputs, old.inputs)
        )
        weight = views[new.weight]
        torch.mul(signal.unsqueeze(2), inputs.unsqueeze(1), out=weight)
        weight.sub_(previous.unsqueeze(2) * earlier.unsqueeze(1))
        if new.bias is not None:
            views[new.bias].copy_(signal - previous)
    for name, other in rest.items():
        views[name].copy_(_chosen(other, index).view_as(views[name]))
    return rows


def _square(values: Tensor) -> Tensor:
    """(B,) float64 sums of squares over the rows of (B, n)."""
    if values.dtype == torch.float32 and values.numel() > SMALL_NUMBERS:
        # All terms are positive: squares rounded in float32 are off by 6e-8 of the sum, unless they leave its range.
        quick = values.square().sum(1, dtype=torch.float64)
        least, most = torch.aminmax(quick)
        if float(least) > IN_RANGE[0] and float(most) < IN_RANGE[1]:
            return quick
    whole = exact(values)
    norms: Tensor = torch.linalg.vecdot(whole, whole)
    return norms


def _inputs_square(layer: Layer) -> Tensor:
    square = _square(layer.inputs)
    return square if layer.bias is None else square + 1.0


def _add(views: Mapping[str, Tensor], layer: Layer, signal: Tensor, inputs: Tensor) -> None:
    torch.mm(signal.T, inputs, out=views[layer.weight])
    if layer.bias is not None:
        torch.sum(signal, 0, out=views[layer.bias])


def _add_rest(views: Mapping[str, Tensor], rest: Rest, kept: Tensor | None, weights: Tensor) -> None:
    for name, rows in rest.items():
        summed = _weighted(rows, kept, weights).sum(0, dtype=torch.float64)
        views[name].copy_(summed.view_as(views[name]))


def _only(mask: Tensor) -> Tensor | None:
    """Positions where the mask holds; None where it holds everywhere."""
    return None if bool(mask.all()) else mask.nonzero().flatten()


def _chosen(values: Tensor, index: Tensor | None) -> Tensor:
    return values if index is None else values[index.to(values.device)]


def _weighted(signal: Tensor, index: Tensor | None, weights: Tensor) -> Tensor:
    rows = _chosen(signal, index)
    return rows * weights.to(dtype=rows.dtype, device=rows.device).unsqueeze(1)
