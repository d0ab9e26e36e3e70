"""Statistics over rounds and seeds, and diagnostics of training.

>>> from fedsim.analysis import coherence, generalization
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# The function has its module's name: bound here, so that no later import of the module can take its place.
from fedsim.analysis.coherence import Coherence, coherence

if TYPE_CHECKING:
    from fedsim.analysis import generalization

_MODULES = ("generalization",)

__all__ = ["Coherence", "coherence", "generalization"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fedsim.analysis.{name}")
    raise AttributeError(f"module 'fedsim.analysis' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
