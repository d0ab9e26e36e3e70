"""A stock strategy's memory as tensors, numbers, strings and dicts of them, and back.

Attributes that are arrays, records, numbers, strings, None, or lists, tuples and dicts of such, are its memory;
functions and loggers are not. A strategy within a strategy (a wrapper's) is saved along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsim.errors import ResumeError
from fedsim.flower import to_numpy


class _NotMemory(Exception):
    """A value that cannot be saved: a function, a logger."""


def saved(strategy: Strategy) -> dict[str, Any]:
    """Attribute → value, encoded."""
    found = {}
    for name, value in vars(strategy).items():
        try:
            found[name] = _encode(value)
        except _NotMemory:
            continue
    return found


def restored(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Set the attributes that :func:`saved` found.

    Raises:
        ResumeError: the state does not come from such a strategy.
    """
    for name, value in state.items():
        if name not in vars(strategy):
            raise ResumeError(f"{type(strategy).__name__} has no attribute '{name}' to restore")
        if isinstance(value, Mapping) and value.get("type") == "strategy":
            restored(getattr(strategy, name), value["items"])
        else:
            setattr(strategy, name, _decode(value))


def _encode(value: Any) -> Any:
    if value is None:
        return {"type": "none"}
    if isinstance(value, bool | int | float | str) and not isinstance(value, np.generic):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value, order="C"))
    if isinstance(value, np.generic):
        return {"type": "scalar", "items": {"value": torch.from_numpy(np.array(value))}}
    if isinstance(value, Array):
        return {"type": "array", "items": {"value": torch.from_numpy(to_numpy(value))}}
    if isinstance(value, Strategy):
        return {"type": "strategy", "items": saved(value)}
    for kind, name in ((ArrayRecord, "arrays"), (ConfigRecord, "config"), (MetricRecord, "metrics")):
        if isinstance(value, kind):
            return {"type": name, "items": {key: _encode(each) for key, each in value.items()}}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"type": "dict", "items": {key: _encode(each) for key, each in value.items()}}
    if isinstance(value, list | tuple):
        name = "list" if isinstance(value, list) else "tuple"
        return {"type": name, "items": {str(i): _encode(each) for i, each in enumerate(value)}}
    raise _NotMemory


def _decode(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy().copy()
    if not isinstance(value, Mapping):
        return value
    kind, items = value["type"], value.get("items", {})
    if kind == "none":
        return None
    if kind == "scalar":
        return items["value"].numpy()[()]
    if kind == "array":
        return Array(items["value"].numpy())
    decoded = {key: _decode(each) for key, each in items.items()}
    if kind in ("list", "tuple"):
        ordered = [decoded[str(i)] for i in range(len(decoded))]
        return ordered if kind == "list" else tuple(ordered)
    if kind == "dict":
        return decoded
    return {"arrays": ArrayRecord, "config": ConfigRecord, "metrics": MetricRecord}[kind](decoded)
