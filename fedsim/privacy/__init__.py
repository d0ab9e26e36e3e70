"""Privacy: what releases cost, and how much noise a promise needs; usable alone, without any federation.

>>> from fedsim.privacy import diff2_noise, epsilon
>>> sigma1, sigma2 = diff2_noise(3.0, 1e-5, rounds=2000, restart=6, clients=10, examples_per_client=1651)
>>> epsilon([(1.0, 200, 0.05)], delta=1e-5)    # 200 steps, Poisson batches of 5 %, noise as large as the clip

Everything heavy (dp-accounting, scipy) is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.privacy.accounting import delta, epsilon, epsilon_curve, gaussian_mu
    from fedsim.privacy.calibration import check_noise, diff2_noise, diff2_releases, diff2_rounds, noise_for
    from fedsim.privacy.releases import Release

_HOME = {
    "Release": "fedsim.privacy.releases",
    "check_noise": "fedsim.privacy.calibration",
    "delta": "fedsim.privacy.accounting",
    "diff2_noise": "fedsim.privacy.calibration",
    "diff2_releases": "fedsim.privacy.calibration",
    "diff2_rounds": "fedsim.privacy.calibration",
    "epsilon": "fedsim.privacy.accounting",
    "epsilon_curve": "fedsim.privacy.accounting",
    "gaussian_mu": "fedsim.privacy.accounting",
    "noise_for": "fedsim.privacy.calibration",
}

__all__ = [
    "Release",
    "check_noise",
    "delta",
    "diff2_noise",
    "diff2_releases",
    "diff2_rounds",
    "epsilon",
    "epsilon_curve",
    "gaussian_mu",
    "noise_for",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fedsim.privacy' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
