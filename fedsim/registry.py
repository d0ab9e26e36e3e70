"""Parts by name: attacks, defenses, data sets, models, optimizers and all else that a scenario names.

A part is a class (it becomes a keyword-only dataclass whose fields are its options) or a function (its
keyword-only parameters are its options), registered under a kind and a name::

    @register("attack", "sign_flip")
    class SignFlip(Attack): ...

``name`` in a scenario is a registered name, ``flwr:FedMedian`` (a stock Flower part), ``my_attack.py:MyAttack``
(a file of the user's) or ``package.module:Thing``. Installed packages add parts through the entry point groups
``fedsim.attacks``, ``fedsim.defenses``, ….
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, dataclass_transform

from fedsim.errors import Fault, FedsimError, ScenarioError, nearest

HOMES: dict[str, tuple[str, ...]] = {
    "attack": ("attacks",),
    "defense": ("strategies",),
    "estimator": ("strategies",),
    "server_optimizer": ("strategies",),
    "optimizer": ("fedsim.optim",),
    "loss": ("fedsim.losses",),
    "regularizer": ("fedsim.losses",),
    "step_control": ("fedsim.optim",),
    "adapter": ("fedsim.losses",),
    "analysis": ("fedsim.analysis",),
    "task": ("fedsim.data",),
    "dataset": ("fedsim.data",),
    "augmentation": ("fedsim.data",),
    "model": ("fedsim.models",),
    "partition": ("fedsim.data",),
    "sampler": ("strategies",),
    "schedule": ("attacks",),
    "lr_schedule": ("fedsim.optim",),
    "trigger": ("attacks",),
    "observer": ("attacks",),
    "tracker": ("fedsim.report",),
    "engine": ("fedsim.grids",),
    "scenario": (),
}
"""Where the parts of a kind live: every module of these packages is imported when the kind is first asked for."""

_parts: dict[str, dict[str, Any]] = {kind: {} for kind in HOMES}
_loaded: set[str] = set()
T = TypeVar("T")


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
        return _type_name(self.annotation)


@dataclass_transform(kw_only_default=True)
def register(kind: str, name: str) -> Callable[[T], T]:
    """Decorator: the class or function becomes the part ``name`` of ``kind``."""
    if kind not in _parts:
        raise FedsimError(f"unknown kind '{kind}'; kinds: {', '.join(sorted(_parts))}{nearest(kind, _parts)}")

    def decorate(part: T) -> T:
        if inspect.isclass(part) and "__dataclass_fields__" not in vars(part):
            part = typing.cast(T, dataclasses.dataclass(kw_only=True, eq=False)(part))
        known = _parts[kind].get(name)
        if known is not None and getattr(known, "__module__", None) != getattr(part, "__module__", None):
            raise FedsimError(f"{kind} '{name}' is registered twice: {known.__module__} and {part.__module__}")  # type: ignore[attr-defined]
        _parts[kind][name] = part
        if inspect.isclass(part):
            part.kind, part.name = kind, name  # type: ignore[attr-defined]
        return part

    return decorate


def names(kind: str) -> list[str]:
    """All registered names of a kind, sorted; built-in parts and those of installed plug-ins."""
    _load(kind)
    if kind == "scenario":
        return sorted(shipped_scenarios())
    return sorted(_parts[kind])


def get(kind: str, name: str) -> Any:
    """The class or function behind a name.

    Raises:
        FedsimError: no such part; the message names the nearest one.
    """
    _load(kind)
    if name in _parts[kind]:
        return _parts[kind][name]
    if name.startswith("flwr:"):
        factory = _parts[kind].get("flwr:NAME")
        if factory is not None:
            return factory(name.removeprefix("flwr:"))
    elif ":" in name:
        return _from_reference(kind, name)
    raise FedsimError(
        f"unknown {kind} '{name}'{nearest(name, _parts[kind])}; known: {', '.join(names(kind)) or 'none'}"
    )


def make(kind: str, name: str, /, **options: Any) -> Any:
    """Build a part: ``make("defense", "krum", malicious=2)``.

    Raises:
        ScenarioError: unknown names, unknown options, values out of range; all of them at once.
    """
    values, faults = check_options(kind, name, options)
    if faults:
        raise ScenarioError(faults, where=f"{kind} '{name}'")
    part = get(kind, name)
    return part(**values) if inspect.isclass(part) else _Bound(part, values)


def check_options(kind: str, name: str, given: Mapping[str, Any], key: str = "") -> tuple[dict[str, Any], list[Fault]]:
    """Options with their defaults filled in, and what is wrong with them (keys below ``key``)."""
    prefix = f"{key}." if key else ""
    try:
        part = get(kind, name)
    except FedsimError as error:
        known_names = names(kind)
        accepted = str(error) if ":" in name else f"one of: {', '.join(known_names)}{nearest(name, known_names)}"
        return dict(given), [Fault(f"{prefix}name", name, accepted)]
    known = {option.name: option for option in options(part)}
    faults = [
        Fault(f"{prefix}{unknown}", given[unknown], f"no such option{nearest(unknown, known)}; options: {', '.join(known) or 'none'}")
        for unknown in given
        if unknown not in known
    ]
    model = _options_model(part)
    from pydantic import ValidationError

    try:
        checked = model.model_validate({k: v for k, v in given.items() if k in known})
    except ValidationError as error:
        for problem in error.errors():
            where = ".".join(str(piece) for piece in problem["loc"])
            faults.append(Fault(f"{prefix}{where}", problem.get("input"), plain(problem)))
        return dict(given), faults
    return {option: getattr(checked, option) for option in known}, faults


def plain(problem: Mapping[str, Any]) -> str:
    """A pydantic error as a phrase that says what is accepted."""
    message = str(problem["msg"])
    if problem["type"] == "missing":
        return "a value (this option has no default)"
    message = re.sub(r"^Input should be (a |an )?", lambda m: m.group(1) or "", message)
    message = re.sub(r"^Value error, ", "", message)
    return message[:1].lower() + message[1:] if message[:1].isupper() and not message[:2].isupper() else message


def options(part: Any) -> list[Option]:
    """The options of a part, in the order in which it declares them."""
    meanings = _meanings(inspect.getdoc(part) or "")
    if inspect.isclass(part) and dataclasses.is_dataclass(part):
        hints = typing.get_type_hints(part, include_extras=True)
        found = []
        for each in dataclasses.fields(part):
            if not each.init:
                continue
            factory = None if each.default_factory is dataclasses.MISSING else each.default_factory
            found.append(Option(each.name, hints[each.name], each.default, meanings.get(each.name, ""), factory))
        return found
    function = part.__init__ if inspect.isclass(part) else part
    hints = typing.get_type_hints(function, include_extras=True)
    return [
        Option(
            parameter.name,
            hints.get(parameter.name, Any),
            dataclasses.MISSING if parameter.default is parameter.empty else parameter.default,
            meanings.get(parameter.name, ""),
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
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


def shipped_scenarios() -> dict[str, Path]:
    """The scenarios that come with fedsim: name (``quickstart``, ``papers/multi_metrics``) → file."""
    here = Path(__file__).resolve().parent
    for folder in (here / "scenarios", here.parent / "scenarios"):
        if folder.is_dir():
            return {str(file.relative_to(folder).with_suffix("")): file for file in sorted(folder.rglob("*.toml"))}
    return {}


def plugin_file(name: str) -> Path | None:
    """The file behind ``my_attack.py:MyAttack``; None for other names."""
    path, _, attribute = name.rpartition(":")
    return Path(path) if attribute and path.endswith(".py") else None


class _Bound:
    """A registered function with its options filled in; call it with the positional arguments of its kind."""

    def __init__(self, function: Callable[..., Any], values: dict[str, Any]) -> None:
        self.function, self.values = function, values

    def __call__(self, *args: Any) -> Any:
        return self.function(*args, **self.values)


def _load(kind: str) -> None:
    if kind not in _parts:
        raise FedsimError(f"unknown kind '{kind}'{nearest(kind, _parts)}; kinds: {', '.join(sorted(_parts))}")
    for home in HOMES[kind]:
        if home in _loaded:
            continue
        _loaded.add(home)
        package = importlib.import_module(home)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{home}.{module.name}")
    if kind not in _loaded:
        _loaded.add(kind)
        from importlib.metadata import entry_points

        for entry in entry_points(group=f"fedsim.{kind}s"):
            register(kind, entry.name)(entry.load())


def _from_reference(kind: str, name: str) -> Any:
    """``file.py:Thing`` or ``package.module:Thing``."""
    where, _, attribute = name.rpartition(":")
    try:
        module = _module_of_file(str(Path(where).resolve())) if where.endswith(".py") else importlib.import_module(where)
    except FileNotFoundError as error:
        raise FedsimError(f"{kind} '{name}': there is no file {where}") from error
    except ImportError as error:
        raise FedsimError(f"{kind} '{name}': {error}") from error
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise FedsimError(f"{kind} '{name}': {where} has no '{attribute}'{nearest(attribute, public)}")
    part = getattr(module, attribute)
    if inspect.isclass(part) and "__dataclass_fields__" not in vars(part):
        part = dataclasses.dataclass(kw_only=True, eq=False)(part)
        setattr(module, attribute, part)
    if inspect.isclass(part):
        part.kind, part.name = kind, name
    return part


@lru_cache(maxsize=64)
def _module_of_file(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(f"fedsim_plugin_{Path(path).stem}_{abs(hash(path)):x}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=512)
def _options_model(part: Any) -> Any:
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {}
    for option in options(part):
        if option.factory is not None:
            fields[option.name] = (option.annotation, Field(default_factory=option.factory))
        elif option.required:
            fields[option.name] = (option.annotation, ...)
        else:
            fields[option.name] = (option.annotation, option.default)
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(f"{getattr(part, '__name__', 'Part')}Options", __config__=config, **fields)


def options_schema(part: Any) -> dict[str, Any]:
    """JSON Schema of a part's options."""
    schema: dict[str, Any] = _options_model(part).model_json_schema()
    for option in options(part):
        if option.meaning and option.name in schema.get("properties", {}):
            schema["properties"][option.name]["description"] = option.meaning
    return schema


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


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Annotated:
        base, *constraints = typing.get_args(annotation)
        shown = [text for text in (_constraint(c) for c in constraints) if text]
        return f"{_type_name(base)} {', '.join(shown)}".strip()
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(repr(value) for value in typing.get_args(annotation))
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return annotation.__name__ if annotation is not type(None) else "none"
    return re.sub(r"\b(typing|collections\.abc|pydantic\.types)\.", "", str(annotation))


def _constraint(constraint: Any) -> str:
    pieces = []
    for each in getattr(constraint, "metadata", [constraint]):
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            bound = getattr(each, attribute, None)
            if bound is not None:
                pieces.append(f"{sign} {bound}")
    return ", ".join(pieces)


def iterate(kind: str) -> Iterator[tuple[str, Any]]:
    """All parts of a kind as (name, class or function), without the ``flwr:NAME`` prefixes."""
    for name in names(kind):
        if not name.endswith(":NAME"):
            yield name, get(kind, name)
