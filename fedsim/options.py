"""Options of parts: which there are, what they mean, what they accept.

The options of a class are its dataclass fields (or the parameters of its own ``__init__``), those of a function its
keyword-only parameters. Their meanings stand in the ``Args:`` section of the part's docstring, the part's source in
the last paragraph of its module's. Values are checked strictly: 1 is no bool, "1" no int, nan no float; a list
stands for a tuple, since TOML knows no tuples.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from fedsim.errors import NOTHING, Fault, FedsimError, nearest, one_line

STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=()
)


@dataclass(frozen=True)
class Option:
    """One option of a part: name, type, default (``MISSING`` where it must be given), constraints, meaning."""

    name: str
    annotation: Any
    default: Any
    meaning: str = ""
    factory: Callable[[], Any] | None = field(default=None, compare=False)

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING and self.factory is None

    @property
    def shown_default(self) -> str:
        if self.factory is not None:
            return repr(self.factory())
        return "required" if self.required else repr(self.default)

    @property
    def shown_type(self) -> str:
        return type_name(self.annotation)


def options(part: Any) -> list[Option]:
    """The options of a part, in the order in which it declares them; a base says what those mean that it declares.

    Raises:
        FedsimError: a type of an option is not known where the part stands.
    """
    owners = reversed(part.__mro__) if inspect.isclass(part) else (part,)
    meanings = {name: said for each in owners for name, said in _meanings(inspect.getdoc(each) or "").items()}
    if inspect.isclass(part) and "__dataclass_fields__" in vars(part):
        hints = _hints(part, part)
        found = []
        for each in dataclasses.fields(typing.cast(Any, part)):
            if not each.init:
                continue
            factory = None if each.default_factory is dataclasses.MISSING else each.default_factory
            meaning = meanings.get(each.name, "")
            found.append(Option(each.name, hints.get(each.name, Any), each.default, meaning, factory))
        return found
    function = part.__init__ if inspect.isclass(part) else part
    hints = _hints(function, part)
    by_name: set[Any] = {inspect.Parameter.KEYWORD_ONLY}
    if inspect.isclass(part):
        by_name.add(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        Option(
            parameter.name,
            hints.get(parameter.name, Any),
            dataclasses.MISSING if parameter.default is parameter.empty else parameter.default,
            meanings.get(parameter.name, ""),
        )
        for position, parameter in enumerate(inspect.signature(function).parameters.values())
        if parameter.kind in by_name and not (inspect.isclass(part) and position == 0)
    ]


def summary(part: Any) -> str:
    """First sentence of a part's docstring."""
    return (inspect.getdoc(part) or "").split("\n\n")[0].replace("\n", " ")


def source(part: Any) -> str:
    """The paper or project a part comes from: the last paragraph of its module's docstring, or its own ``Source:``."""
    own = re.search(r"Source: (.+?)(?:\n\n|\Z)", inspect.getdoc(part) or "", re.DOTALL)
    if own:
        return " ".join(own.group(1).split())
    module = sys.modules.get(getattr(part, "__module__", ""), None)
    paragraphs = [p for p in (inspect.getdoc(module) or "").split("\n\n") if p.strip()] if module else []
    return " ".join(paragraphs[-1].split()) if len(paragraphs) > 1 else ""


def check(
    part: Any, given: Mapping[str, Any], prefix: str = "", beside: Sequence[str] = ()
) -> tuple[dict[str, Any], list[Fault]]:
    """The options with their defaults filled in, and what is wrong with them (their keys after ``prefix``).

    Where something is wrong, the options are those given that are right. ``beside`` names the keys that may stand in
    the same table without being options.
    """
    known = {option.name: option for option in options(part)}
    names = [*beside, *known]
    faults = [
        Fault(
            prefix + quoted(unknown),
            given[unknown],
            f"no such option{nearest(unknown, names)}; options: {', '.join(names) or 'none'}",
        )
        for unknown in given
        if unknown not in known
    ]
    right = {name: value for name, value in given.items() if name in known}
    try:
        checked = _options_model(part).model_validate(right)
    except ValidationError as error:
        annotations = {name: option.annotation for name, option in known.items()}
        wrong = value_faults(error.errors(), right, annotations, prefix)
        bad = {str(problem["loc"][0]) for problem in error.errors()}
        return {name: value for name, value in right.items() if name not in bad}, faults + wrong
    return {name: getattr(checked, f"option_{position}") for position, name in enumerate(known)}, faults


def value_faults(
    problems: Sequence[ErrorDetails], given: Mapping[str, Any], annotations: Mapping[str, Any], prefix: str = ""
) -> list[Fault]:
    """pydantic's errors as faults, one for each key: what stands there, what its type accepts."""
    faults: dict[str, Fault] = {}
    for problem in problems:
        name, *below = problem["loc"]
        key, value, annotation = quoted(str(name)), given.get(str(name)), annotations[str(name)]
        if problem["type"] == "missing" and not below:
            faults[key] = Fault(prefix + key, NOTHING, f"{accepted(annotation)} (it has no default)")
            continue
        for piece in below:
            inner = _inner(annotation, piece)
            if inner is None:
                break
            if isinstance(value, (list, tuple)) and isinstance(piece, int) and piece < len(value):
                key, value, annotation = f"{key}[{piece}]", value[piece], inner
            elif isinstance(value, Mapping) and piece in value:
                key, value, annotation = f"{key}.{quoted(str(piece))}", value[piece], inner
            else:
                break
        own_words = problem["type"] in ("value_error", "assertion_error")
        what = _plain(problem) if own_words else accepted(annotation)
        if isinstance(value, str):
            what += nearest(value, [each for each in _choices(annotation) if isinstance(each, str)])
        faults.setdefault(key, Fault(prefix + key, value, what))
    return list(faults.values())


def quoted(piece: str) -> str:
    """A piece of a dotted key, in quotes where TOML wants them."""
    import json

    return piece if re.fullmatch(r"[A-Za-z0-9_-]+", piece) else json.dumps(piece, ensure_ascii=False)


def accepted(annotation: Any) -> str:
    """What a type accepts, as a phrase for people who write TOML."""
    shown = [_named(each, _WORDS) for each in _branches(annotation)]
    return " or ".join(shown)


def type_name(annotation: Any) -> str:
    """A type as it stands in the code, with its bounds: ``int ≥ 1``."""
    return _named(annotation, {})


def options_schema(part: Any) -> dict[str, Any]:
    """JSON Schema of a part's options."""
    schema: dict[str, Any] = _options_model(part).model_json_schema()
    for option in options(part):
        if option.meaning and option.name in schema.get("properties", {}):
            schema["properties"][option.name]["description"] = option.meaning
    return schema


def _hints(where: Any, part: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(where, include_extras=True)
    except NameError as error:
        name = getattr(part, "__qualname__", part)
        raise FedsimError(f"{name}: an option's type is not known where the class stands: {error}") from error
    except (TypeError, AttributeError):
        return {}


@lru_cache(maxsize=512)
def _options_model(part: Any) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for position, option in enumerate(options(part)):
        if option.factory is not None:
            told = Field(default_factory=option.factory, alias=option.name)
        elif option.required:
            told = Field(alias=option.name)
        else:
            told = Field(option.default, alias=option.name)
        fields[f"option_{position}"] = (_toml_types(option.annotation), told)
    return create_model(f"{getattr(part, '__name__', 'Part')}Options", __config__=STRICT, **fields)


def _toml_types(annotation: Any) -> Any:
    """The type, with lists taken for tuples and strings for paths at any depth."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Path:
        return Annotated[Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)]
    if origin is Annotated:
        return Annotated[(_toml_types(arguments[0]), *arguments[1:])]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_toml_types(each) for each in arguments)]  # noqa: UP007
    if origin is tuple:
        inner: Any = tuple.__class_getitem__(tuple(each if each is ... else _toml_types(each) for each in arguments))
        return Annotated[inner, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
    if origin in (list, dict) and arguments:
        return origin[tuple(_toml_types(each) for each in arguments)]
    return annotation


def _meanings(doc: str) -> dict[str, str]:
    """Option → its line in the ``Args:`` section of a Google-style docstring."""
    match = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.DOTALL | re.MULTILINE)
    if not match:
        return {}
    found: dict[str, str] = {}
    current = ""
    for line in match.group(1).splitlines():
        start = re.match(r"^    (\w+)(?: \([^)]*\))?: (.*)$", line)
        if start:
            current = start.group(1)
            found[current] = start.group(2).strip()
        elif current and line.strip():
            found[current] += " " + line.strip()
    return found


_WORDS = {"str": "a string", "bool": "true or false", "dict": "a table", "list": "a list", "NoneType": "nothing"}


def _named(annotation: Any, words: Mapping[str, str]) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        shown = [text for text in (_constraint(each) for each in arguments[1:]) if text]
        return f"{_named(arguments[0], words)} {', '.join(shown)}".strip()
    if origin is typing.Literal:
        return (", " if words else " | ").join(repr(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return (" or " if words else " | ").join(_named(each, words) for each in arguments)
    if isinstance(origin, type) and arguments:
        inner = ["…" if each is ... else _named(each, words) for each in arguments]
        if not words:
            return f"{origin.__name__}[{', '.join(inner)}]"
        if origin is dict:
            return f"a table of {inner[1]}"
        if origin is tuple and "…" not in inner:
            return f"a list [{', '.join(inner)}]"
        return f"a list of {inner[0]}" if origin in (list, tuple) else f"{origin.__name__} of {', '.join(inner)}"
    if annotation is type(None):
        return words.get("NoneType", "none")
    if isinstance(annotation, type):
        return words.get(annotation.__name__, annotation.__name__)
    return re.sub(r"\b(typing|collections\.abc|pydantic\.types)\.", "", str(annotation))


def _branches(annotation: Any) -> list[Any]:
    """The members of a union, without None, which TOML cannot say."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [each for each in typing.get_args(annotation) if each is not type(None)]
    return [annotation]


def _inner(annotation: Any, piece: int | str) -> Any:
    """The type of an element; None for unions, of which pydantic tells every member, and where there are none."""
    members = _branches(annotation)
    if len(members) > 1:
        return None
    bare = typing.get_args(members[0])[0] if typing.get_origin(members[0]) is Annotated else members[0]
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin is dict:
        return arguments[1]
    if origin is tuple and ... not in arguments and isinstance(piece, int) and piece < len(arguments):
        return arguments[piece]
    return arguments[0] if origin in (list, tuple) and arguments else None


def _choices(annotation: Any) -> list[Any]:
    return [
        value
        for each in _branches(annotation)
        if typing.get_origin(each) is typing.Literal
        for value in typing.get_args(each)
    ]


def _constraint(constraint: Any) -> str:
    pieces, least, most = [], 0, None
    for each in getattr(constraint, "metadata", [constraint]):
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            bound = getattr(each, attribute, None)
            if bound is not None:
                pieces.append(f"{sign} {bound}")
        factor = getattr(each, "multiple_of", None)
        if factor is not None:
            pieces.append(f"a multiple of {factor}")
        least = getattr(each, "min_length", None) or least
        most = getattr(each, "max_length", most)
    if least or most is not None:
        span = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        pieces.append(f"({span} of them)")
    return ", ".join(pieces)


def _plain(problem: ErrorDetails) -> str:
    """What a validator of a part's own says is accepted."""
    message = re.sub(r"^(Value|Assertion) error, ", "", one_line(problem["msg"]))
    return message[:1].lower() + message[1:] if message[:1].isupper() and not message[:2].isupper() else message
