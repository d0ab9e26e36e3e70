"""Benchmarks: the product of a ``[matrix]``, one folder a cell, one store, tables that say how sure they are.

>>> from fedsim import bench
>>> bench.run_matrix("bench/quick", "runs/quick", jobs=0)
>>> frame = bench.results("runs/quick", where="dataset=digits")      # pandas, a row a cell
>>> bench.over_seeds(frame); bench.ranking(frame); bench.differences(frame, baseline="fedavg")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# The function has its module's name: bound here, so that no later import of the module can take its place.
from fedsim.bench.results import merge, results

if TYPE_CHECKING:
    from fedsim.bench.runner import run_matrix
    from fedsim.bench.tables import differences, over_seeds, ranking

_HOME = {
    "differences": "fedsim.bench.tables",
    "over_seeds": "fedsim.bench.tables",
    "ranking": "fedsim.bench.tables",
    "run_matrix": "fedsim.bench.runner",
}

__all__ = ["differences", "merge", "over_seeds", "ranking", "results", "run_matrix"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fedsim.bench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
