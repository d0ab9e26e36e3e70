"""What a claim's result hangs on: the code that its function reaches, and the parts that its paper names.

Not the whole file, so that another figure, another claim or another tolerance does not throw away hours of results:
the function without its ``@claim(…)``, the definitions of its module that it names, and those that they name, through
imports within ``fedsim.verify``, too; the scenarios of the papers that they read. Comments do not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fedsim
from fedsim.scenario import read

ROOM = "fedsim.verify"


def fingerprint(measure: Callable[..., Any], parts: Sequence[str] = ()) -> str:
    """The sha256 of fedsim's version, of the code and scenarios that the function reaches, and of these modules' files.

    Args:
        measure: the function.
        parts: names of modules, whose whole files count.
    """
    digest = hashlib.sha256(fedsim.__version__.encode())
    for text in _reached(measure):
        digest.update(text.encode())
        for scenario in re.findall(r"'(papers/\w+)'", text):
            digest.update(json.dumps(read(scenario), sort_keys=True, default=str).encode())
    for name in parts:
        digest.update(_file_hash(name))
    return digest.hexdigest()


def _reached(measure: Callable[..., Any]) -> list[str]:
    seen: dict[tuple[str, str], str] = {}
    if measure.__qualname__ != measure.__name__:
        return [textwrap.dedent(inspect.getsource(measure))]

    def reach(module: str, name: str) -> None:
        node = _definitions(module).get(name)
        if node is None or (module, name) in seen:
            return
        seen[module, name] = ast.unparse(_bare(node))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOM):
            reach(node.module or "", node.names[0].name)
        for each in _names(_bare(node)):
            reach(module, each)

    reach(measure.__module__, measure.__name__)
    return [f"{module}.{name}\n{text}\n" for (module, name), text in sorted(seen.items())]


@cache
def _definitions(module: str) -> dict[str, ast.stmt]:
    """The statements at the top of a module by the names that they bind."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(inspect.getsource(importlib.import_module(module))).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Import):
            found |= {(each.asname or each.name).partition(".")[0]: ast.Import([each]) for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            alone = {each: ast.ImportFrom(node.module, [each], node.level) for each in node.names}
            found |= {each.asname or each.name: statement for each, statement in alone.items()}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= dict.fromkeys((name for each in targets for name in _names(each)), node)
    return found


def _bare(node: ast.stmt) -> ast.stmt:
    """A claim's function without what is expected of it, and without its docstring."""
    if not isinstance(node, ast.FunctionDef):
        return node
    body = node.body[1:] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body
    kept = [each for each in node.decorator_list if "claim" not in _names(each)]
    copy = ast.FunctionDef(node.name, node.args, body, kept, node.returns, node.type_comment)
    return ast.copy_location(copy, node)


def _names(node: ast.AST) -> Iterator[str]:
    return (each.id for each in ast.walk(node) if isinstance(each, ast.Name))


@cache
def _file_hash(module: str) -> bytes:
    file = importlib.import_module(module).__file__
    assert file is not None
    return hashlib.sha256(Path(file).read_bytes()).digest()
