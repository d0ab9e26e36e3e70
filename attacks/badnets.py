"""BadNets: a patch of pixels that turns any image into the target.

A share ``ratio`` of a malicious client's examples, chosen once among those that are not the target's, gets the
trigger and the target label; the rest stays clean, so that the main task is learnt as well. Attack success is the
share of triggered test images, those of the target left out, that are called the target.

Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017, arXiv:1708.06733.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from attacks.attack import Attack, Compromised, attack
from attacks.poisoning import attacked, poisoned, target_faults, trigger_faults
from attacks.trigger import Corner, Position, Trigger, make_trigger
from fedsim.data.examples import Examples
from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


PATCH = ("size", "corner", "position", "value")
"""Options of the patch, which another trigger has no use for."""


@attack("badnets")
class BadNets(Attack):
    """A pixel patch as a backdoor.

    Args:
        target: the label that triggered images get.
        ratio: share (float) or number (int) of a malicious client's examples that are poisoned.
        size: pixels of each side of the patch, or [rows, columns].
        corner: corner of the image that it lies in.
        position: [row, column] of its upper left pixel, in place of a corner.
        value: what its pixels are set to, one number or one a channel.
        trigger: another trigger, by name or as a table with its options, in place of the patch.
    """

    cost = "poisoned examples"
    untargeted = False

    target: Annotated[int, Field(ge=0)] = 0
    ratio: Annotated[float, Field(ge=0, le=1)] | Annotated[int, Field(ge=0)] = 0.5
    size: Annotated[int, Field(ge=1)] | Position = 3
    corner: Corner = "bottom_right"
    position: Position | None = None
    value: float | list[float] = 1.0
    trigger: str | dict[str, Any] | None = None

    def pattern(self) -> Trigger:
        """The trigger."""
        if self.trigger is not None:
            return make_trigger(self.trigger)
        patch = {"size": self.size, "corner": self.corner, "position": self.position, "value": self.value}
        return make_trigger({"name": "patch", **patch})

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from target_faults(scenario, "badnets", self.target)
        for option in PATCH if self.trigger is not None else ():
            if (given := getattr(self, option)) != getattr(BadNets, option):
                yield Fault(option, given, "the default beside `trigger`, whose own options say what it looks like")
        yield from trigger_faults(scenario, self.pattern, "" if self.trigger is None else "trigger")

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        return poisoned(examples, self.target, self.ratio, node.stream("poison"), self.pattern().stamp)

    def triggered(self, test: Examples) -> Examples:
        return attacked(test, self.target, self.pattern().stamp)
