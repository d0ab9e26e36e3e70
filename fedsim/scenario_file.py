"""Reading scenario files: TOML, and overrides by dotted key."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim import registry
from fedsim.errors import Fault, ScenarioError, nearest
from fedsim.tables import Tables

_KEY = re.compile(r"[^.\[\]]+(\[\d+\]|\.[^.\[\]]+)*")
_EXAMPLE = "server.defenses[0].keep"


def read(file: str | Path, overrides: Mapping[str, Any] | None = None, sets: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a scenario file with overrides applied, otherwise unchecked.

    Args:
        file: path, or the name of a scenario that ships with fedsim.
        overrides: dotted key (or nested table) → value.
        sets: ``key=VALUE`` as on the command line.

    Raises:
        ScenarioError: the file is missing or not TOML; all overrides that name no place in it.
    """
    data, faults = read_with_faults(file, overrides, sets)
    if faults:
        raise ScenarioError(faults, str(file))
    return data


def read_with_faults(
    file: str | Path, overrides: Mapping[str, Any] | None = None, sets: Sequence[str] = ()
) -> tuple[dict[str, Any], list[Fault]]:
    """As :func:`read`, with the faults of the overrides handed back.

    Raises:
        ScenarioError: the file is missing or not TOML.
    """
    data, faults = _tables(file), list[Fault]()
    changes = list((overrides or {}).items())
    for text in sets:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            faults.append(Fault("--set", text, "KEY=VALUE, e.g. server.optimizer.lr=0.5"))
        else:
            changes.append((key.strip(), toml_value(value.strip())))
    for change in changes:
        try:
            data = override(data, dict([change]))
        except ScenarioError as error:
            faults += error.faults
    return data, faults


def _tables(file: str | Path) -> dict[str, Any]:
    path, shipped = Path(file).expanduser(), registry.shipped_scenarios()
    name = str(file).removesuffix(".toml")
    accepted = f"a TOML file, or one of: {', '.join(shipped)}{_nearest(name, shipped)}"
    try:
        if not path.is_file() and name in shipped:
            path = shipped[name]
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        given = f"{file} (a folder)" if path.is_dir() else str(file)
        raise ScenarioError([Fault("FILE", given, accepted)], str(file)) from error
    except OSError as error:
        raise ScenarioError([Fault("FILE", str(file), f"{accepted}; {error.strerror}")], str(file)) from error
    except (ValueError, RecursionError) as error:
        raise ScenarioError([Fault("FILE", str(file), _no_toml(error))], str(file)) from error


def _nearest(name: str, shipped: Iterable[str]) -> str:
    """A shipped scenario in a folder whose last part is this name, else one that is written like it."""
    same = [each for each in shipped if "/" in each and each.rpartition("/")[2] == name]
    return f" (did you mean '{same[0]}'?)" if same else nearest(name, shipped)


def _no_toml(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "TOML with tables and lists less deep in each other"
    if isinstance(error, UnicodeDecodeError):
        return f"TOML in UTF-8; byte {error.start} is none"
    return "TOML with numbers of 64 bits" if "digits" in str(error) else f"TOML; {error}"


def toml_value(text: str) -> Any:
    """A TOML value; a bare word is a string."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if set(table) == {"value"} else text


def override(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested tables with dotted keys set; ``server.defenses[0].keep`` or ``….0.keep`` reaches into lists.

    A table without a ``name`` is merged into the one that is there, one with a name (another part) replaces it.

    Raises:
        ScenarioError: a key leads below something that is no table, or beyond the end of a list.
    """
    result = copy.deepcopy(dict(data))
    for key, value in changes.items():
        if not _KEY.fullmatch(key):
            raise ScenarioError([Fault(key or "''", value, f"a key with dots, e.g. {_EXAMPLE}")])
        _set(result, re.findall(r"[^.\[\]]+", key), value, key)
    return result


def _set(table: dict[str, Any], pieces: list[str], value: Any, key: str) -> None:
    here: Any = table
    for position, piece in enumerate(pieces):
        index = _position(here, piece, ".".join(pieces[:position]), value, key) if isinstance(here, list) else piece
        if position == len(pieces) - 1:
            _place(here, index, value, key)
            return
        if isinstance(here, dict) and index not in here:
            here[index] = _default_list(pieces[: position + 1]) if pieces[position + 1].isdigit() else {}
        if isinstance(here[index], str):
            here[index] = {"name": here[index]}
        if not isinstance(here[index], (dict, list)):
            above = ".".join(pieces[: position + 1])
            raise ScenarioError([Fault(key, value, f"a key below a table; '{above}' is none")])
        here = here[index]


def _place(here: Any, index: Any, value: Any, key: str) -> None:
    there = here.get(index) if isinstance(here, dict) else here[index]
    if isinstance(value, Mapping) and isinstance(there, dict) and "name" not in value:
        for inner, inner_value in value.items():
            _place(there, str(inner), inner_value, f"{key}.{inner}")
    else:
        here[index] = copy.deepcopy(value)


def _position(here: list[Any], piece: str, above: str, value: Any, key: str) -> int:
    if piece.isdecimal() and int(piece) < len(here):
        return int(piece)
    there = f"a position from 0 to {len(here) - 1}" if here else "no position, the list is empty"
    raise ScenarioError([Fault(key, value, f"{there} in place of '{piece}' in '{above}'")])


def _default_list(pieces: Sequence[str]) -> Any:
    here: Any = Tables().model_dump()
    for piece in pieces:
        here = here.get(piece) if isinstance(here, dict) else None
    return here if isinstance(here, list) else {}
