"""The scenario: one file that tells the whole experiment.

Its tables are in :mod:`fedsim.tables`; :mod:`fedsim.scenario_file` reads them, :mod:`fedsim.scenario_check` finds all
that is wrong with them at once, each fault one line, :mod:`fedsim.scenario_schema` describes them to editors.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fedsim.errors import Fault, ScenarioError
from fedsim.scenario_check import examine, flat_matrix, matrix_fault
from fedsim.scenario_file import override, read, read_with_faults, toml_value
from fedsim.scenario_schema import json_schema
from fedsim.tables import Part, Tables


class Scenario(Tables):
    """A whole experiment, checked: every part exists, every option is valid, the parts fit each other.

    Raises:
        ScenarioError: all faults at once, one line each.
    """

    def __init__(self, /, **data: Any) -> None:
        tables, faults = examine(data, Scenario._assembled)
        if faults:
            raise ScenarioError(faults)
        super().__init__(**tables)

    @classmethod
    def load(cls, file: str | Path, overrides: Mapping[str, Any] | None = None, sets: Sequence[str] = ()) -> Scenario:
        """Read a TOML file, or a scenario that ships with fedsim by its name.

        Args:
            file: path, or a name out of ``fedsim list scenario``.
            overrides: dotted key (or nested table) → value.
            sets: ``key=VALUE`` as on the command line; VALUE is TOML, a bare word is a string.

        Raises:
            ScenarioError: the file is missing, not TOML, or at fault.
        """
        data, faults = read_with_faults(file, overrides, sets)
        return cls._checked(data, str(file), faults)

    def table(self) -> dict[str, Any]:
        """The resolved scenario as nested tables, every default written out; what is None is left out."""
        empty = {name for name in ("matrix", "plugins") if not getattr(self, name)}
        empty |= set() if self.observe.observers else {"observe"}
        return cast("dict[str, Any]", _toml_values(self.model_dump(exclude=empty)))

    def toml(self) -> str:
        """The resolved scenario as TOML; it loads again to an equal scenario."""
        import tomli_w

        return tomli_w.dumps(self.table())

    def changed(self, **tables: Any) -> Scenario:
        """The same scenario with other values: ``scenario.changed(rounds=5, **{"server.limit": 1e6})``."""
        return Scenario(**override(self.table(), tables))

    @classmethod
    def _checked(cls, data: Mapping[str, Any], where: str, before: Sequence[Fault] = ()) -> Scenario:
        try:
            scenario = cls(**data)
        except ScenarioError as error:
            raise ScenarioError([*before, *error.faults], where) from None
        if before:
            raise ScenarioError(before, where)
        return scenario

    @classmethod
    def _assembled(cls, tables: dict[str, Any]) -> Scenario:
        return cls.model_construct(**tables)


def cells(data: Mapping[str, Any], where: str) -> list[tuple[dict[str, Any], Scenario]]:
    """The product of a ``[matrix]``: (the cell's keys and values, its scenario).

    Args:
        data: tables as :func:`read` gives them.
        where: the file, for messages.

    Raises:
        ScenarioError: the faults of all cells at once.
    """
    matrix: Any = data.get("matrix", {})
    flat = dict(flat_matrix(matrix)) if isinstance(matrix, Mapping) else {}
    if not isinstance(matrix, Mapping) or any(map(matrix_fault, flat.values())):
        return [({}, Scenario._checked(data, where))]
    base = {key: value for key, value in data.items() if key != "matrix"}
    found, faults = [], dict[str, Fault]()
    for values in itertools.product(*flat.values()):
        cell = dict(zip(flat, values, strict=True))
        try:
            found.append((cell, Scenario._checked(_calm(override(base, cell), cell), where)))
        except ScenarioError as error:
            for fault in error.faults:
                unknown = fault.accepted.startswith("no such")
                faults.setdefault(f"{fault.key} {fault.accepted}" if unknown else fault.line(where), fault)
    if faults:
        raise ScenarioError(list(faults.values()), where)
    return found


def _calm(tables: dict[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell whose matrix names no attack is the run without attack: nobody holds clients in it."""
    adversary = tables.get("adversary")
    if cell.get("adversary.attacks") != [] or not isinstance(adversary, Mapping):
        return tables
    held = {name: 0 for name in ("fraction", "count") if name in adversary and f"adversary.{name}" not in cell}
    return {**tables, "adversary": {**adversary, **held}}


def _toml_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _toml_values(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [_toml_values(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


__all__ = ["Part", "Scenario", "cells", "json_schema", "override", "read", "toml_value"]
