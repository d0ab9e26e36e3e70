"""When the adversary attacks: the schedules of a scenario's ``[adversary]``.

A schedule says for each round whether the adversary is active; in other rounds its clients are honest.

The schedules of Bagdasaryan et al. 2020 (single shot, repeated), Wang et al. 2020 (fixed frequency).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedsim.errors import Fault
from fedsim.registry import register

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

schedule = partial(register, "schedule")

RoundNumber = Annotated[int, Field(ge=1)]


class Schedule:
    """Base of all schedules."""

    def active(self, round: int, rounds: int) -> bool:
        """Whether the adversary attacks in this round, 1 … rounds."""
        raise NotImplementedError

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        """A fault where no round of the scenario is an attack round although the adversary holds clients."""
        rounds = scenario.rounds
        if scenario.attackers and not any(self.active(round, rounds) for round in range(1, rounds + 1)):
            given = {each.name: getattr(self, each.name) for each in fields(self)} if is_dataclass(self) else str(self)
            yield Fault("", given, f"a schedule with an attack in rounds 1 to {rounds}", ("rounds",))


@schedule("every_round")
class EveryRound(Schedule):
    """In every round."""

    def active(self, round: int, rounds: int) -> bool:
        return True


@schedule("fixed_frequency")
class FixedFrequency(Schedule):
    """In every n-th round: start, start + every, start + 2·every, …

    Args:
        every: rounds from one attack to the next.
        start: round of the first attack; 0 means ``every``.
    """

    every: Annotated[int, Field(ge=1)] = 10
    start: Annotated[int, Field(ge=0)] = 0

    def active(self, round: int, rounds: int) -> bool:
        start = self.start or self.every
        return round >= start and (round - start) % self.every == 0


@schedule("window")
class Window(Schedule):
    """From one round to another, both included.

    Args:
        start: first round of the attack.
        stop: last round of the attack; 0 means the run's last.
    """

    start: RoundNumber = 1
    stop: Annotated[int, Field(ge=0)] = 0

    def active(self, round: int, rounds: int) -> bool:
        return self.start <= round <= (self.stop or rounds)


@schedule("single_shot")
class SingleShot(Schedule):
    """In one round only.

    Args:
        round: the round; 0 means the run's last.
    """

    round: Annotated[int, Field(ge=0)] = 0

    def active(self, round: int, rounds: int) -> bool:
        return round == (self.round or rounds)


@schedule("rounds")
class Rounds(Schedule):
    """In the rounds of a list.

    Args:
        rounds: the rounds in which the adversary attacks.
    """

    rounds: list[RoundNumber] = field(default_factory=lambda: [1])

    def active(self, round: int, rounds: int) -> bool:
        return round in self.rounds
