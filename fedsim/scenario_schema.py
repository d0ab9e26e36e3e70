"""JSON Schema of scenario files, by which editors complete and check them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim import registry
from fedsim.scenario_check import SECTIONS
from fedsim.tables import PartSection, Tables, part_fields


def json_schema() -> dict[str, Any]:
    """Tables, keys and, for every part, the registered names with their options."""
    schema = Tables.model_json_schema()
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fedsim scenario"}
    definitions = schema["$defs"]
    definitions.pop("Part", None)
    defaults = Tables().model_dump(exclude_none=True)
    for table, section in SECTIONS.items():
        own = definitions[section.__name__]
        if issubclass(section, PartSection):
            beside, default = list(section.model_fields), defaults[table]["name"]
            own |= {"additionalProperties": True, "allOf": _options(table, beside, default)}
            own["properties"]["name"] |= _names(table)
            schema["properties"][table] = {
                "anyOf": [{"$ref": f"#/$defs/{section.__name__}"}, {"type": "string", **_names(table)}]
            }
        for field, kind, listed in part_fields(section):
            definitions.setdefault(kind, _part(kind))
            if listed:
                shape = {"type": "array", "items": {"$ref": f"#/$defs/{kind}"}, "minItems": len(defaults[table][field])}
            elif field not in defaults[table]:
                shape = {"$ref": f"#/$defs/{kind}"}
            else:
                name = f"{table}.{field}"
                definitions[name] = _part(kind, defaults[table][field]["name"])
                shape = {"$ref": f"#/$defs/{name}"}
            own["properties"][field] = shape | {"description": own["properties"][field].get("description", "")}
            if field in defaults[table]:
                own["properties"][field]["default"] = defaults[table][field]
    values = {"type": "array", "minItems": 1}
    definitions["matrix"] = {
        "type": "object",
        "additionalProperties": {"anyOf": [values, {"$ref": "#/$defs/matrix"}]},
    }
    schema["properties"]["matrix"] |= {"additionalProperties": {"anyOf": [values, {"$ref": "#/$defs/matrix"}]}}
    return schema


def _part(kind: str, default: str | None = None) -> dict[str, Any]:
    table: dict[str, Any] = {
        "type": "object",
        "properties": {"name": {"type": "string", **_names(kind)}},
        "allOf": _options(kind, ["name"], default),
    }
    if default is None:
        table["required"] = ["name"]
    return {"anyOf": [{"type": "string", **_names(kind)}, table]}


def _names(kind: str) -> dict[str, Any]:
    """A registered name, or ``flwr:NAME``, ``file.py:Thing``, ``module:thing``."""
    return {"anyOf": [{"enum": [name for name, _ in registry.iterate(kind)]}, {"pattern": ":"}]}


def _options(kind: str, beside: Sequence[str], default: str | None) -> list[dict[str, Any]]:
    """For each name, its options and no others; without a name, those of the default."""
    return [_when(name, part, beside, name == default) for name, part in registry.iterate(kind)]


def _when(name: str, part: Any, beside: Sequence[str], default: bool) -> dict[str, Any]:
    inner = registry.options_schema(part)
    then = {"properties": dict.fromkeys(beside, True) | inner.get("properties", {}), "additionalProperties": False}
    then |= {"required": inner["required"]} if "required" in inner else {}
    condition: dict[str, Any] = {"properties": {"name": {"const": name}}}
    return {"if": condition if default else condition | {"required": ["name"]}, "then": then}
