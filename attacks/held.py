"""The attacks of a scenario as each of the adversary's clients has them.

Under ``own`` no client may see what another holds. An attack that is not fedsim's own is there a copy for each client,
made of the attack as it was prepared, and its hooks are called for one client at a time: what it keeps in itself is
that client's. fedsim's own attacks keep nothing of what their hooks are shown and treat each client alone, as tests
say; all clients share them, and one call may serve many.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from attacks.attack import Attack, overrides
from fedsim import registry
from fedsim.errors import FedsimError, one_line

APART = ("poison", "objective", "after_step", "craft", "claimed_examples", "observe")
"""Hooks that see one client at a time under ``own``."""


class Held:
    """Attacks, and whose they are.

    Args:
        attacks: the attacks, prepared, in the scenario's order.
        knowledge: the adversary's.

    Raises:
        FedsimError: an attack that no copy can be made of, where each client is to have one.
    """

    def __init__(self, attacks: Sequence[Attack], knowledge: str = "colluding") -> None:
        self.attacks = tuple(attacks)
        self.apart = tuple(
            knowledge == "own" and not registry.ships("attack", part) and any(overrides(part, hook) for hook in APART)
            for part in self.attacks
        )
        """Whether each attack is a copy for each client."""
        # The evaluation shows the test set to the attacks themselves, which no client's copy is to remember.
        self._prepared = [_copied(part, i) if self.apart[i] else part for i, part in enumerate(self.attacks)]
        self._own: dict[tuple[int, int], Attack] = {}

    def attack(self, position: int, client: int) -> Attack:
        """The attack at a place of the list, as this client has it."""
        if not self.apart[position]:
            return self.attacks[position]
        if (position, client) not in self._own:
            self._own[position, client] = _copied(self._prepared[position], position)
        return self._own[position, client]

    def of(self, client: int) -> list[Attack]:
        """All attacks as this client has them."""
        return [self.attack(position, client) for position in range(len(self.attacks))]


def called(part: Attack, position: int) -> str:
    """What messages call an attack of the list."""
    return f"the attack '{label(part)}' (adversary.attacks[{position}])"


def label(part: Attack) -> str:
    """Its registered name, or its class's."""
    return getattr(part, "name", type(part).__name__)


def _copied(part: Attack, position: int) -> Attack:
    try:
        return copy.deepcopy(part)
    except Exception as error:
        said = f"{type(error).__name__}{registry.where(error)}: {one_line(error)}"
        accepted = "what copy.deepcopy copies, or adversary.knowledge = 'colluding'"
        raise FedsimError(
            f"{called(part, position)}: under adversary.knowledge = 'own' each client has a copy of it, and none can "
            f"be made: {said}; accepted: {accepted}"
        ) from error


__all__ = ["APART", "Held", "called", "label"]
