"""What is wrong with a scenario: all faults at once.

First the tables: keys, types, ranges, parts and their options. Then what must fit each other: the scenario's own
rules, and each part's ``check(scenario)``, which is shown what the part may know (:mod:`fedsim.scenario_rights`).
What was concluded from a key that is itself at fault is not told.
"""

from __future__ import annotations

import datetime
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fedsim import registry
from fedsim.errors import Fault, FedsimError, KnowledgeError, Said, ScenarioError, nearest, one_line
from fedsim.options import quoted, value_faults
from fedsim.scenario_rights import shown
from fedsim.scenario_rules import rules
from fedsim.tables import Part, PartSection, Section, Tables, part_fields

SECTIONS: dict[str, type[Section]] = {
    name: info.annotation
    for name, info in Tables.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
}
"""Table name → its model."""
DEEPEST = 30
"""Levels of tables and lists in each other."""


def examine(
    data: Mapping[str, Any], assemble: Callable[[dict[str, Any]], Tables]
) -> tuple[dict[str, Any], list[Fault]]:
    """The checked tables, every default filled in, and all that is wrong with them.

    Args:
        data: tables as TOML gives them.
        assemble: makes the scenario that the parts' ``check`` is given, of checked tables.
    """
    examination = _Examination()
    tables = examination.tables(data)
    examination.conclude(assemble(tables))
    return tables, list({fault.line(""): fault for fault in examination.faults}.values())


def flat_matrix(matrix: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, values) of a ``[matrix]``, whose keys TOML splits where they are not quoted."""
    for key, value in matrix.items():
        if isinstance(value, Mapping) and value:
            yield from flat_matrix(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def matrix_fault(values: object) -> str:
    """What a key of a ``[matrix]`` would accept in place of these values; nothing where they are fine."""
    if not isinstance(values, list) or not values:
        return "a list of one value or more"
    shown = [repr(value) for value in values]
    twice = [each for each in dict.fromkeys(shown) if shown.count(each) > 1]
    return f"each value once; {', '.join(twice)} is there twice" if twice else ""


class _Examination:
    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.parts: list[tuple[str, str, Part, bool]] = []

    def tables(self, data: Mapping[str, Any]) -> dict[str, Any]:
        given = self._plain(data, "")
        known = list(Tables.model_fields)
        for key in given:
            if key not in known:
                self._unknown(key, "", given[key], known)
        clean = self._values(
            Tables, {k: v for k, v in given.items() if k in known and k not in {*SECTIONS, "matrix"}}, ""
        )
        self._plug_in(clean.get("plugins", []))
        for name, section in SECTIONS.items():
            clean[name] = self._section(name, section, given.get(name, {}))
        clean["matrix"] = self._matrix(given.get("matrix", {}))
        return clean

    def _plug_in(self, files: Sequence[str]) -> None:
        for position, file in enumerate(files):
            try:
                registry.plug_in(file)
            except FedsimError as error:
                accepted = f"a file that registers parts; {str(error).removeprefix(f'{file}: ')}"
                self.faults.append(Fault(f"plugins[{position}]", file, accepted))

    def conclude(self, scenario: Tables) -> None:
        """Add what does not fit each other."""
        faulty = {_dotted(fault.key) for fault in self.faults}
        doubtful = set(faulty)

        def sound(found: Iterable[Fault]) -> list[Fault]:
            return [
                fault
                for fault in found
                if not _touches(_dotted(fault.key), faulty)
                and not any(_touches(_dotted(key), doubtful) for key in _involved(fault, scenario))
            ]

        for found in (rules(scenario), *(self._asked(*part, scenario, bool(faulty)) for part in self.parts)):
            told = sound(found)
            self.faults += told
            doubtful |= {_dotted(fault.key) for fault in told}

    def _asked(self, key: str, kind: str, part: Part, fine: bool, scenario: Tables, faulty: bool) -> Iterable[Fault]:
        """What a part's ``check`` says of the scenario."""
        if not fine:
            return []
        try:
            check = getattr(registry.make(kind, part.name, **part.options), "check", None)
            found = list(check(shown(scenario, kind)) or ()) if check is not None else []
        except ScenarioError as error:
            found = error.faults
        except KnowledgeError as error:
            return [Fault(key, part.model_dump(), f"a check that keeps to its rights; it reached for {error}")]
        except FedsimError as error:
            return [Fault(key, part.model_dump(), str(error))]
        except Exception as error:
            # With other faults about, the scenario that it was shown is not the one that was meant.
            said = f"a part that can be built and checked; it raised {type(error).__name__}: {one_line(error)}"
            return [] if faulty else [Fault(key, part.model_dump(), said)]
        return [Fault(_rooted(key, fault.key), fault.given, fault.accepted, fault.involves) for fault in found]

    def _section(self, name: str, section: type[Section], given: Any) -> Section:
        own = list(section.model_fields)
        if isinstance(given, str) and issubclass(section, PartSection):
            given = {"name": given}
        if not isinstance(given, Mapping):
            self.faults.append(Fault(name, given, f"a table with the keys {', '.join(own)}"))
            given = {}
        parts = {field: (kind, listed) for field, kind, listed in part_fields(section)}
        values = {key: value for key, value in given.items() if key in own and key not in parts}
        clean = self._values(section, values, f"{name}.")
        rest = {key: value for key, value in given.items() if key not in own}
        if issubclass(section, PartSection):
            part = Part(name=clean.get("name", section().name), options=rest)
            if "name" in clean or "name" not in given:
                part = self._checked(name, name, part, own[1:])
            return section(**{**part.options, **clean, "name": part.name})
        for key in rest:
            self._unknown(key, f"{name}.", rest[key], own)
        for field, (kind, listed) in parts.items():
            default = getattr(section(), field)
            value = given.get(field, default)
            if listed:
                clean[field] = self._list(f"{name}.{field}", kind, value, default)
            elif value is None:
                clean[field] = None
            else:
                clean[field] = self._part(f"{name}.{field}", kind, value, default) or default
        return section(**clean)

    def _list(self, key: str, kind: str, given: Any, default: list[Part]) -> list[Part]:
        if isinstance(given, (str, Mapping)) or not isinstance(given, list):
            self.faults.append(
                Fault(key, given, f"a list of parts, each a name or a table with a name ({_known(kind)})")
            )
            return default
        if not given and default:
            self.faults.append(Fault(key, given, f"at least one, e.g. ['{default[0].name}']"))
            return default
        return [self._part(f"{key}[{i}]", kind, each, None) or Part(name="") for i, each in enumerate(given)]

    def _part(self, key: str, kind: str, given: Any, default: Part | None) -> Part | None:
        """A part; without a ``name`` it is the default one. None where not even its name is known."""
        if isinstance(given, Part):
            given = given.model_dump()
        if isinstance(given, str):
            given = {"name": given}
        if not isinstance(given, Mapping) or (default is None and "name" not in given):
            self.faults.append(Fault(key, given, f"a name, or a table with a 'name' ({_known(kind)})"))
            return None
        name = given.get("name")
        options = {option: value for option, value in given.items() if option != "name"}
        if default is not None and "name" not in given:
            name, options = default.name, {**default.options, **options}
        if not isinstance(name, str):
            self.faults.append(Fault(f"{key}.name", name, f"a string ({_known(kind)})"))
            return None
        return self._checked(key, kind, Part(name=name, options=options))

    def _checked(self, key: str, kind: str, part: Part, beside: Sequence[str] = ()) -> Part:
        try:
            filled, faults = registry.check_options(kind, part.name, part.options, key, beside)
        except Exception as error:
            accepted = f"a {kind} whose options can be read; it raised {type(error).__name__}: {one_line(error)}"
            filled, faults = {}, [Fault(f"{key}.name", part.name, accepted)]
        self.faults += faults
        part = Part(name=part.name, options=filled)
        self.parts.append((key, kind, part, not faults))
        return part

    def _values(self, model: type[BaseModel], given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """Those values that are right, the wrong ones told."""
        try:
            model.model_validate(given)
        except ValidationError as error:
            hints = typing.get_type_hints(model, include_extras=True)
            self.faults += value_faults(error.errors(), given, hints, prefix)
            bad = {str(problem["loc"][0]) for problem in error.errors()}
            return {key: value for key, value in given.items() if key not in bad}
        return dict(given)

    def _matrix(self, given: Any) -> dict[str, list[Any]]:
        if not isinstance(given, Mapping):
            self.faults.append(Fault("matrix", given, "a table: key → list of values"))
            return {}
        flat = dict(flat_matrix(given))
        wrong = {key: fault for key, value in flat.items() if (fault := matrix_fault(value))}
        for key, fault in wrong.items():
            self.faults.append(Fault(f"matrix.{quoted(key)}", flat[key], fault))
        return {key: value for key, value in flat.items() if key not in wrong}

    def _unknown(self, key: str, prefix: str, given: Any, known: Sequence[str]) -> None:
        homes = [f"{name}.{key}" for name, section in SECTIONS.items() if key in section.model_fields]
        homes += [key] if key in Tables.model_fields and not nearest(key, known, 0.8) else []
        hint = f" (did you mean '{homes[0]}'?)" if homes else nearest(key, known)
        self.faults.append(Fault(prefix + quoted(key), given, f"no such key{hint}; keys here: {', '.join(known)}"))

    def _plain(self, given: Mapping[Any, Any], key: str) -> dict[str, Any]:
        """Tables of what TOML knows; the rest is told and left out."""
        clean = {}
        for name, value in given.items():
            found = self._value(value, f"{key}.{quoted(str(name))}" if key else quoted(str(name)))
            if found is not _WRONG:
                clean[str(name)] = found
        return clean

    def _value(self, value: Any, key: str) -> Any:
        if value is None:
            return _WRONG
        if isinstance(value, BaseModel):
            value = value.model_dump()
        elif type(value).__module__ == "numpy" and hasattr(value, "tolist"):
            value = value.tolist()
        if key.count(".") + key.count("[") > DEEPEST:
            return self._wrong(key, Said("a deeper one"), f"tables and lists at most {DEEPEST} deep in each other")
        if isinstance(value, Mapping):
            return self._plain(value, key)
        if isinstance(value, (list, tuple)):
            found = [self._value(each, f"{key}[{position}]") for position, each in enumerate(value)]
            return _WRONG if any(each is _WRONG for each in found) else found
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return self._wrong(key, Said(f"a number of {value.bit_length()} bits"), "a number of 64 bits")
        if isinstance(value, (str, int, float, datetime.date, datetime.time)):
            return value
        return self._wrong(key, value, "what TOML can say: strings, numbers, true, false, lists, tables")

    def _wrong(self, key: str, given: Any, accepted: str) -> Any:
        self.faults.append(Fault(key, given, accepted))
        return _WRONG


_WRONG = object()


def _known(kind: str) -> str:
    return ", ".join(registry.names(kind))


def _rooted(part: str, key: str) -> str:
    """The key of a part's fault: relative to the part, or from the root with a slash before it."""
    return key[1:] if key.startswith("/") else f"{part}.{key}" if key else part


def _involved(fault: Fault, scenario: Tables) -> list[str]:
    involved = [key.removeprefix("/") for key in fault.involves]
    if "client.per_round" in involved and isinstance(scenario.client.per_round, float):
        involved.append("data.clients")
    return involved


def _dotted(key: str) -> str:
    return key.replace("[", ".").replace("]", "")


def _touches(key: str, others: Iterable[str]) -> bool:
    """Whether one of the others is this key, above it or below it."""
    return any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in others)
