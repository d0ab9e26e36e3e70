"""A run's folder: what is written after each round, and how a killed run is picked up.

``state.json``, renamed into place last, names the round, its checkpoint with its hash, and the lengths of the two
jsonl files at that moment; resuming truncates them to those. A process that is killed at any instant leaves either
the old ``state.json`` with everything it names, or the new one. Nothing is pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import RecordError, ResumeError, one_line
from fedsim.packing import pack, unpack

LINES = ("rounds.jsonl", "clients.jsonl")
UNTIMED = ("seconds",)
"""Keys of a round's line that differ from run to run and stay out of the digest."""


def plain(value: Any) -> Any:
    """A value fit for JSON: what is not finite becomes null, floats keep their shortest exact form."""
    if isinstance(value, (np.floating, np.integer, np.bool_)):
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
        self._lengths = dict.fromkeys(LINES, 0)
        self._checkpoint: str | None = None
        self._digest = hashlib.sha256()

    @classmethod
    def start(cls, folder: Path | None) -> Recorder:
        """A new run; the folder is made."""
        recorder = cls(folder)
        if folder is not None:
            make_folder(folder)
            with _writing(folder):
                for name in recorder._lengths:
                    (folder / name).write_bytes(b"")
        return recorder

    @classmethod
    def resume(cls, folder: Path) -> tuple[Recorder, int, dict[str, NDArray[Any]], Any]:
        """The run as it was after its last whole round.

        All is read and checked before the folder is touched; then what a killed process left behind is removed.

        Returns:
            The recorder, the round, the model's arrays by name, and the state's tree.

        Raises:
            ResumeError: something that ``state.json`` names is missing or damaged.
        """
        try:
            state = _state(folder / "state.json")
            recorder = cls(folder)
            recorder._lengths = state["lengths"]
            recorder.rounds = _lines(folder / "rounds.jsonl", state["lengths"]["rounds.jsonl"])
            recorder.clients = _lines(folder / "clients.jsonl", state["lengths"]["clients.jsonl"])
            recorder._checkpoint = state["checkpoint"]
            arrays = _checkpoint(folder / state["checkpoint"], state["sha256"])
            tree = unpack(state["state"], {name: each for name, each in arrays.items() if name.startswith("state")})
        except OSError as error:
            raise ResumeError(f"{error.filename or folder}: cannot be read: {error.strerror or error}") from error
        for line in recorder.rounds:
            recorder._count(line)
        with _writing(folder):
            recorder._tidy()
        model = {name.removeprefix("model."): array for name, array in arrays.items() if name.startswith("model.")}
        return recorder, state["round"], model, tree

    def write(
        self, line: dict[str, Any], clients: list[dict[str, Any]], model: Mapping[str, NDArray[Any]], state: Any
    ) -> None:
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
            array = model[name]
            total.update(f"{name} {array.dtype} {array.shape}\n".encode())
            total.update(array.tobytes())
        total.update(self._digest.digest())
        return total.hexdigest()

    def _tidy(self) -> None:
        """Remove lines and files of a round that was not finished."""
        assert self.folder is not None
        for name, length in self._lengths.items():
            if (self.folder / name).stat().st_size > length:
                os.truncate(self.folder / name, length)
        for left in (*self.folder.glob("checkpoint-*.safetensors"), *self.folder.glob(".*.part")):
            if left.name != self._checkpoint:
                left.unlink(missing_ok=True)

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
        arrays = {f"model.{name}": np.ascontiguousarray(array).reshape(array.shape) for name, array in model.items()}
        content = save({**arrays, **tensors})
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


def _state(path: Path) -> dict[str, Any]:
    """``state.json``, its fields of the right types."""
    try:
        state = json.loads(path.read_bytes())
    except ValueError as error:
        raise ResumeError(f"{path}: not the JSON that fedsim wrote: {one_line(error)}") from error
    fields: dict[str, Any] = {"round": int, "checkpoint": str, "sha256": str, "lengths": dict, "state": (dict, list)}
    wrong = [
        name for name, kind in fields.items() if not isinstance(state, dict) or not isinstance(state.get(name), kind)
    ]
    if not wrong and {name: type(length) for name, length in state["lengths"].items()} != dict.fromkeys(LINES, int):
        wrong = ["lengths"]
    if wrong:
        raise ResumeError(f"{path}: no or unreadable {', '.join(wrong)}")
    return dict(state)


def _lines(path: Path, length: int) -> list[dict[str, Any]]:
    """The first ``length`` bytes of a jsonl file, line by line."""
    content = path.read_bytes()
    if len(content) < length:
        raise ResumeError(f"{path}: {len(content)} bytes instead of the {length} that state.json names")
    try:
        lines = [json.loads(line) for line in content[:length].splitlines()]
    except ValueError as error:
        raise ResumeError(f"{path}: not the lines that fedsim wrote: {one_line(error)}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise ResumeError(f"{path}: not the lines that fedsim wrote")
    return lines


def _checkpoint(path: Path, sha256: str) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load

    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ResumeError(f"{path}: its hash is not the one that state.json names")
    return load(content)


def make_folder(folder: Path) -> None:
    """The folder, with those above it."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_json(path: Path, content: Any) -> None:
    """A JSON file, put in place at once."""
    with _writing(path.parent):
        _replace(path, (json.dumps(plain(content), indent=1) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """A file, put in place at once."""
    with _writing(path.parent):
        _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")  # two benches may write one summary at once
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
            hint = f"{error.strerror or error}"
            if (self.folder / "state.json").exists():
                space = "free some space and " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
                hint += f"; the last whole round is safe, {space}go on with --resume"
            else:
                hint += "; accepted: a folder, there or not, that can be written"
            raise RecordError(f"{self.folder}: cannot be written: {hint}") from error
