"""Between which bounds the options of attacks are searched.

The attacks that ship with fedsim have bounds of their own in ``SPACES``; of another one (a plug-in) every choice and
every number that declares two bounds is searched. Nothing leaves what the registry accepts.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fedsim import registry

Choices = tuple[Any, ...]


class Trial(Protocol):
    """What of an Optuna trial is used."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = ...) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Span:
    """Numbers from ``low`` to ``high``."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Trial, name: str) -> float | int:
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


SPACES: dict[str, dict[str, Span | Choices]] = {
    "badnets": {"ratio": Span(0.05, 1.0)},
    "blended": {"ratio": Span(0.05, 1.0)},
    "sinusoidal": {"ratio": Span(0.05, 1.0)},
    "dba": {"ratio": Span(0.05, 1.0)},
    "edge_case": {"examples": Span(10, 400, log=True, whole=True), "clean": Span(0, 800, whole=True)},
    "semantic": {"examples": Span(0, 200, whole=True)},
    "anticipate": {"ratio": Span(0.05, 1.0), "ahead": Span(1, 6, whole=True)},
    "a3fl": {"ratio": Span(0.05, 1.0)},
    "iba": {"ratio": Span(0.05, 1.0)},
    "chameleon": {"ratio": Span(0.05, 1.0), "weight": Span(0.1, 10.0, log=True)},
    "neurotoxin": {"top": Span(0.005, 0.5, log=True)},
    "pgd": {"epsilon": Span(0.05, 10.0, log=True), "every": Span(1, 20, log=True, whole=True)},
    "constrain_and_scale": {"alpha": Span(0.1, 1.0), "anomaly": ("euclidean", "cosine")},
    "model_replacement": {"scale": Span(0.3, 100.0, log=True)},
    "label_flip": {},
    "alie": {"z": Span(0.1, 10.0, log=True)},
    "ipm": {"epsilon": Span(0.05, 20.0, log=True)},
    "sign_flip": {"scale": Span(0.1, 30.0, log=True), "of": ("own", "mean")},
    "gaussian": {"scale": Span(1e-3, 10.0, log=True), "mode": ("alone", "added")},
    "min_max": {"direction": ("unit", "std", "sign")},
    "min_sum": {"direction": ("unit", "std", "sign")},
    "mimic": {},
    "fang_krum": {},
    "fang_trimmed_mean": {"beyond": Span(1.1, 10.0, log=True)},
    "optimal": {"attack": ("ipm", "alie", "sign_flip"), "high": Span(1.0, 30.0, log=True)},
}
"""Attack → option → what is tried."""


def searched(name: str, fixed: Mapping[str, Any]) -> Iterator[tuple[str, Span | Choices]]:
    """(option, what is tried), inside of what the registry accepts."""
    curated = SPACES.get(name)
    for option in registry.options(registry.get("attack", name)):
        if option.name in fixed:
            continue
        low, high, whole, choices = _bounds(option.annotation)
        if curated is not None:
            what = curated.get(option.name)
            if isinstance(what, Span):
                yield option.name, Span(max(what.low, low), min(what.high, high), what.log, what.whole)
            elif what is not None:
                yield option.name, tuple(value for value in what if not choices or value in choices)
        elif choices:
            yield option.name, choices
        elif math.isfinite(low) and math.isfinite(high):
            yield option.name, Span(low, high, log=low > 0 and high / low > 30, whole=whole)


def _bounds(annotation: Any) -> tuple[float, float, bool, Choices]:
    """(lowest, highest number, whether it is whole, choices) that a type accepts; open bounds count as just inside."""
    low, high, whole = -math.inf, math.inf, False
    choices: Choices = ()
    for each in _plain(annotation):
        if typing.get_origin(each) is Literal:
            choices = typing.get_args(each)
        elif each is bool:
            choices = (False, True)
        elif typing.get_origin(each) is typing.Annotated:
            kind, *marks = typing.get_args(each)
            whole = kind is int
            for mark in (inner for outer in marks for inner in getattr(outer, "metadata", [outer])):
                low = max(low, _bound(mark, "ge", -math.inf), _bound(mark, "gt", -math.inf) + (1 if whole else 1e-9))
                high = min(high, _bound(mark, "le", math.inf), _bound(mark, "lt", math.inf) - (1 if whole else 1e-9))
            break
    return low, high, whole, choices


def _plain(annotation: Any) -> tuple[Any, ...]:
    """The members of a union."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _bound(mark: Any, name: str, otherwise: float) -> float:
    found = getattr(mark, name, None)
    return otherwise if found is None else float(found)


__all__ = ["SPACES", "Choices", "Span", "Trial", "searched"]
