"""Defenses in a row: rows of the clients in, one aggregate out.

The order is the list's, from the clients to the model: each defense's ``transform``, then its ``select`` (rows with
weight 0 leave, the others carry their weight on), then its ``combine``. The first ``combine`` ends the row; without
any the weighted mean does. What comes out goes through every ``bound``. Weights and scores come back in the order of
the rows that were given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.errors import UpdatesError
from fedsim.updates import Aggregate, Updates
from strategies.defense import Defense, Round, overrides

NEED_ROWS = ("transform", "select", "combine")
"""Stages before which dropped rows leave the matrix, which copies the others; the weighted mean just skips them."""


def aggregate(defenses: Sequence[Defense], updates: Updates, contexts: Sequence[Round]) -> Aggregate:
    """Run the defenses.

    Args:
        defenses: in the scenario's order.
        updates: (n, d) valid rows of the round; rows with zero examples enter no distance and get no weight.
        contexts: one :class:`Round` a defense.

    Returns:
        The aggregate; ``scores`` are named ``part`` or, where a part appears twice, ``part.2``.
    """
    bounds = [(part, ctx) for part, ctx in zip(defenses, contexts, strict=True) if overrides(part, "bound")]
    try:
        result = _combined(defenses, updates, contexts)
    except UpdatesError:
        if not any(part.answers_nobody for part, _ in bounds):
            raise
        result = _nothing(updates, {})
    for part, ctx in bounds:
        result = part.bound(result, ctx)
    return result


def _combined(defenses: Sequence[Defense], updates: Updates, contexts: Sequence[Round]) -> Aggregate:
    n = len(updates)
    mixing = torch.eye(n, dtype=torch.float64)
    active = (updates.num_examples > 0).nonzero().flatten()
    scores: dict[str, Tensor] = {}
    current = updates.replace(mixing=mixing).rows(active)
    if len(current) == 0 and not any(part.answers_nobody and overrides(part, "combine") for part in defenses):
        return _nothing(updates, scores)
    combined: Aggregate | None = None
    combiner: Defense | None = None
    for place, (part, ctx) in enumerate(zip(defenses, contexts, strict=True)):
        if overrides(part, "transform"):
            current = part.transform(current, ctx)
        if overrides(part, "select"):
            selection = part.select(current, ctx)
            if selection.scores is not None:
                scores[_free(_label(part), scores)] = _to_clients(selection.scores, current, updates)
            kept = (selection.weights > 0).nonzero().flatten()
            if len(kept) == 0:
                return _nothing(updates, scores)
            current = current.replace(num_examples=selection.weights)
            if overrides(part, "combine") or any(
                overrides(later, stage) for later in defenses[place + 1 :] for stage in NEED_ROWS
            ):
                current = current.rows(kept)
        if overrides(part, "combine"):
            combined, combiner = part.combine(current, ctx), part
            for name, values in combined.scores.items():
                label = _label(part) if name in ("", "score") else f"{_label(part)}.{name}"
                scores[_free(label, scores)] = _to_clients(values, current, updates)
            break
    if combined is None:
        combined = Defense().combine(current, Round())
    weights = combined.weights
    buffers = combined.buffers if combined.buffers is not None else _buffers(current, weights, combiner)
    if bool(weights.isnan().any()):
        spread = torch.full((n,), torch.nan, dtype=torch.float64)
        got = (current.mixing.abs().sum(0) > 0) if current.mixing is not None else torch.ones(n, dtype=torch.bool)
        spread[~got] = 0.0
    else:
        spread = weights @ current.mixing if current.mixing is not None else weights
    return Aggregate(combined.update, spread, scores, buffers)


def _buffers(rows: Updates, weights: Tensor, combiner: Defense | None) -> Tensor | None:
    buffers = rows.extras.get("buffers")
    if buffers is None:
        return None
    if combiner is not None and combiner.coordinatewise:
        as_rows = Updates(buffers, rows.num_examples, rows.client_ids, torch.zeros_like(buffers[0]))
        return combiner.combine(as_rows, Round()).update
    if bool(weights.isnan().any()):
        weights = rows.num_examples / rows.num_examples.sum()
    return rows.weighted_sum(weights, buffers)


def _nothing(updates: Updates, scores: dict[str, Tensor]) -> Aggregate:
    weights = torch.zeros(len(updates), dtype=torch.float64)
    return Aggregate(torch.zeros_like(updates.reference), weights, scores, _no_change(updates))


def _no_change(updates: Updates) -> Tensor | None:
    buffers = updates.extras.get("buffers")
    return None if buffers is None else torch.zeros_like(buffers[0])


def _to_clients(values: Tensor, rows: Updates, updates: Updates) -> Tensor:
    """Scores of the current rows as (n,) of the original ones, NaN for those that are gone."""
    spread = torch.full((len(updates),), torch.nan, dtype=torch.float64)
    position = {client: i for i, client in enumerate(updates.client_ids)}
    for client, value in zip(rows.client_ids, values.tolist(), strict=True):
        spread[position[client]] = value
    return spread


def _label(part: Defense) -> str:
    return getattr(part, "name", type(part).__name__)


def _free(label: str, taken: dict[str, Tensor]) -> str:
    if label not in taken:
        return label
    count = 2
    while f"{label}.{count}" in taken:
        count += 1
    return f"{label}.{count}"
