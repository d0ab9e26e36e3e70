"""Packages whose names are imported on first use, where a function may be called as the file that it lives in.

Importing a submodule binds it in its package under its own name; in a room, a file's namesake is bound instead:
``fedsim.analysis.coherence`` is the function, whoever imported the file before.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """A package with names that are imported on first use; see :func:`furnish`."""

    _homes: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._homes:
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        setattr(self, name, importlib.import_module(self._homes[name]))
        return vars(self)[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and self._homes.get(name) == value.__name__:
            value = vars(value).get(name, value)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})


def furnish(package: str, homes: Mapping[str, str]) -> None:
    """Let a package offer names by need: each is imported from its home, or is its home where that has no such name."""
    module = sys.modules[package]
    vars(module)["_homes"] = dict(homes)
    module.__class__ = Room
