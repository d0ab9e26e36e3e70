"""Docstrings as the site shows them: roles of Sphinx as code, examples with ``>>>`` and tables as blocks of code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

ROLE = re.compile(r":(?:class|func|meth|mod|data):(`[^`]+`)")
TABLE = re.compile(r"^=+ +=[= ]*$.*^=+ +=[= ]*$", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"(?:^>>> .*\n?)+", re.MULTILINE)


class Docstrings(Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        if not obj.is_alias and obj.docstring:
            text = EXAMPLE.sub(lambda found: f"```python\n{found[0].rstrip()}\n```\n", obj.docstring.value)
            text = TABLE.sub(lambda found: f"```text\n{found[0].replace('``', '')}\n```", text)
            obj.docstring.value = ROLE.sub(r"\1", text)
