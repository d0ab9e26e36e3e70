"""An observer that keeps what it sees and, if asked, writes over it."""

from __future__ import annotations

from typing import Any, ClassVar

from fedsim.observers.observer import Observation, Observer, Seen, Standpoint


class Spy(Observer):
    """Keeps what it sees.

    Args:
        standpoint: server or client.
        spoils: whether it writes over all that it is shown.
    """

    rounds: ClassVar[list[Seen]] = []

    standpoint: Standpoint = "server"
    spoils: bool = False

    def observe(self, seen: Seen, state: dict[str, Any]) -> Observation | None:
        self.rounds.append(seen)
        if self.spoils:
            for each in (seen.before, seen.after, *(sent.vector for sent in seen.messages.values())):
                each.fill_(1e3)
        return Observation({"seen": len(seen.messages)})
