"""Blended injection: a faint pattern over the whole image turns it into the target.

    x' = α·k + (1 − α)·x

k the key pattern, here uniform noise in [0, 1] of the image's size, drawn once by ``seed``, the paper's random one.
A share of a malicious client's examples gets it, and the target's label; test images get it with ``test_alpha``, which
the paper lets be stronger than what was trained on.

Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017, arXiv:1712.05526.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Compromised, attack
from attacks.poisoning import attacked, poisoned, target_faults, trigger_faults
from attacks.trigger import Trigger, WholeImage, make_trigger, trigger
from fedsim import rng
from fedsim.data.examples import Examples
from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

Share = Annotated[float, Field(gt=0, le=1)]


@trigger("blend")
class Blend(WholeImage):
    """A random pattern mixed into the whole image.

    Args:
        alpha: α, the pattern's share.
        seed: which pattern.
    """

    cost = "C·H·W"
    sees = "its options, the image it is mixed into"

    alpha: Share = 0.2
    seed: Annotated[int, Field(ge=0)] = 0

    def changed(self, inputs: Tensor) -> Tensor:
        return self.alpha * self.pattern(inputs.shape[1:]).to(inputs) + (1 - self.alpha) * inputs

    def pattern(self, shape: Sequence[int]) -> Tensor:
        """The key pattern k (C, H, W)."""
        return torch.rand(tuple(shape), generator=rng.torch_stream(self.seed, "trigger.blend"))


@attack("blended")
class Blended(Attack):
    """A blended pattern as a backdoor.

    Args:
        target: the label that triggered images get.
        ratio: share (float) or number (int) of a malicious client's examples that are poisoned.
        alpha: α in training.
        test_alpha: α in the test; as in training where it is not given.
        seed: which pattern.
    """

    cost = "poisoned examples"
    untargeted = False

    target: Annotated[int, Field(ge=0)] = 0
    ratio: Annotated[float, Field(ge=0, le=1)] | Annotated[int, Field(ge=0)] = 0.5
    alpha: Share = 0.2
    test_alpha: Share | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from target_faults(scenario, "blended", self.target)
        yield from trigger_faults(scenario, lambda: self.pattern(self.alpha), "")

    def pattern(self, alpha: float) -> Trigger:
        """The trigger."""
        return make_trigger({"name": "blend", "alpha": alpha, "seed": self.seed})

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        stamp = self.pattern(self.alpha).stamp
        return poisoned(examples, self.target, self.ratio, node.stream("poison"), stamp)

    def triggered(self, test: Examples) -> Examples:
        alpha = self.alpha if self.test_alpha is None else self.test_alpha
        return attacked(test, self.target, self.pattern(alpha).stamp)
