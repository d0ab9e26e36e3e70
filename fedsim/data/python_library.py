"""Python's own standard library as text: the next character of a window, a client for each package.

A package's sources, one after the other and cut at a number of characters, are codes: 0 to 94 the printable ones of
ASCII, 95 all else, 96 the line's end. An example is a window of ``context`` codes, its label the character behind it,
as in LEAF's Shakespeare. The first nine tenths of each package are for training, the last one for the test; no window
reaches over a border. Column ``package`` says which one a window is of.

The text is always at hand, and differs between versions of Python: ``facts`` has its sha256.

The form: Caldas et al., "LEAF: a benchmark for federated settings", 2018, 1812.01097.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.reading import dataset_of, read_once
from fedsim.errors import DataMissing, Fault, FedsimError
from fedsim.registry import register

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGES = (
    "asyncio", "concurrent", "email", "html", "http", "importlib", "json", "logging", "multiprocessing", "urllib",
)  # fmt: skip
VOCABULARY = 97
"""Printable ASCII, one for all else, and the line's end."""


@register("dataset", "python_library")
class PythonLibrary:
    """Python's standard library, character by character; ``partition = { name = "natural", column = "package" }``.

    Args:
        packages: of the standard library, each a folder of sources.
        characters: of a package at the most; one beyond ASCII counts by its bytes.
        context: characters of a window.
        stride: characters from the start of a window to that of the next one.
    """

    packages: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: list(PACKAGES))
    characters: Annotated[int, Field(ge=1)] = 200_000
    context: Annotated[int, Field(ge=1)] = 64
    stride: Annotated[int, Field(ge=1)] = 8

    def check(self, scenario: Any) -> Iterable[Fault]:
        """Packages that are none, are there twice, or too short for a window."""
        root = _root()
        if len(set(self.packages)) < len(self.packages):
            yield Fault("packages", self.packages, "packages that differ")
        for name in dict.fromkeys(self.packages):
            if not _sources(name):
                accepted = f"packages of Python's standard library, of which {root} has no '{name}'"
                yield Fault("packages", self.packages, accepted)
            elif self._windows(self._held(self._length(name))) < 1:
                accepted = f"less than a tenth of each package: '{name}' has {self._length(name)} characters"
                yield Fault("context", self.context, accepted)

    def info(self) -> DataInfo:
        lengths = [self._length(name) for name in self.packages]
        train = sum(self._windows(length - self._held(length)) for length in lengths)
        test = sum(self._windows(self._held(length)) for length in lengths)
        return DataInfo((self.context,), VOCABULARY, train, test, VOCABULARY)

    def load(self) -> Dataset:
        faults = list(self.check(None))
        if faults:
            raise FedsimError("; ".join(fault.line("python_library") for fault in faults))
        key = ("python_library", tuple(self.packages), self.characters, self.context, self.stride)
        return read_once(key, self._read, [file for name in self.packages for file in _sources(name)])

    def _read(self) -> Dataset:
        digest = hashlib.sha256()
        train, test, held = [], [], []
        for name in self.packages:
            raw = b"".join(file.read_bytes() for file in _sources(name))[: self.characters]
            digest.update(name.encode() + raw)
            codes = codes_of(raw)
            border = len(codes) - self._held(len(codes))
            train.append(self._cut(codes[:border]))
            test.append(self._cut(codes[border:]))
            held.append(len(train[-1]))
        windows, rest = np.concatenate(train), np.concatenate(test)
        return dataset_of(
            windows[:, :-1],
            windows[:, -1],
            rest[:, :-1],
            rest[:, -1],
            columns={"package": np.repeat(self.packages, held)},
            num_classes=VOCABULARY,
            vocabulary=VOCABULARY,
            facts={"text": f"Python {platform.python_version()}, sha256 {digest.hexdigest()}"},
            where="python_library",
        )

    def _length(self, package: str) -> int:
        """Characters that are taken of a package, told by its files' sizes."""
        return min(sum(file.stat().st_size for file in _sources(package)), self.characters)

    def _held(self, length: int) -> int:
        """How many of them are for the test."""
        return length - 9 * length // 10

    def _windows(self, length: int) -> int:
        """Windows in so many characters."""
        return len(range(0, length - self.context, self.stride))

    def _cut(self, codes: NDArray[np.int32]) -> NDArray[np.int32]:
        """(windows, context + 1) codes, the label last."""
        return np.lib.stride_tricks.sliding_window_view(codes, self.context + 1)[:: self.stride]


def codes_of(raw: bytes) -> NDArray[np.int32]:
    """(n,) codes of a text's bytes."""
    given = np.frombuffer(raw, dtype=np.uint8).astype(np.int32)
    plain = np.where((given >= 32) & (given < 127), given - 32, 95)
    return np.where(given == 10, 96, plain).astype(np.int32)


def _root() -> Path:
    """Where the standard library's sources lie.

    Raises:
        DataMissing: this Python has none.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    if not root.is_dir():
        raise DataMissing(f"python_library: looked for the sources of Python's standard library in {root}, no folder")
    return root


def _sources(package: str) -> list[Path]:
    """A package's files, without its tests; none of what is no package of the standard library."""
    if package not in sys.stdlib_module_names:
        return []
    place = _root() / package
    return [file for file in sorted(place.rglob("*.py")) if "test" not in file.relative_to(place).parts]
