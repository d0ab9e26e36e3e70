"""Local losses, heads and adapters, each usable alone in a plain PyTorch loop.

>>> from fedsim.losses import HarmonicHead, monge_gap
>>> model = torch.nn.Sequential(torch.nn.Flatten(), HarmonicHead(64, 10, distance="cosine"))

Everything but :func:`monge_gap` is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# The function has its module's name: bound here, so that no later import of the module can take its place.
from fedsim.losses.monge_gap import linear_monge_gap, monge_gap

if TYPE_CHECKING:
    from fedsim.losses.coral import coral_penalty
    from fedsim.losses.fishr import FishrAverage, fishr_penalty, gradient_variance
    from fedsim.losses.harmonic import HarmonicHead, mask_absent, prototype_average
    from fedsim.losses.hessian_alignment import (
        cmnist_objective,
        cmnist_penalty,
        cmnist_weight,
        diagonal_statistics,
        domainbed_penalty,
        head_gradient,
        hessian_diagonal,
        hessian_gradient_product,
        hessian_vector_product,
        hgp_statistics,
    )
    from fedsim.losses.irm import irm_penalty, irm_penalty_unbiased
    from fedsim.losses.monge_map import MongeMap, fit_monge_map
    from fedsim.losses.sinkhorn import sinkhorn_divergence
    from fedsim.losses.vrex import vrex_penalty

_HOME = {
    "FishrAverage": "fishr",
    "HarmonicHead": "harmonic",
    "MongeMap": "monge_map",
    "cmnist_objective": "hessian_alignment",
    "cmnist_penalty": "hessian_alignment",
    "cmnist_weight": "hessian_alignment",
    "coral_penalty": "coral",
    "diagonal_statistics": "hessian_alignment",
    "domainbed_penalty": "hessian_alignment",
    "fishr_penalty": "fishr",
    "fit_monge_map": "monge_map",
    "gradient_variance": "fishr",
    "head_gradient": "hessian_alignment",
    "hessian_diagonal": "hessian_alignment",
    "hessian_gradient_product": "hessian_alignment",
    "hessian_vector_product": "hessian_alignment",
    "hgp_statistics": "hessian_alignment",
    "irm_penalty": "irm",
    "irm_penalty_unbiased": "irm",
    "mask_absent": "harmonic",
    "prototype_average": "harmonic",
    "sinkhorn_divergence": "sinkhorn",
    "vrex_penalty": "vrex",
}

__all__ = [
    "FishrAverage",
    "HarmonicHead",
    "MongeMap",
    "cmnist_objective",
    "cmnist_penalty",
    "cmnist_weight",
    "coral_penalty",
    "diagonal_statistics",
    "domainbed_penalty",
    "fishr_penalty",
    "fit_monge_map",
    "gradient_variance",
    "head_gradient",
    "hessian_diagonal",
    "hessian_gradient_product",
    "hessian_vector_product",
    "hgp_statistics",
    "irm_penalty",
    "irm_penalty_unbiased",
    "linear_monge_gap",
    "mask_absent",
    "monge_gap",
    "prototype_average",
    "sinkhorn_divergence",
    "vrex_penalty",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"fedsim.losses.{_HOME[name]}"), name)
    raise AttributeError(f"module 'fedsim.losses' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
