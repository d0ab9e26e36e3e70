"""Conformance suites: the checks that every part passes, for the authors of plug-ins as for fedsim's own.

>>> from fedsim.testing import conforms
>>> conforms("my_attack.py")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.testing.plugin import conforms

__all__ = ["conforms"]


def __getattr__(name: str) -> Any:
    if name == "conforms":
        from fedsim.testing.plugin import conforms

        return conforms
    raise AttributeError(f"module 'fedsim.testing' has no attribute '{name}'")
