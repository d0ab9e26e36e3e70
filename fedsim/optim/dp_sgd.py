"""DP-SGD: local steps on Poisson batches of clipped gradients with Gaussian noise, private for an example.

In each step a client of n examples draws each of them by itself with the probability q = min(1, B/n), and

    g = (Σ_{i drawn} clip(∇ℓ(w, z_i), C) + N(0, (z C)²·I)) / (q n)        w ← w − η g   (with momentum, as in SGD)

B is ``client.batch_size``; the divisor is the expected size of a batch, since its true size is a secret that the noise
does not cover. A step without examples is noise. Every message is private by itself (``privacy.trust = "local"``), and
costs its client s Poisson samples at the rate q for the s steps of a round. Shuffled batches, as
other optimizers visit them (``sampling = "shuffled"``), are no Poisson samples and have no claim. z is
``privacy.noise``, or calibrated for ``privacy.epsilon``, for the client that it costs most.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016 (arXiv:1607.00133).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.errors import NOTHING, Fault, PrivacyError
from fedsim.optim.batches import shuffled
from fedsim.optim.elementwise import NonNegative, Positive, optimizer
from fedsim.privacy.mechanism import Publication, Setting

ATTEMPTS = 5
"""Times that the noise is raised to the needs of a client that turns out to cost more."""


@optimizer("dp_sgd")
class DpSgd:
    """SGD on clipped per-example gradients of Poisson batches, with noise.

    Args:
        lr: learning rate.
        clip: C, largest norm of an example's gradient.
        momentum: share of the last step that is kept.
        weight_decay: L2 penalty, added to the noisy gradient.
        sampling: of the batches, "poisson", or "shuffled": B examples after B in a fresh order each epoch, the divisor
            min(B, n) for the short last one too; only without a claim (privacy.claim = "none").
    """

    row_wise: ClassVar[bool] = False
    full_participation: ClassVar[bool] = False

    lr: Positive = 0.1
    clip: Positive = 1.0
    momentum: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    sampling: Literal["poisson", "shuffled"] = "poisson"

    def __post_init__(self) -> None:
        self.noise_multiplier = 0.0
        self.deployed = False

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> torch.optim.Optimizer:
        """Plain SGD: what it is given is private already."""
        rate, momentum, decay = self.lr * scale, self.momentum, self.weight_decay
        return torch.optim.SGD(list(parameters), lr=rate, momentum=momentum, weight_decay=decay, foreach=False)

    def check(self, scenario: Any) -> Iterable[Fault]:
        """Whether a claim for examples, with the clients' own noise, can hold; what would touch raw gradients."""
        privacy, client = scenario.privacy, scenario.client
        if privacy.unit != "example":
            yield Fault("/privacy.unit", privacy.unit, "'example': each example's gradient is clipped by itself")
        if privacy.trust != "local":
            accepted = "'local': each client draws the noise of its own steps, and its message is private by itself"
            yield Fault("/privacy.trust", privacy.trust, accepted)
        if privacy.calibration != "tight":
            yield Fault("/privacy.calibration", privacy.calibration, "'tight': dp_sgd has no calibration of a paper")
        if privacy.epsilon is None and privacy.noise is None and privacy.claim != "none":
            accepted = 'a number, "inf" (clipped, but free of noise), privacy.noise = [z], or claim = "none"'
            yield Fault("/privacy.epsilon", NOTHING, accepted)
        if privacy.noise is not None and len(privacy.noise) != 1:
            yield Fault("/privacy.noise", privacy.noise, "[z], the noise's standard deviation over the clip")
        if client.clip_norm is not None:
            yield Fault("/client.clip_norm", client.clip_norm, "none: dp_sgd clips each example's gradient to its clip")
        if client.augmentation:
            given = [part.name for part in client.augmentation]
            yield Fault("/client.augmentation", given, "none: an augmentation sees a batch, and may mix its examples")
        if client.regularizers:
            given = [part.name for part in client.regularizers]
            yield Fault("/client.regularizers", given, "none: a penalty's gradient would be neither clipped nor noisy")
        if client.step_control is not None:
            accepted = "none: it would scale each step by raw examples, after the noise"
            yield Fault("/client.step_control", client.step_control.name, accepted)
        if scenario.engine.precision == "bfloat16":
            yield Fault("/engine.precision", "bfloat16", "'float32' or 'float64', in which clipped norms are exact")
        if scenario.engine.path not in ("auto", "reference"):
            yield Fault("/engine.path", scenario.engine.path, "'auto' or 'reference': it trains a client at a time")

    def unclaimed(self) -> Iterable[Fault]:
        """Options for which nothing can be claimed."""
        if self.sampling == "shuffled":
            accepted = (
                "'poisson', whose samples are accounted: in a shuffled order an example comes once an epoch for certain"
            )
            yield Fault("sampling", self.sampling, accepted)

    def set_up(self, setting: Setting) -> None:
        """Calibrate the noise."""
        check_accountant(setting)
        self.noise_multiplier, self.deployed = multiplier(setting), setting.deployed

    def publications(self, setting: Setting, absent: int = 0) -> list[Publication]:
        """The steps of the client whose examples they cost most."""
        from fedsim.privacy.local_steps import kinds, participation, worst

        found = kinds(setting)
        if not found:
            return []
        z = self.noise_multiplier
        price = partial(cost, noise_multiplier=z, setting=setting)
        one = max(found, key=lambda each: each.size) if z == 0 else worst(found, price)
        factor = 2 if setting.privacy.neighbours == "replace_one" else 1
        poisson = self.sampling == "poisson"
        return [
            Publication(
                "local steps (of the client that they cost most)",
                f"each example's gradient to C = {self.clip:g}",
                f"{factor}·C = {factor * self.clip:g}, of a sum over a {'' if poisson else 'shuffled '}batch",
                z,
                participation(setting)[1][: one.rounds],
                per_round=one.steps,
                sampling_rate=one.rate if poisson else 1.0,
            )
        ]

    def batches(
        self, n: int, steps: int, batch: int, generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], list[int]]:
        """Positions of the examples of each step, one step behind the other, and how many each has."""
        if not n or not steps:
            return np.zeros(0, dtype=np.int64), []
        source = np.random.default_rng() if self.deployed else generator
        if self.sampling == "shuffled":
            return shuffled(n, steps, batch, source)
        rate = min(1.0, batch / n)
        drawn = [np.flatnonzero(source.random(n) < rate).astype(np.int64) for _ in range(steps)]
        return np.concatenate(drawn), [len(each) for each in drawn]

    def noisy_gradients(
        self, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor, Tensor, float, np.random.Generator], Tensor]:
        """A function (inputs (B, …), targets (B, …), divisor, stream of noise) -> (d,) noisy gradient; B may be 0.

        It is the noisy sum of the batch's clipped gradients over the divisor q·n, the expected size of a batch. In
        deployment the stream is not read.

        Args:
            module: the model, whose parameters may move between the calls; it is put into evaluation mode.
            loss: (outputs, targets) -> (B,) losses.
        """
        from fedsim.privacy.clipping import GradientSum
        from fedsim.privacy.noise import noised

        clipped_sum, deviation = GradientSum(module.eval(), loss, self.clip), self.noise_multiplier * self.clip

        def gradient(inputs: Tensor, targets: Tensor, divisor: float, stream: np.random.Generator) -> Tensor:
            total = clipped_sum(inputs, targets)
            if deviation:
                total = noised(total, deviation, None if self.deployed else stream)
            return total.div_(divisor)

        return gradient


def check_accountant(setting: Setting) -> None:
    """Raise a PrivacyError where no bound of the scenario's accountant is for Poisson batches."""
    from fedsim.privacy.local_steps import kinds

    privacy = setting.privacy
    valid = ("pld",) if privacy.neighbours == "replace_one" else ("pld", "rdp")
    calibrated = privacy.noise is None and privacy.epsilon not in (None, "inf")
    claimed = privacy.claim != "none" and any(privacy.noise or ())
    if not (calibrated or claimed) or privacy.accountant in valid:
        return
    if any(each.rate < 1 for each in kinds(setting)):
        others = "" if privacy.neighbours == "add_or_remove" else "; or 'rdp' with neighbours 'add_or_remove'"
        raise PrivacyError(
            f"accountant: given '{privacy.accountant}' for Poisson batches with neighbours '{privacy.neighbours}'; "
            f"accepted: {' or '.join(map(repr, valid))}{others}"
        )


def multiplier(setting: Setting) -> float:
    """z, the noise over the clip; 0 without any.

    Raises:
        PrivacyError: an epsilon that cannot be kept, or an accountant that has no bound for Poisson batches.
    """
    privacy = setting.privacy
    if privacy.noise is not None:
        return privacy.noise[0]
    if privacy.epsilon is None or privacy.epsilon == "inf":
        return 0.0
    from fedsim.privacy.calibration import noise_for
    from fedsim.privacy.local_steps import kinds, worst

    found = kinds(setting)
    if not found:
        return 0.0
    target = privacy.epsilon
    one = max(found, key=lambda each: each.size)
    for _ in range(ATTEMPTS):
        z = noise_for(target, privacy.delta, one.count, one.rate, "poisson", privacy.neighbours, privacy.accountant)
        one = worst(found, partial(cost, noise_multiplier=z, setting=setting))
        if cost(one, z, setting) <= target:
            return z
    raise PrivacyError(f"epsilon: given {target:g}; accepted: what one noise keeps for all clients")


def cost(each: Any, noise_multiplier: float, setting: Setting) -> float:
    """Epsilon of one client's releases."""
    privacy = setting.privacy
    return _cost(each.release(noise_multiplier), privacy.delta, privacy.accountant, privacy.neighbours)


@lru_cache(maxsize=1024)
def _cost(release: Any, delta: float, accountant: Any, neighbours: Any) -> float:
    from fedsim.privacy.accounting import epsilon

    return epsilon([release], delta, accountant, neighbours)
