"""The state of a run as JSON and named arrays, and back: nothing is pickled.

Dicts keep the types and the order of their keys, tuples stay tuples, Flower's records stay records, numbers that are
not finite and bytes survive; every array keeps its dtype and its shape, every
tensor its device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import RecordError, ResumeError
from fedsim.flower import to_numpy

DTYPES = {
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *(f"float{bits}" for bits in (16, 32, 64)),
}
"""What a checkpoint can hold (bfloat16 tensors as well, as the 16-bit integers that they are)."""


def pack(tree: Any, tensors: dict[str, NDArray[Any]], path: str = "state") -> Any:
    """A tree of dicts, lists, numbers, strings, tensors and Flower records as JSON; its arrays go into ``tensors``.

    Raises:
        RecordError: something in the tree is none of these.
    """
    if isinstance(tree, Tensor):
        packed = _packed_tensor(tree, tensors, path)
        return packed if tree.device.type == "cpu" else {"$device": [str(tree.device), packed]}
    if isinstance(tree, np.ndarray):
        return {"$array": _stored(tree, tensors, path)}
    if isinstance(tree, (np.floating, np.integer, np.bool_)):
        return pack(tree.item(), tensors, path)
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"$float": repr(tree)}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, bytes):
        return {"$bytes": tree.hex()}
    if isinstance(tree, ArrayRecord):
        return {"$arrays": pack({name: to_numpy(array) for name, array in tree.items()}, tensors, path)}
    if isinstance(tree, ConfigRecord):
        return {"$config": pack(dict(tree), tensors, path)}
    if isinstance(tree, MetricRecord):
        return {"$metrics": pack(dict(tree), tensors, path)}
    if isinstance(tree, RecordDict):
        return {"$records": pack(dict(tree.items()), tensors, path)}
    if isinstance(tree, Mapping):
        items = [[pack(key, tensors, path), pack(value, tensors, f"{path}.{key}")] for key, value in tree.items()]
        return {"$items": items}
    if isinstance(tree, tuple):
        return {"$tuple": [pack(value, tensors, f"{path}.{i}") for i, value in enumerate(tree)]}
    if isinstance(tree, list):
        return [pack(value, tensors, f"{path}.{i}") for i, value in enumerate(tree)]
    accepted = "numbers, strings, bytes, tensors, arrays, lists, tuples, dicts, records"
    raise RecordError(f"state '{path}': given {type(tree).__name__}; accepted: {accepted}")


def unpack(tree: Any, tensors: Mapping[str, NDArray[Any]]) -> Any:
    """The inverse of :func:`pack`.

    Raises:
        ResumeError: the tree is not of :func:`pack`, or an array that it names is not there.
    """
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    try:
        ((kind, value),) = tree.items()
        return _unpacked(kind, value, tensors)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResumeError(f"the state holds what fedsim did not write: {type(error).__name__}: {error}") from error


def _unpacked(kind: str, value: Any, tensors: Mapping[str, NDArray[Any]]) -> Any:
    if kind == "$tensor":
        return torch.from_numpy(tensors[value].copy())
    if kind == "$bfloat16":
        return torch.from_numpy(tensors[value].copy()).view(torch.bfloat16)
    if kind == "$device":
        device, packed = value
        return unpack(packed, tensors).to(device)
    if kind == "$array":
        return tensors[value].copy()
    if kind == "$float":
        return float(value)
    if kind == "$bytes":
        return bytes.fromhex(value)
    if kind == "$tuple":
        return tuple(unpack(each, tensors) for each in value)
    if kind == "$items":
        return {unpack(key, tensors): unpack(each, tensors) for key, each in value}
    content = unpack(value, tensors)
    if kind == "$arrays":
        record = ArrayRecord()
        for name, array in content.items():
            record[name] = Array(array)
        return record
    return {"$config": ConfigRecord, "$metrics": MetricRecord, "$records": RecordDict}[kind](content)


def _packed_tensor(tensor: Tensor, tensors: dict[str, NDArray[Any]], path: str) -> dict[str, str]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or dtype not in {*DTYPES, "bfloat16"}:
        kind = dtype if tensor.layout == torch.strided else f"{tensor.layout} tensor".removeprefix("torch.")
        raise RecordError(f"state '{path}': given {kind}; accepted: dense tensors of {_shown()}, bfloat16")
    tensor = tensor.detach().cpu().contiguous()
    if dtype == "bfloat16":
        return {"$bfloat16": _stored(tensor.view(torch.int16).numpy(), tensors, path)}
    return {"$tensor": _stored(tensor.numpy(), tensors, path)}


def _stored(array: NDArray[Any], tensors: dict[str, NDArray[Any]], path: str) -> str:
    """The name under which the array went into ``tensors``: its path, numbered where two paths read alike."""
    if array.dtype.name not in DTYPES:
        raise RecordError(f"state '{path}': given an array of {array.dtype}; accepted: arrays of {_shown()}")
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    name, number = path, 1
    while name in tensors:
        name, number = f"{path}#{number}", number + 1
    tensors[name] = np.ascontiguousarray(native).reshape(array.shape)
    return name


def _shown() -> str:
    return ", ".join(sorted(DTYPES))
