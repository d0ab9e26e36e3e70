"""Distributed backdoor: each attacker stamps a part of the trigger, tests see the whole.

The trigger's pixels are cut in order into ``parts`` runs (as many as there are attackers, if they are fewer); the
attacker of rank r trains on part r mod parts. No single malicious update carries the whole pattern, and the model
learns it from their sum.

Xie et al., "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from attacks.attack import Attack, Compromised, attack
from attacks.poisoning import attacked, poisoned, target_faults, trigger_faults
from attacks.trigger import Trigger, data_info, make_trigger
from fedsim.data.examples import Examples
from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@attack("dba")
class DBA(Attack):
    """A trigger in parts over the attackers, whole at test time.

    Args:
        target: the label that triggered images get.
        ratio: share (float) or number (int) of a malicious client's examples that are poisoned.
        parts: into how many parts the trigger is cut.
        trigger: the whole trigger, by name or as a table with its options.
    """

    cost = "poisoned examples"
    untargeted = False

    target: Annotated[int, Field(ge=0)] = 0
    ratio: Annotated[float, Field(ge=0, le=1)] | Annotated[int, Field(ge=0)] = 0.5
    parts: Annotated[int, Field(ge=1)] = 4
    trigger: str | dict[str, Any] = "bars"

    def pattern(self) -> Trigger:
        """The whole trigger."""
        return make_trigger(self.trigger)

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from target_faults(scenario, "dba", self.target)
        faults = list(trigger_faults(scenario, self.pattern, "trigger"))
        yield from faults
        info = data_info(scenario)
        if not faults and info is not None:
            pixels = len(self.pattern().pixels(info.shape))
            if self.parts > pixels:
                yield Fault("parts", self.parts, f"at most the trigger's {pixels} pixels", ("data.dataset",))

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        parts = min(self.parts, node.attackers)
        pattern, part = self.pattern(), node.rank % parts
        return poisoned(
            examples, self.target, self.ratio, node.stream("poison"), lambda inputs: pattern.stamp(inputs, part, parts)
        )

    def triggered(self, test: Examples) -> Examples:
        return attacked(test, self.target, self.pattern().stamp)
