"""Local optimizers and learning-rate schedules, each usable alone in a plain PyTorch loop.

>>> from fedsim.optim import RadiusControl, gns, softmax_radius

Everything but :func:`softmax_radius` is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# The function has its module's name: bound here, so that no later import of the module can take its place.
from fedsim.optim.softmax_radius import RadiusControl, softmax_radius

if TYPE_CHECKING:
    from fedsim.optim import gns
    from fedsim.optim.diffgrad import DiffGrad

_HOME: dict[str, str] = {"DiffGrad": "diffgrad"}
"""Names by the module that they live in."""
_MODULES = ("gns",)

__all__ = ["DiffGrad", "RadiusControl", "gns", "softmax_radius"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"fedsim.optim.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"fedsim.optim.{name}")
    raise AttributeError(f"module 'fedsim.optim' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
