"""fedsim: federated learning under attack, simulated on Flower.

>>> import fedsim
>>> scenario = fedsim.Scenario.load("quickstart", {"rounds": 5})
>>> result = fedsim.run(scenario, out="runs/demo")

Everything heavy (torch, flwr, pandas) is imported on first use, so that ``import fedsim`` takes milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedsim import runtime

runtime.set_up()

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fedsim import analysis, bench, data, errors, grids, losses, models, optim, privacy, report, rng, testing
    from fedsim.launch import run
    from fedsim.registry import make, names
    from fedsim.scenario import Scenario
    from fedsim.simulation import Result
    from fedsim.updates import Aggregate, Selection, Updates

_HOME = {
    "Aggregate": "fedsim.updates",
    "Result": "fedsim.simulation",
    "Scenario": "fedsim.scenario",
    "Selection": "fedsim.updates",
    "Updates": "fedsim.updates",
    "make": "fedsim.registry",
    "names": "fedsim.registry",
    "run": "fedsim.launch",
}
_ROOMS = (
    "analysis",
    "bench",
    "data",
    "errors",
    "grids",
    "losses",
    "models",
    "optim",
    "privacy",
    "report",
    "rng",
    "testing",
)

__all__ = [
    "Aggregate",
    "Result",
    "Scenario",
    "Selection",
    "Updates",
    "analysis",
    "bench",
    "data",
    "errors",
    "grids",
    "losses",
    "make",
    "models",
    "names",
    "optim",
    "privacy",
    "report",
    "rng",
    "run",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"fedsim.{name}")
    raise AttributeError(f"module 'fedsim' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
