"""Data sets read from files, decoded by the first process that reads them: all others map the same pages.

What was decoded lies as one file in fedsim's cache folder, by default ``mapped`` beside the data sets. Its pages are
in memory once, however many processes and benches read the set (tasks on Ray map the copy in Ray's own store); who writes into a tensor gets a copy of
that page for itself (copy-on-write). The file's name is a hash of what made its content: the data set, its options,
the source files as they lie there, the code that reads them, the versions and the processor that computed. It appears
whole or not at all, a damaged one is written anew, and where none can be written the data set is simply read.

The file is: its checksum, the length of its head, the head as JSON, the arrays. An array starts as ``malloc`` would
place it, 16 bytes after a multiple of 64: how a matrix product rounds depends on where its operands lie, and whether
a data set was mapped shall change no bit of a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import struct
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedsim import runtime
from fedsim.data.examples import DataInfo, Dataset, Examples

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST = 16 << 20
"""Bytes below which a data set is not worth a file."""
UNUSED = 30 * 86400.0
"""Seconds after which a file that nobody has read goes, when another is written."""
START, MULTIPLE = 16, 64
HEAD = struct.Struct("<II")

log = logging.getLogger("fedsim")


def folder() -> Path | None:
    """Where the files lie: ``$FEDSIM_MAPPED``, by default ``mapped`` beside the data sets; None: it is ``off``."""
    from fedsim.data.reading import home

    given = os.environ.get("FEDSIM_MAPPED")
    if given:
        return None if given == "off" else Path(given).expanduser()
    return home("mapped")


def through(key: Hashable, files: Sequence[Path], read: Callable[[], Dataset]) -> Dataset:
    """The data set that ``read`` gives, mapped into memory where it is large and the disk takes it.

    Args:
        key: the data set and its options.
        files: what it is read from.
        read: reads it.
    """
    place = folder()
    if place is None:
        return read()
    file = place / f"{_address(key, files, read)}.data"
    found = _mapped(file)
    if found is not None:
        return found
    data = read()
    arrays = _arrays(data)
    if sum(array.nbytes for array in arrays.values()) < LEAST or any(a.dtype.hasobject for a in arrays.values()):
        return data
    try:
        _write(file, data, arrays)
    except OSError as error:
        log.info("%s: not written, the data set is read in each process: %s", file, error)
        return data
    return _mapped(file) or data


def _address(key: Hashable, files: Sequence[Path], read: Callable[..., Any]) -> str:
    # Archives bring the times of their files along, so that size and time alone take one data set for another's; the
    # time of a file's last change on this disk (ctime) is nobody's to set.
    looks = [(str(file.resolve()), file.stat()) for file in files]
    states = [(name, look.st_size, look.st_mtime_ns, look.st_ctime_ns) for name, look in looks]
    made_by = [np.__version__, torch.__version__, runtime.processor(), _code(read.__module__)]
    return hashlib.sha256(repr([key, states, made_by]).encode()).hexdigest()[:32]


@cache
def _code(module: str) -> str:
    """The hash of this package, and of the module of a reader that is none of ours."""
    sources = set(Path(__file__).parent.glob("*.py"))
    origin = getattr(sys.modules.get(module), "__file__", None)
    if origin is not None:
        sources.add(Path(origin))
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _arrays(data: Dataset) -> dict[str, NDArray[Any]]:
    parts = {"train": data.train, "test": data.test}
    tensors = {f"{name}.{what}": getattr(part, what) for name, part in parts.items() for what in ("inputs", "targets")}
    columns = {f"columns.{name}": np.asarray(column) for name, column in data.columns.items()}
    return {name: tensor.numpy() for name, tensor in tensors.items()} | columns


def _write(file: Path, data: Dataset, arrays: dict[str, NDArray[Any]]) -> None:
    """Write the file, whole or not at all.

    Raises:
        OSError: the folder cannot be written, the disk is full.
    """
    told = {name: [array.dtype.str, array.shape, array.nbytes] for name, array in arrays.items()}
    said = {"info": asdict(data.info), "fingerprint": data.fingerprint, "facts": data.facts, "arrays": told}
    head = json.dumps(said).encode()
    checksum = zlib.crc32(head, len(head))
    file.parent.mkdir(parents=True, exist_ok=True)
    _sweep(file.parent)
    part = file.with_name(f".{file.stem}.{uuid.uuid4().hex}.part")  # two processes may write the same at once
    try:
        with part.open("xb") as stream:
            stream.write(bytes(HEAD.size))
            stream.write(head)
            for array in arrays.values():
                content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                gap = bytes(_start(stream.tell()) - stream.tell())
                checksum = zlib.crc32(content, zlib.crc32(gap, checksum))
                stream.write(gap)
                stream.write(content)
            stream.seek(0)
            stream.write(HEAD.pack(checksum, len(head)))
        part.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _start(position: int) -> int:
    """Where the next array starts."""
    return position + (START - position) % MULTIPLE


def _mapped(file: Path) -> Dataset | None:
    """The data set in this file, its tensors views of the file's pages; None if it is not there, or damaged."""
    try:
        content = np.asarray(np.memmap(file, np.uint8, "c"))
        checksum, length = HEAD.unpack(content[: HEAD.size].tobytes())
        if zlib.crc32(content[HEAD.size :].data, length) != checksum:
            raise ValueError("its checksum is another")
        position = HEAD.size + length
        said = json.loads(content[HEAD.size : position].tobytes())
        arrays: dict[str, NDArray[Any]] = {}
        for name, (dtype, shape, size) in said["arrays"].items():
            position = _start(position)
            arrays[name] = content[position : position + size].view(dtype).reshape(shape)
            position += size
        train, test = (
            Examples(*(torch.from_numpy(arrays[f"{part}.{what}"]) for what in ("inputs", "targets")))
            for part in ("train", "test")
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, struct.error) as error:
        log.info("%s: cannot be used and is written anew: %s", file, error)
        return None
    with contextlib.suppress(OSError):
        os.utime(file)  # when it was last of use
    columns = {name[len("columns.") :]: array for name, array in arrays.items() if name.startswith("columns.")}
    info = DataInfo(**said["info"] | {"shape": tuple(said["info"]["shape"])})
    return Dataset(train, test, info, columns, said["fingerprint"], said["facts"])


def _sweep(place: Path) -> None:
    """Files of data sets, options and versions that nobody has read for long, and what a killed process left."""
    for file in (*place.glob("*.data"), *place.glob(".*.part")):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > UNUSED:
                file.unlink()
