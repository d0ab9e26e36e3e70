"""Where the nodes run, each a Flower ``Grid``: threads, a Ray cluster, and the adversary around either."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.grids.adversarial import AdversarialGrid
    from fedsim.grids.local import LocalGrid
    from fedsim.grids.ray import RayGrid

_HOME = {"AdversarialGrid": "adversarial", "LocalGrid": "local", "RayGrid": "ray"}

__all__ = ["AdversarialGrid", "LocalGrid", "RayGrid"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"fedsim.grids.{_HOME[name]}"), name)
    raise AttributeError(f"module 'fedsim.grids' has no attribute '{name}'")
