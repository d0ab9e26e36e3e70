"""The errors that fedsim raises: one family, each message says what was given, what is accepted, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


class FedsimError(Exception):
    """Every error that fedsim raises on purpose; its text is fit for a terminal."""


class Said(str):
    """What was given, in words where it cannot be shown: it stands in a message without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


NOTHING = Said("nothing")
"""Given where a key is missing."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a scenario, as one line.

    Args:
        key: dotted key, e.g. ``server.defenses[0].malicious``; a part's ``check`` gives it relative to the part, or
            from the scenario's root with a slash before it, ``/data.clients``.
        given: what stands there.
        accepted: what may stand there.
        involves: other keys that this fault was concluded from (it is dropped where one of them is itself at fault).
    """

    key: str
    given: object
    accepted: str
    involves: tuple[str, ...] = field(default=(), compare=False)

    def line(self, where: str) -> str:
        """``file: key: given …; accepted: …``, on one line whatever stands in them."""
        return one_line(f"{where}: {self.key}: given {_shown(self.given)}; accepted: {self.accepted}")


class ScenarioError(FedsimError):
    """A scenario that cannot run: all its faults, one line each."""

    def __init__(self, faults: Sequence[Fault], where: str = "scenario") -> None:
        self.faults = list(faults)
        self.where = where
        super().__init__("\n".join(fault.line(where) for fault in self.faults))

    def __reduce__(self) -> tuple[type[ScenarioError], tuple[list[Fault], str]]:
        return (ScenarioError, (self.faults, self.where))


class DataMissing(FedsimError):
    """A data set that is not on this machine; the message says how to get it."""


class KnowledgeError(FedsimError):
    """An attack reached for something that its threat model hides."""


class ResumeError(FedsimError):
    """A run's folder that cannot be continued; the message says why."""


class RecordError(FedsimError):
    """A run's folder that cannot be written (a full disk, missing rights)."""


class PrivacyError(FedsimError):
    """A privacy claim that does not hold, or that cannot be computed as asked."""


class UpdatesError(FedsimError):
    """A matrix of updates whose parts do not fit each other or the rule that is asked of it."""


def nearest(given: object, names: Iterable[str], closeness: float = 0.6) -> str:
    """`` (did you mean 'krum'?)`` where one of the names is close to what was given, else nothing."""
    close = difflib.get_close_matches(str(given), list(names), n=1, cutoff=closeness)
    return f" (did you mean '{close[0]}'?)" if close else ""


def one_line(text: object) -> str:
    """The text without line breaks, for messages of others that become a part of ours."""
    return " ".join(line.strip() for line in str(text).splitlines() if line.strip())


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
