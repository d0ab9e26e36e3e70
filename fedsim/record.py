"""A run's folder: what is written after each round, and how a killed run is picked up.

``state.json``, renamed into place last, names the round, its checkpoint with its hash, and the lengths of the two
jsonl files at that moment; resuming truncates them to those. A process that is killed at any instant leaves either
the old ``state.json`` with everything it names, or the new one. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import RecordError, ResumeError

UNTIMED = ("seconds",)
"""Keys of a round's line that differ from run to run and stay out of the digest."""


def pack(tree: Any, tensors: dict[str, NDArray[Any]], path: str = "state") -> Any:
    """A tree of dicts, lists, numbers, strings, tensors and Flower records as JSON; its arrays go into ``tensors``."""
    if isinstance(tree, Tensor):
        tensors[path] = np.ascontiguousarray(tree.detach().cpu().numpy()).reshape(tuple(tree.shape))
        return {"$tensor": path}
    if isinstance(tree, np.ndarray):
        tensors[path] = np.ascontiguousarray(tree).reshape(tree.shape)
        return {"$array": path}
    if isinstance(tree, (np.floating, np.integer, np.bool_)):
        return pack(tree.item(), tensors, path)
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"$float": repr(tree)}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, bytes):
        return {"$bytes": tree.hex()}
    if isinstance(tree, ArrayRecord):
        arrays = {name: array.numpy() for name, array in tree.items()}
        return {"$arrays": pack(arrays, tensors, path)}
    if isinstance(tree, (ConfigRecord, MetricRecord)):
        kind = "$config" if isinstance(tree, ConfigRecord) else "$metrics"
        return {kind: pack(dict(tree), tensors, path)}
    if isinstance(tree, RecordDict):
        return {"$records": pack(dict(tree.items()), tensors, path)}
    if isinstance(tree, Mapping):
        return {
            "$items": [
                [pack(key, tensors, path), pack(value, tensors, f"{path}.{key}")] for key, value in tree.items()
            ]
        }
    if isinstance(tree, tuple):
        return {"$tuple": [pack(value, tensors, f"{path}.{i}") for i, value in enumerate(tree)]}
    if isinstance(tree, list):
        return [pack(value, tensors, f"{path}.{i}") for i, value in enumerate(tree)]
    raise RecordError(f"state '{path}': given {type(tree).__name__}; accepted: numbers, strings, tensors, arrays, lists, dicts, records")


def unpack(tree: Any, tensors: Mapping[str, NDArray[Any]]) -> Any:
    """The inverse of :func:`pack`."""
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "$tensor":
        return torch.from_numpy(tensors[value].copy())
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


def plain(value: Any) -> Any:
    """A value fit for JSON: what is not finite becomes null, floats keep their shortest exact form."""
    if isinstance(value, (np.floating, np.integer)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


class Recorder:
    """Lines and checkpoints of a run, in memory and, if there is a folder, on disk.

    Args:
        folder: the run's folder, or None.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rounds: list[dict[str, Any]] = []
        self.clients: list[dict[str, Any]] = []
        self._lengths = {"rounds.jsonl": 0, "clients.jsonl": 0}
        self._checkpoint: str | None = None
        self._digest = hashlib.sha256()

    @classmethod
    def start(cls, folder: Path | None) -> Recorder:
        """A new run; the folder is made."""
        recorder = cls(folder)
        if folder is not None:
            with _writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                for name in recorder._lengths:
                    (folder / name).write_bytes(b"")
        return recorder

    @classmethod
    def resume(cls, folder: Path) -> tuple[Recorder, int, dict[str, NDArray[Any]], Any]:
        """The run as it was after its last whole round.

        Returns:
            The recorder, the round, the model's arrays by name, and the state's tree.

        Raises:
            ResumeError: the checkpoint is missing or damaged.
        """
        from safetensors.numpy import load

        state = json.loads((folder / "state.json").read_text())
        recorder = cls(folder)
        for name, length in state["lengths"].items():
            with open(folder / name, "r+b") as file:
                file.seek(0, os.SEEK_END)
                if file.tell() < length:
                    raise ResumeError(f"{folder / name}: {file.tell()} bytes instead of the {length} that state.json names")
                file.truncate(length)
            recorder._lengths[name] = length
        for line in (folder / "rounds.jsonl").read_text().splitlines():
            recorder.rounds.append(json.loads(line))
            recorder._count(recorder.rounds[-1])
        recorder.clients = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
        recorder._checkpoint = state["checkpoint"]
        try:
            content = (folder / state["checkpoint"]).read_bytes()
        except FileNotFoundError as error:
            raise ResumeError(f"{folder}: {state['checkpoint']} is missing") from error
        if hashlib.sha256(content).hexdigest() != state["sha256"]:
            raise ResumeError(f"{folder / state['checkpoint']}: its hash is not the one that state.json names")
        arrays = load(content)
        model = {name.removeprefix("model."): array for name, array in arrays.items() if name.startswith("model.")}
        tree = unpack(state["state"], {name: array for name, array in arrays.items() if name.startswith("state")})
        return recorder, int(state["round"]), model, tree

    def write(self, line: dict[str, Any], clients: list[dict[str, Any]], model: Mapping[str, NDArray[Any]], state: Any) -> None:
        """A round's lines, then its checkpoint.

        Raises:
            RecordError: the disk is full or cannot be written; what was there before still reads.
        """
        line, clients = plain(line), [plain(client) for client in clients]
        self.rounds.append(line)
        self.clients += clients
        self._count(line)
        if self.folder is None:
            return
        with _writing(self.folder):
            self._append("rounds.jsonl", [line])
            self._append("clients.jsonl", clients)
            self._save(int(line["round"]), model, state)

    def _count(self, line: Mapping[str, Any]) -> None:
        timeless = {key: value for key, value in line.items() if key not in UNTIMED}
        self._digest.update(json.dumps(timeless, sort_keys=True).encode() + b"\n")

    def digest(self, model: Mapping[str, NDArray[Any]]) -> str:
        """sha256 of the final arrays in name order and of the rounds' lines without timings."""
        total = hashlib.sha256()
        for name in sorted(model):
            array = np.ascontiguousarray(model[name])
            total.update(f"{name} {array.dtype} {array.shape}\n".encode())
            total.update(array.tobytes())
        total.update(self._digest.digest())
        return total.hexdigest()

    def _append(self, name: str, lines: list[dict[str, Any]]) -> None:
        assert self.folder is not None
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with open(self.folder / name, "r+b") as file:
            file.seek(self._lengths[name])
            file.truncate()
            file.write(content)
        self._lengths[name] += len(content)

    def _save(self, round: int, model: Mapping[str, NDArray[Any]], state: Any) -> None:
        from safetensors.numpy import save

        assert self.folder is not None
        tensors: dict[str, NDArray[Any]] = {}
        tree = pack(state, tensors)
        content = save({**{f"model.{name}": np.ascontiguousarray(array) for name, array in model.items()}, **tensors})
        name = f"checkpoint-{round}.safetensors"
        _replace(self.folder / name, content)
        described = {
            "round": round,
            "checkpoint": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "lengths": self._lengths,
            "state": tree,
        }
        _replace(self.folder / "state.json", json.dumps(described).encode())
        if self._checkpoint not in (None, name):
            (self.folder / str(self._checkpoint)).unlink(missing_ok=True)
        self._checkpoint = name


def write_json(path: Path, content: Any) -> None:
    """A JSON file, put in place at once."""
    with _writing(path.parent):
        _replace(path, (json.dumps(plain(content), indent=1) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """A file, put in place at once."""
    with _writing(path.parent):
        _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


class _writing:
    """Turns what the operating system says of a disk into one clear error."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise RecordError(
                f"{self.folder}: cannot be written: {error.strerror or error}; "
                "the last whole round is safe, free some space and go on with --resume"
            ) from error
