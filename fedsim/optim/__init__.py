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
    from fedsim.optim import gns, robust_gradients, sam_gs
    from fedsim.optim.diffgrad import DiffGrad
    from fedsim.optim.even_langevin import EvenSGD, EvenSphericalLangevin
    from fedsim.optim.gns_step import GNS
    from fedsim.optim.langevin import Langevin, NormalizedSGD, SphericalLangevin, normalized_sgd, spherical_langevin
    from fedsim.optim.sam_gs import SamGS

_HOME = {
    "GNS": "gns_step",
    "DiffGrad": "diffgrad",
    "EvenSGD": "even_langevin",
    "EvenSphericalLangevin": "even_langevin",
    "Langevin": "langevin",
    "NormalizedSGD": "langevin",
    "SamGS": "sam_gs",
    "SphericalLangevin": "langevin",
    "normalized_sgd": "langevin",
    "spherical_langevin": "langevin",
}
"""Names by the module that they live in."""
_MODULES = ("gns", "robust_gradients", "sam_gs")

__all__ = [
    "GNS",
    "DiffGrad",
    "EvenSGD",
    "EvenSphericalLangevin",
    "Langevin",
    "NormalizedSGD",
    "RadiusControl",
    "SamGS",
    "SphericalLangevin",
    "gns",
    "normalized_sgd",
    "robust_gradients",
    "sam_gs",
    "softmax_radius",
    "spherical_langevin",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"fedsim.optim.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"fedsim.optim.{name}")
    raise AttributeError(f"module 'fedsim.optim' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
