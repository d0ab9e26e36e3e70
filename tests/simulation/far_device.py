"""A device that is not the CPU, for machines without one: tensors on it refuse to meet tensors of the CPU.

It goes by the name of torch's ``meta`` device, which needs no driver. A tensor on it is a wrapper that holds its
numbers in a tensor of the CPU; each operation is done there. Operations of tensors on both devices, ``numpy()`` without
``cpu()``, and, where asked for, float64 raise as they do on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"
CASTS = ("aten::_to_copy", "aten::to")
MAY_MIX = ("aten::copy_", "aten::_local_scalar_dense", "aten::item")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class Far(torch.Tensor):
    """A tensor of the far device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Far:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=NAME
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Machine.current.run(function, args, kwargs or {})

    @property
    def data(self) -> Any:
        return self.detach()

    @data.setter
    def data(self, value: Far) -> None:
        self.inner = value.inner

    def __getitem__(self, at: Any) -> Any:
        if self.requires_grad or not isinstance(at, list | torch.Tensor):
            return super().__getitem__(at)
        return Far(self.inner[_near(at)])

    def __setitem__(self, at: Any, value: Any) -> None:
        _refuse_near([value])
        with torch.no_grad():
            self.inner[tree_map(_near, at)] = _near(value)

    def tolist(self) -> Any:
        return self.inner.tolist()


class Machine(TorchDispatchMode):
    """A machine with the far device, in the thread that enters it.

    Args:
        float64: whether the device has it.
    """

    current: Machine

    def __init__(self, float64: bool = True) -> None:
        super().__init__()
        self.float64 = float64
        Machine.current = self

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(function, args, kwargs or {})

    def run(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation on the CPU, its results where they belong."""
        name, kwargs, leaves = function._schema.name, dict(kwargs), tree_leaves((args, kwargs))
        there = any(isinstance(each, Far) for each in leaves)
        if there and name not in (*CASTS, *MAY_MIX):
            indices = {id(each) for each in tree_leaves(args[1])} if name in INDEXING else set()
            _refuse_near([each for each in leaves if id(each) not in indices])
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]).type == NAME
            kwargs["device"] = "cpu"
        known = {id(each.inner): each for each in leaves if isinstance(each, Far)}
        args, kwargs = tree_map(_near, (args, kwargs))

        def placed(result: Any) -> Any:
            if not isinstance(result, torch.Tensor) or id(result) in known:
                return known.get(id(result), result)
            if not there:
                return result
            if result.dtype == torch.float64 and not self.float64:
                raise TypeError(f"{name}: the device has no float64")
            return Far(result)

        return tree_map(placed, function(*args, **kwargs))


def _near(value: Any) -> Any:
    return value.inner if isinstance(value, Far) else value


def _refuse_near(values: list[Any]) -> None:
    for value in values:
        if isinstance(value, torch.Tensor) and not isinstance(value, Far) and value.dim():
            raise RuntimeError("expected all tensors to be on the same device")
