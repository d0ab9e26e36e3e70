"""A module's outputs at parameters that are not its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def functional_call(
    module: nn.Module, tensors: Mapping[str, Tensor] | tuple[Mapping[str, Tensor], ...], args: tuple[Any, ...]
) -> Any:
    """``torch.func.functional_call``, after which the module's parameters are its own again, whatever it holds.

    Of a module that holds one layer twice torch leaves the given tensors in that layer, which then no longer is a view
    of the vector that the module is trained by.

    Args:
        module: any.
        tensors: parameters and buffers by name.
        args: what the module is called with.
    """
    held = [(part, dict(part._parameters), dict(part._buffers)) for part in module.modules()]
    try:
        return torch.func.functional_call(module, tensors, args)  # type: ignore[arg-type]
    finally:
        for part, parameters, buffers in held:
            part._parameters.update(parameters)
            part._buffers.update(buffers)


__all__ = ["functional_call"]
