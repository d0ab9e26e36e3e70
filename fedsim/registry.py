"""Parts by name: attacks, defenses, data sets, models, optimizers and all else that a scenario names.

A part is a class (it becomes a keyword-only dataclass whose fields are its options) or a function (its
keyword-only parameters are its options), registered under a kind and a name::

    @register("attack", "sign_flip")
    class SignFlip(Attack): ...

``name`` in a scenario is a registered name, ``flwr:FedMedian`` (a stock Flower part), ``my_attack.py:MyAttack``
(a file of the user's) or ``package.module:Thing``. :func:`plug_in` makes what a file registers known by its names, as
``fedsim run --plugin my_attack.py`` and ``plugins`` in a scenario do. Installed packages add parts through the entry
point groups ``fedsim.attacks``, ``fedsim.defenses``, … (an ``s`` behind the kind; ``fedsim.analyses``,
``fedsim.losses``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

from fedsim.errors import Fault, FedsimError, ScenarioError, nearest, one_line
from fedsim.options import Option, check, options, options_schema, source, summary

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

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
    "analysis": ("strategies",),
    "task": ("fedsim.data",),
    "dataset": ("fedsim.data",),
    "augmentation": ("fedsim.data",),
    "model": ("fedsim.models",),
    "partition": ("fedsim.data",),
    "sampler": ("strategies",),
    "schedule": ("attacks",),
    "lr_schedule": ("fedsim.optim",),
    "trigger": ("attacks",),
    "observer": ("fedsim.observers",),
    "tracker": ("fedsim.report",),
    "engine": ("fedsim.grids",),
    "scenario": (),
}
"""Where the parts of a kind live: every module of these packages is imported when the kind is first asked for."""

_parts: dict[str, dict[str, Any]] = {kind: {} for kind in HOMES}
_plugins: dict[str, dict[str, EntryPoint]] = {kind: {} for kind in HOMES}
"""Parts of installed plug-ins, imported when they are first asked for."""
_loaded: set[str] = set()
PLUGIN = "fedsim_plugin_"
"""What the names of modules begin with that hold a user's file."""
_PLURALS = {"analysis": "analyses", "loss": "losses"}
T = TypeVar("T")


@dataclass_transform(kw_only_default=True)
def register(kind: str, name: str) -> Callable[[T], T]:
    """Decorator: the class or function becomes the part ``name`` of ``kind``.

    Raises:
        FedsimError: no such kind; another part has this name already; the class cannot hold options.
    """
    _known(kind)

    def decorate(part: T) -> T:
        _prepare(kind, name, part)
        known = _parts[kind].get(name)
        if known is not None and _origin(known) != _origin(part):
            first, second = (":".join(_origin(each)) for each in (known, part))
            raise FedsimError(f"{kind} '{name}' is registered twice: {first} and {second}")
        _parts[kind][name] = part
        return part

    return decorate


def names(kind: str) -> list[str]:
    """All registered names of a kind, sorted; built-in parts and those of installed plug-ins."""
    _load(kind)
    if kind == "scenario":
        return sorted(shipped_scenarios())
    return sorted({*_parts[kind], *_plugins[kind]})


def get(kind: str, name: str) -> Any:
    """The class or function behind a name.

    Raises:
        FedsimError: no such part (the message names the nearest one), or one that cannot be imported.
    """
    _load(kind)
    if name not in _parts[kind] and name in _plugins[kind]:
        return _from_entry_point(kind, name)
    if name in _parts[kind] and not name.endswith(":NAME"):
        return _parts[kind][name]
    if name.startswith("flwr:"):
        factory = _parts[kind].get("flwr:NAME")
        if factory is not None:
            return factory(name.removeprefix("flwr:"))
    elif ":" in name:
        return _from_reference(kind, name)
    raise FedsimError(f"unknown {kind} '{name}'; known: {', '.join(names(kind)) or 'none'}{nearest(name, names(kind))}")


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


def check_options(
    kind: str, name: str, given: Mapping[str, Any], key: str = "", beside: Sequence[str] = ()
) -> tuple[dict[str, Any], list[Fault]]:
    """Options with their defaults filled in, and what is wrong with them (keys below ``key``).

    ``beside`` names the keys that may stand in the same table without being options.
    """
    prefix = f"{key}." if key else ""
    try:
        return check(get(kind, name), given, prefix, beside)
    except FedsimError as error:
        known = names(kind)
        accepted = f"one of: {', '.join(known)}{nearest(name, known)}; or a part of your own: FILE.py:CLASS, "
        accepted += "or what a file registers that --plugin (or plugins in the scenario) names"
        if ":" in name or name in known:
            said = str(error).removeprefix(f"{kind} '{name}': ")
            accepted = f"a part that can be used; {said}"
        return dict(given), [Fault(f"{prefix}name", name, accepted)]


def iterate(kind: str) -> Iterator[tuple[str, Any]]:
    """All parts of a kind as (name, class or function), without the ``flwr:NAME`` prefixes."""
    for name in names(kind):
        if not name.endswith(":NAME"):
            yield name, get(kind, name)


def shipped_scenarios() -> dict[str, Path]:
    """The scenarios that come with fedsim: name (``quickstart``, ``papers/multi_metrics``) → file."""
    here = Path(__file__).resolve().parent
    for folder in (here / "scenarios", here.parent / "scenarios"):
        if folder.is_dir():
            return {
                file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.toml"))
            }
    return {}


def plugin_file(name: str) -> Path | None:
    """The file behind ``my_attack.py:MyAttack``; None for other names."""
    path, _, attribute = name.rpartition(":")
    return Path(path) if attribute and path.endswith(".py") else None


def plug_in(file: str | Path) -> list[tuple[str, str]]:
    """Import a file and make the parts that it registers known by name; an edited file is read anew.

    Returns:
        (kind, name) of each part that the file registers.

    Raises:
        FedsimError: no such file, one that cannot be imported, or one that registers no part.
    """
    module = module_of(file, str(file))
    found = [
        (kind, name)
        for kind, parts in _parts.items()
        for name, part in parts.items()
        if getattr(part, "__module__", "") == module.__name__
    ]
    if not found:
        classes = [name for name, each in vars(module).items() if getattr(each, "__module__", "") == module.__name__]
        example = f"; or name a part in the scenario as {file}:{classes[0]}" if classes else ""
        raise FedsimError(f'{file}: registers no part: put @attack("NAME") or the like before its class{example}')
    return found


def module_of(file: str | Path, what: str) -> ModuleType:
    """The module in a file, imported again where the file has changed.

    Args:
        file: path of a Python file.
        what: what the message of an error begins with.

    Raises:
        FedsimError: no such file, or one that cannot be imported; one line that says where.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FedsimError(
            f"{what}: there is no file {file}{'' if path.is_absolute() else f', seen from {os.getcwd()}'}"
        )
    if path.suffix != ".py":
        raise FedsimError(f"{what}: {file} is no Python file; accepted: a file whose name ends in .py")
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return _imported(what, str(file), lambda: _module_of_file(str(path.resolve()), content))


class _Bound:
    """A registered function with its options filled in; call it with the positional arguments of its kind."""

    def __init__(self, function: Callable[..., Any], values: dict[str, Any]) -> None:
        self.function, self.values = function, values
        if hasattr(function, "check"):
            self.check = function.check

    def __call__(self, *args: Any) -> Any:
        return self.function(*args, **self.values)


def group(kind: str) -> str:
    """The entry point group by which installed packages add parts of a kind."""
    return f"fedsim.{_PLURALS.get(kind, f'{kind}s')}"


def where(error: BaseException) -> str:
    """`` in line 12 of my_attack.py, in craft``: the innermost line of a user's file on the way to an error, if any."""
    place, here = "", error.__traceback__
    while here is not None:
        code = here.tb_frame.f_code
        if str(here.tb_frame.f_globals.get("__name__", "")).startswith(PLUGIN):
            place = f" in line {here.tb_lineno} of {Path(code.co_filename).name}, in {code.co_name}"
        here = here.tb_next
    return place


def ships(kind: str, part: Any) -> bool:
    """Whether a part is of a class of fedsim's own, and of none that somebody derived from it."""
    return type(part).__module__.rpartition(".")[0] in HOMES[kind]


def _known(kind: str) -> None:
    if kind not in _parts:
        raise FedsimError(f"unknown kind '{kind}'; kinds: {', '.join(sorted(_parts))}{nearest(kind, _parts)}")


def _origin(part: Any) -> tuple[str, str]:
    """Where a part is defined: its file or module, and its name in there."""
    module = getattr(part, "__module__", "")
    file = getattr(sys.modules.get(module), "__file__", None)
    return str(file or module), str(getattr(part, "__qualname__", part))


def _prepare(kind: str, name: str, part: Any) -> None:
    """Make a class's fields its options; a class with an ``__init__`` of its own stays as it is."""
    if not inspect.isclass(part):
        return
    try:
        if "__dataclass_fields__" not in vars(part) and "__init__" not in vars(part):
            dataclasses.dataclass(kw_only=True, eq=False)(part)
        part.kind, part.name = kind, name  # type: ignore[attr-defined]
    except (TypeError, ValueError, AttributeError) as error:
        raise FedsimError(f"{kind} '{name}': {part.__qualname__} cannot be a part: {one_line(error)}") from error
    if dataclasses.is_dataclass(part) and {"name", "kind"} & {each.name for each in dataclasses.fields(part)}:
        raise FedsimError(f"{kind} '{name}': {part.__qualname__} cannot have an option called 'name' or 'kind'")


def _load(kind: str) -> None:
    _known(kind)
    for home in HOMES[kind]:
        if home in _loaded:
            continue
        _loaded.add(home)
        try:
            package = importlib.import_module(home)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{home}.{module.name}")
        except BaseException:
            _loaded.discard(home)
            raise
    if kind not in _loaded:
        from importlib.metadata import entry_points

        for entry in entry_points(group=group(kind)):
            other = _plugins[kind].get(entry.name)
            if entry.name in _parts[kind] and _parts[kind][entry.name].__module__ != entry.module:
                raise FedsimError(f"{kind} '{entry.name}' is registered twice: by fedsim and by {entry.value}")
            if other is not None and other.value != entry.value:
                raise FedsimError(f"{kind} '{entry.name}' is registered twice: by {other.value} and {entry.value}")
            _plugins[kind][entry.name] = entry
        _loaded.add(kind)


def _from_entry_point(kind: str, name: str) -> Any:
    entry = _plugins[kind][name]
    part = _imported(f"{kind} '{name}'", entry.value, entry.load)
    return register(kind, name)(part)


def _from_reference(kind: str, name: str) -> Any:
    """``file.py:Thing`` or ``package.module:Thing``."""
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise FedsimError(f"{kind} '{name}': a file or module and a name in it are needed: file.py:Thing, module:Thing")
    if where.endswith(".py"):
        module = module_of(where, f"{kind} '{name}'")
    else:
        module = _imported(f"{kind} '{name}'", where, lambda: importlib.import_module(where))
    if not attribute.isidentifier() or not hasattr(module, attribute):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise FedsimError(f"{kind} '{name}': {where} has no '{attribute}'{nearest(attribute, public)}")
    part = getattr(module, attribute)
    _fit(kind, name, part)
    if kind != "model":
        _prepare(kind, name, part)
    return part


def _fit(kind: str, name: str, part: Any) -> None:
    """A plug-in is what the registered parts of its kind are: a function, or a class with their base."""
    known = [each for named, each in _parts[kind].items() if not named.endswith(":NAME")]
    classes = [each for each in known if inspect.isclass(each)]
    if not callable(part) or (known and len(classes) == len(known) and not inspect.isclass(part)):
        needed = "a class" if known and len(classes) == len(known) else "a class or a function"
        raise FedsimError(f"{kind} '{name}': it is a {type(part).__name__}, {needed} is needed")
    if len(classes) < max(len(known), 3):
        return
    bases = [base for base in classes[0].__mro__[:-1] if all(issubclass(each, base) for each in classes)]
    if bases and not issubclass(part, bases[0]):
        base = f"{bases[0].__module__}.{bases[0].__qualname__}"
        raise FedsimError(f"{kind} '{name}': {part.__qualname__} is not derived from {base}")


def _imported(what: str, where: str, load: Callable[[], T]) -> T:
    """What ``load`` gives; whatever a plug-in raises while it is imported becomes one line: what, where."""
    try:
        return load()
    except FedsimError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError):
            line = f" in line {error.lineno}"
        else:
            outside = (__file__, importlib.__file__, "<frozen")
            frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(outside)]
            line = f" in line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""
        said = error.msg if isinstance(error, SyntaxError) else one_line(error)
        raise FedsimError(f"{what}: importing {where} raised {type(error).__name__}{line}: {said}") from error


@lru_cache(maxsize=64)
def _module_of_file(path: str, content: str) -> ModuleType:
    """The module in a file; a changed file (another sha256) is imported anew."""
    identity = hashlib.sha256(f"{path} {content}".encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(f"{PLUGIN}{Path(path).stem}_{identity}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


__all__ = [
    "HOMES",
    "Option",
    "check_options",
    "get",
    "group",
    "iterate",
    "make",
    "module_of",
    "names",
    "options",
    "options_schema",
    "plug_in",
    "plugin_file",
    "register",
    "shipped_scenarios",
    "ships",
    "source",
    "summary",
    "where",
]
