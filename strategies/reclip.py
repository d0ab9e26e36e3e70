"""Reclip: the aggregate of any rule cut to a fixed radius, with Gaussian noise where ``[privacy]`` asks for it.

    Δ = A · min(1, C / ‖A‖) + N(0, σ²·I)        A: what the aggregator in front makes of the rows

Whatever the rule does with a client's row, two aggregates within a ball of radius C lie at most 2C apart: that is the
sensitivity, under either relation between neighbours, for an example as for a client. It does not fall with the number
of clients, as that of a mean does, and a cohort amplifies nothing. σ = z C with z of ``privacy.noise``, or calibrated
for ``privacy.epsilon`` (twice that under ``add_or_remove``, where others count a sensitivity of C). A round that nobody
answers, in which too few rows are left for the rule, or whose aggregate is not finite, releases noise around zero:
who takes part may depend on the data. Buffers stay as they are.

Without ``[privacy]`` it clips, adds no noise and promises nothing.

Dwork & Roth, "The Algorithmic Foundations of Differential Privacy", 2014, theorem A.1 (the Gaussian mechanism).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from fedsim import registry
from fedsim.errors import Fault, FedsimError
from fedsim.privacy.mechanism import Publication, Setting
from fedsim.privacy.noise import noised
from fedsim.updates import Aggregate
from strategies.defense import SEEING, Defense, Round, defense


@defense("reclip")
class Reclip(Defense):
    """The aggregate shortened to a radius, and the server's noise on it: privacy behind any aggregator.

    Args:
        radius: C, largest Euclidean norm of the aggregate.
    """

    full_participation: ClassVar[bool] = False
    sends_buffers: ClassVar[bool] = False
    answers_nobody: ClassVar[bool] = True
    bounds_aggregate: ClassVar[bool] = True
    sensitivity = "reclip"
    cost: ClassVar[str] = "d"
    sees: ClassVar[str] = "the aggregate"

    radius: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    def __post_init__(self) -> None:
        self.deviation = 0.0
        self.deployed = False

    def check(self, scenario: Any) -> Iterable[Fault]:
        """Whether it stands where it bounds all that leaves, and whether the noise keeps what is promised."""
        found = [*self._place(scenario), *self._table(scenario.privacy)]
        yield from found
        if found:
            return
        sizes = range(scenario.data.clients)
        try:
            multiplier(Setting(scenario.rounds, None, sizes, scenario.privacy))
        except FedsimError as error:
            yield Fault("/privacy.epsilon", scenario.privacy.epsilon, f"one that noise can keep: {error}")

    def _place(self, scenario: Any) -> Iterable[Fault]:
        server = scenario.server
        if server.estimator is not None:
            accepted = "none: it clips the aggregate of trained updates, not an estimate, which has noise of its own"
            yield Fault("/server.estimator", server.estimator.name, accepted)
        names = [part.name for part in server.defenses]
        for place in range(names.index("reclip") + 1, len(names)):
            try:
                part: Any = registry.get("defense", names[place])
            except FedsimError:
                continue
            if any(getattr(part, stage, None) is not getattr(Defense, stage) for stage in SEEING):
                accepted = "in front of 'reclip', which clips what they all make of the rows"
                yield Fault(f"/server.defenses[{place}]", names[place], accepted)

    def _table(self, privacy: Any) -> Iterable[Fault]:
        if privacy.trust != "central":
            accepted = "'central': the server itself adds the noise to the aggregate, whose rows it sees"
            yield Fault("/privacy.trust", privacy.trust, accepted)
        if privacy.calibration != "tight":
            yield Fault("/privacy.calibration", privacy.calibration, "'tight': reclip has no calibration of a paper")
        if privacy.noise is not None and len(privacy.noise) != 1:
            yield Fault("/privacy.noise", privacy.noise, "[z], the noise's standard deviation over the radius")

    def set_up(self, setting: Setting) -> None:
        """Calibrate the noise."""
        self.deviation = multiplier(setting) * self.radius
        self.deployed = setting.deployed

    def publications(self, setting: Setting, absent: int = 0) -> list[Publication]:
        """The noisy aggregate of each round, seen by every record."""
        return [
            Publication(
                "clipped aggregate",
                f"the aggregate to C = {self.radius:g}",
                f"2·C = {2 * self.radius:g}, whatever the relation",
                self.deviation / self.radius / relation(setting),
                range(1, setting.rounds + 1),
                reads="raw messages",
            )
        ]

    def bound(self, aggregate: Aggregate, ctx: Round) -> Aggregate:
        update = aggregate.update.double()
        norm = float(torch.linalg.vector_norm(update))
        if not bool(update.isfinite().all()):
            update = torch.zeros_like(update)
        elif norm > self.radius:
            update = update * (self.radius / norm)
        if self.deviation:
            update = noised(update, self.deviation, None if self.deployed else ctx.stream("privacy.noise"))
        buffers = aggregate.buffers
        kept = None if buffers is None else torch.zeros_like(buffers)
        return replace(aggregate, update=update.to(aggregate.update), buffers=kept if self.deviation else buffers)


def relation(setting: Setting) -> float:
    """Twice a record's largest contribution, by the relation that the accountant applies, is to be 2C under both."""
    return 1.0 if setting.privacy.neighbours == "replace_one" else 2.0


def multiplier(setting: Setting) -> float:
    """z, the noise's standard deviation over the radius; 0 without any.

    Raises:
        PrivacyError: noise that costs more than the epsilon beside it, or an epsilon that cannot be kept.
    """
    privacy = setting.privacy
    if privacy.epsilon is None or privacy.epsilon == "inf":
        return privacy.noise[0] if privacy.noise else 0.0
    from fedsim.privacy import Release, check_noise, noise_for

    doubled = relation(setting)
    if privacy.noise is None:
        found: float = noise_for(
            privacy.epsilon,
            privacy.delta,
            setting.rounds,
            neighbours=privacy.neighbours,
            accountant=privacy.accountant,
        )
        return doubled * found
    if privacy.claim != "none":
        releases = [Release(privacy.noise[0] / doubled, setting.rounds)]
        check_noise(releases, privacy.epsilon, privacy.delta, privacy.accountant, privacy.neighbours)
    return privacy.noise[0]
