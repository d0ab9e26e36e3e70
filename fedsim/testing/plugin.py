"""What is wrong with a part of the user's, in words: the conformance suites with a reading of what they find.

::

    from fedsim.testing import conforms

    def test_my_attack():
        conforms("my_attack.py")                       # every part in the file
        conforms("my_attack.py:Backwards", strength=2.0)

``fedsim check my_attack.py`` prints the same.
"""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.attack import Attack
from fedsim import registry
from fedsim.errors import FedsimError, KnowledgeError, one_line
from fedsim.observers.observer import Observer
from fedsim.testing import attacks, defenses, observers, optimizers, pace
from fedsim.testing.words import COMPARING, FIRST, HIDDEN, RAISES, SLOW, UNTYPED, Word, words
from strategies.defense import Defense

SUITES: dict[str, tuple[Callable[[Any], None], ...]] = {
    "attack": attacks.CHECKS,
    "defense": defenses.CHECKS,
    "observer": observers.CHECKS,
    "optimizer": optimizers.CHECKS,
}
"""Kind → the checks of its parts."""
BASES: dict[str, type] = {"attack": Attack, "defense": Defense, "observer": Observer}
LONGEST = 300


@dataclass(frozen=True)
class Finding:
    """One thing that a part gets wrong.

    Args:
        part: whose it is, ``attack 'backwards'``.
        head: what is wrong, in a few words: ``changes its input``.
        said: what was seen.
        advice: what to do now.
        fault: False for a remark, which fails no check: a part that is slow, a setting that is no option.
    """

    part: str
    head: str
    said: str
    advice: str
    fault: bool = True

    def __str__(self) -> str:
        return f"{self.part} {self.head}: {self.said}. {self.advice}".rstrip()


@dataclass(frozen=True)
class Subject:
    """A part under examination.

    Args:
        kind: its registry kind.
        name: under which the registry finds it, ``backwards`` or ``my_attack.py:Backwards``.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}'"


def conforms(what: str | Path, **options: Any) -> None:
    """Run the conformance suite of every part that is meant.

    Args:
        what: ``my_attack.py``, or one of its classes, ``my_attack.py:Backwards``.
        options: options of the parts, where their defaults are not what is to be examined.

    Raises:
        AssertionError: what the parts get wrong, a line each; a part that is slow is a warning.
        FedsimError: the file cannot be imported, or holds no part of a kind that has a suite.
    """
    found = [finding for subject in subjects(what) for finding in findings(subject, **options)]
    for finding in found:
        if not finding.fault:
            warnings.warn(str(finding), stacklevel=2)
    faults = [str(finding) for finding in found if finding.fault]
    if faults:
        raise AssertionError("\n".join(faults))


def subjects(what: str | Path) -> list[Subject]:
    """The parts in a file, those that it registers and those that it only defines; or the one class that is named.

    Raises:
        FedsimError: the file cannot be imported, or holds no part of a kind that has a suite.
    """
    file, _, attribute = str(what).partition(".py:")
    path = f"{file}.py" if attribute else str(what)
    if not Path(path).expanduser().is_file() and (kinds := [kind for kind in SUITES if path in registry.names(kind)]):
        accepted = f"a file of your own, FILE.py or FILE.py:CLASS; fedsim's suite checks its own {kinds[0]} '{path}'"
        raise FedsimError(f"check: given '{path}'; accepted: {accepted}")
    if not path.endswith(".py") and not Path(path).expanduser().exists():
        raise FedsimError(f"check: there is no file {path}; accepted: FILE.py, or one of its classes, FILE.py:CLASS")
    module = registry.module_of(path, path)
    registered: dict[Any, Subject] = {}
    for kind in registry.HOMES:
        if kind != "scenario":
            for name, part in registry.iterate(kind):
                if getattr(part, "__module__", "") == module.__name__:
                    registered[part] = Subject(kind, name)
    found = [*registered.values()]
    for name, each in vars(module).items():
        if not inspect.isclass(each) or each.__module__ != module.__name__ or each in registered:
            continue
        kind = next((kind for kind, base in BASES.items() if issubclass(each, base)), "")
        if kind and not any(issubclass(other, each) for other in registered if inspect.isclass(other)):
            found.append(Subject(kind, f"{path}:{name}"))
    if attribute:
        part = getattr(module, attribute, None)
        found = [registered.get(part, Subject(_kind_of(part, path, attribute), f"{path}:{attribute}"))]
    found = [subject for subject in found if subject.kind in SUITES]
    if not found:
        bases = " or ".join(f"{base.__module__}.{base.__name__}" for base in BASES.values())
        accepted = f"a class derived from {bases}, or a registered optimizer"
        raise FedsimError(f"{path}: given no part that can be checked; accepted: {accepted}")
    return found


def findings(subject: Subject, **options: Any) -> list[Finding]:
    """What a part gets wrong: the suite of its kind, then its pace beside a rule of fedsim's own, and its settings."""

    def make() -> Any:
        return registry.make(subject.kind, subject.name, **options)

    found: dict[tuple[str, str], Finding] = {}
    repeats = True
    for check in sorted(
        SUITES[subject.kind], key=lambda each: (each.__name__ not in FIRST, each.__name__ != "repeats")
    ):
        if check.__name__ in COMPARING and not repeats:
            continue
        wrong = _wrong(check, make)
        if wrong is None:
            continue
        repeats &= check.__name__ != "repeats"
        word, said = wrong
        found.setdefault((word.head, said), Finding(str(subject), word.head, said, word.advice))
        if check.__name__ in FIRST:
            return list(found.values())
    if not found:
        slow = ""
        try:
            slow = pace.remark(subject.kind, make)
        except Exception as error:
            said = f"{type(error).__name__}{registry.where(error) or _innermost(error)}: {_cut(error)}"
            said = f"with {pace.CLIENTS} clients and {pace.LAYOUT.d:,} parameters, {said}"
            found[RAISES.head, said] = Finding(str(subject), RAISES.head, said, RAISES.advice)
        if slow:
            found[SLOW.head, slow] = Finding(str(subject), SLOW.head, slow, SLOW.advice, fault=False)
    for name, value in _settings(subject):
        said = f"{name} = {value!r} has no type, so that no scenario can set it"
        found[UNTYPED.head, said] = Finding(str(subject), UNTYPED.head, said, UNTYPED.advice, fault=False)
    return list(found.values())


def _settings(subject: Subject) -> list[tuple[str, Any]]:
    """(name, value) of a class's numbers and words that look like options and, without a type, are none."""
    part = registry.get(subject.kind, subject.name)
    if not inspect.isclass(part):
        return []
    known = {"kind", "name", "row_wise", *dir(BASES.get(subject.kind, object))}
    typed = {name for each in part.__mro__ for name in inspect.get_annotations(each)}
    own = {name: value for each in reversed(part.__mro__) for name, value in vars(each).items()}
    return [
        (name, value)
        for name, value in own.items()
        if isinstance(value, bool | int | float | str) and not name.startswith("_") and name not in known | typed
    ]


def _wrong(check: Callable[[Any], None], make: Callable[[], Any]) -> tuple[Word, str] | None:
    """How a check ends: the word for it and what it said; None where all is well."""
    try:
        check(make)
    except AssertionError as error:
        cause = error.__cause__
        place = "" if cause is None else registry.where(cause)
        return words(check.__module__.rpartition(".")[2], check.__name__), _cut(error) + place
    except KnowledgeError as error:
        return HIDDEN, _cut(error)
    except FedsimError as error:
        return words(check.__module__.rpartition(".")[2], check.__name__), _cut(error)
    except Exception as error:
        return RAISES, f"{type(error).__name__}{registry.where(error) or _innermost(error)}: {_cut(error)}"
    return None


def _innermost(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" in line {last.lineno} of {Path(last.filename).name}"


def _kind_of(part: Any, path: str, attribute: str) -> str:
    for kind, base in BASES.items():
        if inspect.isclass(part) and issubclass(part, base):
            return kind
    if inspect.isclass(part) and hasattr(part, "build"):
        return "optimizer"
    raise FedsimError(
        f"{path}: given '{attribute}'; accepted: an attack, a defense, an observer or an optimizer in this file"
    )


def _cut(error: BaseException) -> str:
    text = one_line(error).rstrip(".")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


__all__ = ["Finding", "Subject", "conforms", "findings", "subjects"]
