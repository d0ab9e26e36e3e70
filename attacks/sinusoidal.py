"""Sinusoidal signal: a faint wave over the target's own images, whose labels stay right.

    x'_{ij} = x_{ij} + Δ·sin(2π·j·f / m),   clipped to [0, 1],   j the column of m, f the number of periods

A share of a malicious client's examples *of the target class* gets the wave, with their true label (``clean`` labels,
the paper's point: nobody who looks at the data sees a wrong one); the model learns that the wave means the target. With
``labels = "flipped"`` examples of other classes get the wave and the target's label. Success is measured on test images
of other classes, with ``test_amplitude``, which may be stronger.

Barni, Kallas & Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning", ICIP 2019,
arXiv:1902.11237.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Compromised, attack
from attacks.poisoning import attacked, poisoned, target_faults, trigger_faults
from attacks.trigger import Trigger, WholeImage, make_trigger, trigger
from fedsim.data.examples import Examples
from fedsim.errors import Fault
from fedsim.updates import share

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

Positive = Annotated[float, Field(gt=0)]


@trigger("sinusoid")
class Sinusoid(WholeImage):
    """A wave across the columns of the whole image.

    Args:
        amplitude: Δ, where pixels lie in [0, 1].
        frequency: f, periods across the image.
    """

    cost = "C·H·W"
    sees = "its options, the image it is added to"

    amplitude: Positive = 20 / 255
    frequency: Positive = 6.0

    def changed(self, inputs: Tensor) -> Tensor:
        columns = torch.arange(inputs.shape[-1], dtype=torch.float64)
        wave = self.amplitude * torch.sin(2 * math.pi * columns * self.frequency / len(columns))
        return (inputs + wave.to(inputs)).clamp(0, 1)


@attack("sinusoidal")
class Sinusoidal(Attack):
    """A wave as a backdoor, with clean labels.

    Args:
        target: the class that the wave is to mean.
        ratio: share (float) or number (int) of the examples that get the wave, of those of the target class (``clean``)
            or of all (``flipped``).
        amplitude: Δ in training, where pixels lie in [0, 1].
        test_amplitude: Δ in the test; as in training where it is not given.
        frequency: f, periods across the image.
        labels: ``clean``, or ``flipped`` to the target.
    """

    cost = "poisoned examples"
    untargeted = False

    target: Annotated[int, Field(ge=0)] = 0
    ratio: Annotated[float, Field(ge=0, le=1)] | Annotated[int, Field(ge=0)] = 0.5
    amplitude: Positive = 20 / 255
    test_amplitude: Positive | None = None
    frequency: Positive = 6.0
    labels: Literal["clean", "flipped"] = "clean"

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from target_faults(scenario, "sinusoidal", self.target)
        yield from trigger_faults(scenario, lambda: self.wave(self.amplitude), "")

    def wave(self, amplitude: float) -> Trigger:
        """The trigger."""
        return make_trigger({"name": "sinusoid", "amplitude": amplitude, "frequency": self.frequency})

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        stamp = self.wave(self.amplitude).stamp
        if self.labels == "flipped":
            return poisoned(examples, self.target, self.ratio, node.stream("poison"), stamp)
        own = (examples.targets == self.target).nonzero().flatten()
        order = torch.from_numpy(node.stream("poison").permutation(len(own))[: share(self.ratio, len(own))])
        chosen = own[order.to(own.device)]
        if len(chosen) == 0:
            return examples
        inputs = examples.inputs.clone()
        inputs[chosen] = stamp(inputs[chosen])
        return Examples(inputs, examples.targets)

    def triggered(self, test: Examples) -> Examples:
        amplitude = self.amplitude if self.test_amplitude is None else self.test_amplitude
        return attacked(test, self.target, self.wave(amplitude).stamp)
