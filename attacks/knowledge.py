"""What an adversary must know for an attack, as faults of a scenario that does not give it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


def needs_omniscience(scenario: Scenario, key: str, given: object) -> Iterable[Fault]:
    """A fault at ``key`` unless the adversary is omniscient."""
    if scenario.adversary.knowledge != "omniscient":
        yield Fault(key, given, "adversary.knowledge = 'omniscient' with it", ("adversary.knowledge",))


def needs_two_rows(scenario: Scenario, name: str) -> Iterable[Fault]:
    """A fault where the adversary is to estimate a spread but is expected to see under two rows in a round."""
    adversary = scenario.adversary
    if adversary.knowledge == "omniscient" or scenario.attackers == 0:
        return
    if adversary.knowledge == "own":
        accepted = "adversary.knowledge = 'colluding' or 'omniscient' with it (a spread needs two updates)"
        yield Fault("name", name, accepted, ("adversary.knowledge",))
        return
    expected = expected_attackers(scenario)
    if expected < 2 - 1e-9:
        yield Fault(
            "name",
            name,
            f"two attackers or more expected in a round, here {expected:.3g} (adversary.fraction, client.per_round), "
            "or adversary.knowledge = 'omniscient' with it",
            ("adversary.knowledge", "adversary.fraction", "adversary.count", "client.per_round", "data.clients"),
        )


def expected_attackers(scenario: Scenario) -> float:
    """Attackers expected in the cohort of an attack round."""
    adversary = scenario.adversary
    expected = scenario.attackers * scenario.cohort / scenario.data.clients
    if adversary.selection == "forced":
        expected = max(expected, float(min(adversary.forced, scenario.attackers, scenario.cohort)))
    return expected
