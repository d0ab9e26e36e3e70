"""The (n, d) matrix of a round's updates, on which every defense and every attack works.

Rows are clients in ascending partition id. Distances, norms and inner products are accumulated in float64,
in blocks of columns that are added in a fixed order, so that their bits do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.blocks import exact_rows, gram, has_float64, map_blocks, squared_distances
from fedsim.errors import UpdatesError

if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True)
class Layout:
    """What stands where in a flat parameter vector: parameters first (d numbers), then buffers (b numbers).

    Args:
        parameters: (name, shape) in the model's order.
        buffers: (name, shape, dtype name) in the model's order; batch-norm statistics and the like.
    """

    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    buffers: tuple[tuple[str, tuple[int, ...], str], ...] = ()

    @classmethod
    def of(cls, module: torch.nn.Module) -> Layout:
        return cls(
            tuple((name, tuple(p.shape)) for name, p in module.named_parameters()),
            tuple((name, tuple(b.shape), str(b.dtype).removeprefix("torch.")) for name, b in module.named_buffers()),
        )

    @cached_property
    def d(self) -> int:
        return sum(math.prod(shape) for _, shape in self.parameters)

    @cached_property
    def b(self) -> int:
        return sum(math.prod(shape) for _, shape, _ in self.buffers)

    @cached_property
    def slices(self) -> tuple[tuple[str, int, int, tuple[int, ...]], ...]:
        """(name, start, stop, shape) of every parameter and then every buffer in the (d + b,) vector."""
        found, start = [], 0
        for name, shape in [*self.parameters, *((name, shape) for name, shape, _ in self.buffers)]:
            stop = start + math.prod(shape)
            found.append((name, start, stop, shape))
            start = stop
        return tuple(found)

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Named views into a (…, d) or (…, d + b) tensor; writing to them writes to it."""
        size = vector.shape[-1]
        return {
            name: vector[..., start:stop].view((*vector.shape[:-1], *shape))
            for name, start, stop, shape in self.slices
            if stop <= size
        }

    def flatten(self, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        """Named tensors as one (d + b,) vector."""
        if not self.slices:
            return torch.zeros(0, dtype=dtype)
        return torch.cat([tensors[name].detach().reshape(-1).to(dtype) for name, *_ in self.slices])

    def load(self, module: torch.nn.Module, vector: Tensor) -> None:
        """Copy a (d,) or (d + b,) vector into the module's parameters and buffers."""
        views = self.views(vector)
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if name in views:
                    tensor.copy_(views[name])


@dataclass(eq=False)
class Updates:
    """The updates of one round.

    Args:
        values: (n, d), one row a client.
        num_examples: (n,) float64, the weight that each row carries: its example count, or what a selection gave it.
        client_ids: n partition ids, ascending.
        reference: (d,) parameters that the clients received.
        kind: ``delta`` (a change of the parameters) or ``gradient``.
        extras: what rides along row by row: ``buffers`` (n, b), class counts, head statistics; first axis n.
        layout: where which parameter stands in a row; None if unknown.
        mixing: (n, clients) linear weights of the original clients in each row, where a transform has mixed rows.

    Raises:
        UpdatesError: the parts' shapes do not fit each other.
    """

    values: Tensor
    num_examples: Tensor
    client_ids: list[int]
    reference: Tensor
    kind: str = field(default="delta", kw_only=True)
    extras: dict[str, Tensor] = field(default_factory=dict, kw_only=True)
    layout: Layout | None = field(default=None, kw_only=True)
    mixing: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.values = torch.as_tensor(self.values)
        self.num_examples = torch.as_tensor(self.num_examples, dtype=torch.float64)
        self.client_ids = [int(client) for client in self.client_ids]
        self.reference = torch.as_tensor(self.reference)
        if self.values.ndim != 2:
            raise UpdatesError(f"values: given shape {tuple(self.values.shape)}; accepted: (n, d)")
        n, d = self.values.shape
        if self.num_examples.shape != (n,):
            raise UpdatesError(f"num_examples: given shape {tuple(self.num_examples.shape)}; accepted: ({n},)")
        if len(self.client_ids) != n:
            raise UpdatesError(f"client_ids: given {len(self.client_ids)} of them; accepted: {n}")
        if self.reference.shape != (d,):
            raise UpdatesError(f"reference: given shape {tuple(self.reference.shape)}; accepted: ({d},)")
        for name, extra in self.extras.items():
            if len(extra) != n:
                raise UpdatesError(f"extras['{name}']: given {len(extra)} rows; accepted: {n}")

    def __len__(self) -> int:
        return len(self.client_ids)

    @property
    def d(self) -> int:
        return int(self.values.shape[1])

    def rows(self, index: Tensor | Sequence[int]) -> Updates:
        """These rows only, by position; all of them in order gives the object itself (no copy)."""
        index = torch.as_tensor(index, dtype=torch.long)
        if len(index) == len(self) and bool((index == torch.arange(len(self))).all()):
            return self
        where = index.to(self.values.device)
        return Updates(
            self.values[where],
            self.num_examples[index],
            [self.client_ids[int(i)] for i in index],
            self.reference,
            kind=self.kind,
            extras={name: extra[index.to(extra.device)] for name, extra in self.extras.items()},
            layout=self.layout,
            mixing=None if self.mixing is None else self.mixing[index],
        )

    def replace(self, **changes: Any) -> Updates:
        """A copy with other parts; derived quantities are computed anew."""
        parts: dict[str, Any] = {
            "values": self.values,
            "num_examples": self.num_examples,
            "client_ids": self.client_ids,
            "reference": self.reference,
            "kind": self.kind,
            "extras": self.extras,
            "layout": self.layout,
            "mixing": self.mixing,
        } | changes
        positional = [parts.pop(name) for name in ("values", "num_examples", "client_ids", "reference")]
        return Updates(*positional, **parts)

    @cached_property
    def gram(self) -> Tensor:
        """(n, n) float64 inner products of the rows."""
        return gram(self.values)

    @cached_property
    def norms(self) -> Tensor:
        """(n,) float64 Euclidean norms of the rows."""
        return self.gram.diagonal().clamp(min=0).sqrt()

    def squared_distances(self) -> Tensor:
        """(n, n) float64 squared Euclidean distances between rows; exact zeros on the diagonal.

        From the Gram matrix; where that cancels, from differences (see :func:`fedsim.blocks.squared_distances`).
        """
        return self._squared_distances

    @cached_property
    def _squared_distances(self) -> Tensor:
        def rows(index: Tensor, columns: slice) -> Tensor:
            return exact_rows(self.values, columns, index)

        return squared_distances(self.gram, rows, self.d, parallel=self.values.device.type == "cpu")

    def weighted_sum(self, weights: Tensor, values: Tensor | None = None, *, out: torch.dtype | None = None) -> Tensor:
        """Σ weights_i · row_i as (d,), summed in float64; rows of weight 0 are not read.

        Args:
            weights: (n,).
            values: (n, …) other rows of the same clients, the updates if absent.
            out: precision of the result, the rows' if absent.
        """
        rows = self.values if values is None else values
        used = weights.nonzero().flatten()
        only = None if len(used) == len(rows) else used
        chosen = weights[used].double()
        kind = out or rows.dtype
        there = has_float64(rows.device) or kind != torch.float64
        result = torch.empty(rows.shape[1], dtype=kind, device=rows.device if there else "cpu")

        def block(columns: slice) -> None:
            piece = exact_rows(rows, columns, only)
            result[columns] = (chosen.to(piece.device) @ piece).to(dtype=kind, device=result.device)

        map_blocks(block, len(used), rows.shape[1], parallel=rows.device.type == "cpu")
        return result

    def mix(self, matrix: Tensor) -> Updates:
        """Rows Σ_j matrix_ij · row_j, and their buffers alike; ``mixing`` says whom each consists of.

        Args:
            matrix: (n, n), each row sums to 1.
        """
        matrix = matrix.double()
        mixing = torch.eye(len(self), dtype=torch.float64) if self.mixing is None else self.mixing
        extras = dict(self.extras)
        if "buffers" in extras:
            extras["buffers"] = _mixed(matrix, extras["buffers"])
        return self.replace(values=_mixed(matrix, self.values), extras=extras, mixing=matrix @ mixing)

    def mean(self) -> Tensor:
        """(d,) mean of the rows weighted by ``num_examples``; zeros if no row carries weight."""
        total = float(self.num_examples.sum())
        if total <= 0:
            return torch.zeros_like(self.reference)
        return self.weighted_sum(self.num_examples / total)


@dataclass(eq=False)
class Selection:
    """What a filter decided.

    Args:
        weights: (n,) float64 ≥ 0, relative weights of the rows in the mean that follows; 0 drops a row.
        scores: (n,) float64 or None, higher is more suspicious; detection (AUC) is measured on them.
    """

    weights: Tensor
    scores: Tensor | None = None

    @classmethod
    def of(cls, index: int | Tensor, updates: Updates, scores: Tensor | None = None) -> Selection:
        """Keep only the rows at these positions, each with the weight that it carries."""
        mask = torch.zeros(len(updates), dtype=torch.float64)
        mask[torch.as_tensor(index, dtype=torch.long)] = 1.0
        return cls(mask * updates.num_examples, scores)

    @classmethod
    def equal(cls, index: int | Tensor, updates: Updates, scores: Tensor | None = None) -> Selection:
        """Keep only the rows at these positions, all with the same weight."""
        mask = torch.zeros(len(updates), dtype=torch.float64)
        mask[torch.as_tensor(index, dtype=torch.long)] = 1.0
        return cls(mask, scores)


def ranked(scores: Tensor, updates: Updates) -> Tensor:
    """Positions of the rows by ascending score, along the last axis of (…, n) scores; NaN comes last.

    Scores that agree in ten digits are a tie, which the smaller partition id wins, not the order of the rows.
    """
    by_id = torch.tensor(sorted(range(len(updates)), key=updates.client_ids.__getitem__), dtype=torch.long)
    mantissa, exponent = torch.frexp(scores.double().nan_to_num(nan=math.inf, posinf=math.inf)[..., by_id])
    rounded = torch.ldexp((mantissa * 2**34).round() / 2**34, exponent)
    return by_id[rounded.sort(dim=-1, stable=True).indices]


def lowest(scores: Tensor, keep: int, updates: Updates) -> Tensor:
    """Positions of the ``keep`` rows with the lowest scores, lowest first; ties as in :func:`ranked`."""
    return ranked(scores, updates)[:keep]


def _mixed(matrix: Tensor, rows: Tensor) -> Tensor:
    result = torch.empty_like(rows)

    def block(columns: slice) -> None:
        piece = exact_rows(rows, columns)
        result[:, columns] = (matrix.to(piece.device) @ piece).to(dtype=rows.dtype, device=rows.device)

    map_blocks(block, *rows.shape, parallel=rows.device.type == "cpu")
    return result


@dataclass(eq=False)
class Aggregate:
    """The outcome of a round's defenses.

    Args:
        update: (d,), the change of the parameters that the server optimizer is given.
        weights: (n,) float64, the weight that each client got; they sum to 1, NaN where no linear weight exists.
        scores: name → (n,) float64, NaN where a client was judged by no score.
        buffers: (b,) aggregated change of the buffers, or None where the model has none.
    """

    update: Tensor
    weights: Tensor
    scores: dict[str, Tensor] = field(default_factory=dict)
    buffers: Tensor | None = None


def share(amount: float | int, n: int) -> int:
    """How many of n a share (float in [0, 1]: ⌊amount·n + 1e-9⌋) or a count (int) means."""
    if isinstance(amount, bool) or not isinstance(amount, float):
        return int(amount)
    return math.floor(amount * n + 1e-9)
