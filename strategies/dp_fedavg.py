"""DP-FedAvg: the mean of clipped updates with Gaussian noise, private for a client with all that it holds.

    Δ = (Σ_i Δ_i · min(1, C/‖Δ_i‖) + N(0, (z_Δ C)²·I)) / m̄

with equal weights and a divisor m̄ that depends on nobody's data: qN where the sampler is ``poisson`` (each of the N
clients by itself with probability q), the cohort's size where it is fixed. A client that sends nothing, or nothing
valid, adds zero; a round that nobody answers releases noise all the same. Buffers stay as they are.

A Poisson cohort is accounted as a Poisson sample, a cohort of a fixed size as a sample without replacement (by Rényi
DP). Both count only against those who do not see the cohort.

With ``adaptive`` the clip follows the γ-quantile of the updates' norms. The share of updates within it is private, too:

    b̃ = 1/2 + (Σ_i (1[‖Δ_i‖ ≤ C] − 1/2) + N(0, σ_b²)) / m̄        C ← C · exp(−η_C (b̃ − γ))

A client moves that sum by at most 1/2, so that the release of both costs as much as one with the multiplier z,
1/z² = 1/z_Δ² + 1/(2σ_b)². z is ``privacy.noise``, or calibrated for ``privacy.epsilon``.

McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, arXiv 1710.06963; Andrew et al.,
"Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, arXiv 1905.03871.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.errors import NOTHING, Fault, FedsimError
from fedsim.privacy.mechanism import Publication, Setting
from fedsim.privacy.noise import noised
from fedsim.privacy.releases import Sampling
from fedsim.updates import Aggregate, Updates
from strategies.defense import Defense, Round, defense

ORIGIN = "privacy.noise"


@defense("dp_fedavg")
class DpFedAvg(Defense):
    """Clipped updates, equal weights, Gaussian noise on their sum: differential privacy for clients.

    Args:
        clip: C, largest Euclidean norm of an update; with ``adaptive`` the one to begin with.
        adaptive: whether C follows a quantile of the updates' norms.
        quantile: γ, share of the updates that should be within C.
        clip_lr: η_C, rate at which C moves, in log scale.
        count_noise: σ_b, standard deviation of the noise on the count of updates within C; more than z/2. Without it
            m̄/20, but at least z.
        denominator: what the noisy sum is divided by, m̄, the "expected" cohort, or the number of updates that were
            "received", which depends on the cohort and on who answers; only without a claim (privacy.claim = "none").
    """

    full_participation: ClassVar[bool] = False
    sends_buffers: ClassVar[bool] = False
    answers_nobody: ClassVar[bool] = True
    samplers: ClassVar[tuple[str, ...]] = ("poisson", "uniform", "fixed")
    cost: ClassVar[str] = "n·d"
    sees: ClassVar[str] = "updates, its clip of the last round"

    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    adaptive: bool = False
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.5
    clip_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.2
    count_noise: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    denominator: Literal["expected", "received"] = "expected"

    def __post_init__(self) -> None:
        self.noise_multiplier = 0.0
        self.divisor: float | None = None
        self.deployed = False

    def check(self, scenario: Any) -> Iterable[Fault]:
        """Whether a claim for clients, with the server's own noise, can hold; whether it can be accounted."""
        yield from self._unread()
        found = [*self._table(scenario.privacy), *self._cohort(scenario)]
        yield from found
        if found:
            return
        setting = Setting(
            scenario.rounds,
            None,
            range(scenario.data.clients),
            scenario.privacy,
            cohort=scenario.cohort,
            sampler=scenario.server.sampler,
        )
        try:
            z = multiplier(setting)
        except FedsimError as error:
            yield Fault("/privacy.epsilon", scenario.privacy.epsilon, f"one that noise can keep: {error}")
            return
        if self.adaptive and self.count_noise is not None and not 2 * self.count_noise > z:
            accepted = f"above z/2 = {z / 2:.4g}: less noise on the count costs more than the whole release may"
            yield Fault("count_noise", self.count_noise, accepted, ("privacy.noise", "privacy.epsilon"))

    def unclaimed(self) -> Iterable[Fault]:
        """Options for which nothing can be claimed."""
        if self.denominator == "received":
            accepted = (
                "'expected', the same whoever takes part: a random denominator tells who does, and its mean has no "
                "sensitivity of C/m̄"
            )
            yield Fault("denominator", self.denominator, accepted)

    def _unread(self) -> Iterable[Fault]:
        """Options of the adaptive clip where the clip is fixed."""
        for name in () if self.adaptive else ("quantile", "clip_lr", "count_noise"):
            given, default = getattr(self, name), getattr(DpFedAvg, name)
            if given != default:
                accepted = (
                    f"{'none' if default is None else default} with adaptive = false, where the clip stays as it is"
                )
                yield Fault(name, given, accepted)

    def _table(self, privacy: Any) -> Iterable[Fault]:
        if privacy.unit != "client":
            accepted = "'client': a whole update is clipped, and with it all examples of a client at once"
            yield Fault("/privacy.unit", privacy.unit, accepted)
        if privacy.trust != "central":
            yield Fault("/privacy.trust", privacy.trust, "'central': the server itself adds the noise to the sum")
        if privacy.calibration != "tight":
            yield Fault("/privacy.calibration", privacy.calibration, "'tight': dp_fedavg has no calibration of a paper")
        if privacy.epsilon is None and privacy.noise is None and privacy.claim != "none":
            accepted = 'a number, "inf" (clipped, but free of noise), privacy.noise = [z], or claim = "none"'
            yield Fault("/privacy.epsilon", NOTHING, accepted)
        if privacy.noise is not None and len(privacy.noise) != 1:
            yield Fault("/privacy.noise", privacy.noise, "[z], the noise's standard deviation over the clip")

    def _cohort(self, scenario: Any) -> Iterable[Fault]:
        privacy, sampler, clients = scenario.privacy, scenario.server.sampler, scenario.data.clients
        if sampler.name not in self.samplers:
            yield Fault("/server.sampler", sampler.name, "'poisson', 'uniform' or 'fixed', whose law is accounted")
            return
        rate, sampling = cohort_law(scenario.cohort, clients, sampler)
        calibrated = privacy.noise is None and privacy.epsilon not in (None, "inf")
        claimed = privacy.claim != "none" and (calibrated or bool(privacy.noise))
        if rate == 1 or not (calibrated or claimed):
            return
        if sampling == "without_replacement" and (privacy.accountant, privacy.neighbours) != ("rdp", "replace_one"):
            accepted = (
                "'rdp' with neighbours 'replace_one', which alone accounts cohorts of a fixed size; or "
                "server.sampler 'poisson'"
            )
            given = f"{privacy.accountant}, {privacy.neighbours}"
            yield Fault("/privacy.accountant", given, accepted, ("server.sampler", "privacy.neighbours"))
        if sampling == "poisson":
            bounds = ["pld"] if privacy.neighbours == "replace_one" else ["pld", "rdp"]
            if privacy.accountant not in bounds:
                accepted = (
                    f"{' or '.join(map(repr, bounds))} for Poisson cohorts with neighbours '{privacy.neighbours}'"
                )
                yield Fault("/privacy.accountant", privacy.accountant, accepted, ("privacy.neighbours",))

    def set_up(self, setting: Setting) -> None:
        """Calibrate the noise and fix the divisor."""
        self.noise_multiplier, self.deployed = multiplier(setting), setting.deployed
        self.divisor = expected_cohort(setting) if self.denominator == "expected" else None

    def publications(self, setting: Setting, absent: int = 0) -> list[Publication]:
        """The noisy sum of each round and, with ``adaptive``, the noisy count, as the one release that they are."""
        rate, sampling = cohort_law(_cohort(setting), setting.clients, setting.sampler)
        factor = 2 if setting.privacy.neighbours == "replace_one" else 1
        clip = f"each client's update to C = {self.clip:g}"
        if self.adaptive:
            clip = f"each client's update to C, from {self.clip:g} on at the noisy {self.quantile:g}-quantile of norms"
        return [
            Publication(
                "sum of clipped updates" + (" and count of those within C" if self.adaptive else ""),
                clip,
                f"{factor}·C" + (f" and {factor}/2" if self.adaptive else "") + self._over(),
                self.noise_multiplier,
                range(1, setting.rounds + 1),
                sampling_rate=rate,
                sampling=sampling,
                sampled="cohort",
            )
        ]

    def _over(self) -> str:
        return "" if self.denominator == "expected" else ", over a random denominator: unbounded"

    def noises(self, divisor: float) -> tuple[float, float]:
        """(z_Δ, σ_b): multiplier of the noise on the sum, and the noise on the count, which together cost z."""
        z = self.noise_multiplier
        if not self.adaptive or z == 0:
            return z, 0.0
        count_noise = self.count_noise or max(divisor / 20, z)
        return (z**-2 - (2 * count_noise) ** -2) ** -0.5, count_noise

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        clip = float(ctx.state.get("clip", self.clip))
        divisor = float(max(1, len(updates))) if self.divisor is None else self.divisor
        on_sum, on_count = self.noises(divisor)
        norms = updates.norms if len(updates) else torch.zeros(0, dtype=torch.float64)
        factors = (clip / norms.clamp(min=1e-300)).clamp(max=1.0)
        total = updates.weighted_sum(factors, out=torch.float64) if len(updates) else _zeros(updates.reference)
        if on_sum:
            total = self._noised(total, on_sum * clip, ctx, ORIGIN)
        if self.adaptive:
            within = (norms <= clip).double().sub(0.5).sum().reshape(1)
            within = self._noised(within, on_count, ctx, f"{ORIGIN}.count") if on_count else within
            share = 0.5 + float(within) / divisor
            ctx.state["clip"] = clip * math.exp(-self.clip_lr * (share - self.quantile))
        buffers = updates.extras.get("buffers")
        return Aggregate(
            (total / divisor).to(updates.reference),
            torch.full((len(updates),), 1 / divisor, dtype=torch.float64),
            buffers=None if buffers is None else buffers.new_zeros(buffers.shape[1]),
        )

    def _noised(self, values: Tensor, sd: float, ctx: Round, purpose: str) -> Tensor:
        return noised(values, sd, None if self.deployed else ctx.stream(purpose))


def multiplier(setting: Setting) -> float:
    """z, the noise of a round's release over the largest contribution of one client; 0 without any.

    Raises:
        PrivacyError: noise that costs more than the epsilon beside it, or an epsilon that cannot be kept.
    """
    privacy = setting.privacy
    if privacy.epsilon is None or privacy.epsilon == "inf":
        return privacy.noise[0] if privacy.noise else 0.0
    from fedsim.privacy import Release, check_noise, noise_for

    rate, sampling = cohort_law(_cohort(setting), setting.clients, setting.sampler)
    if privacy.noise is None:
        found: float = noise_for(
            privacy.epsilon, privacy.delta, setting.rounds, rate, sampling, privacy.neighbours, privacy.accountant
        )
        return found
    if privacy.claim != "none":
        releases = [Release(privacy.noise[0], setting.rounds, rate, sampling)]
        check_noise(releases, privacy.epsilon, privacy.delta, privacy.accountant, privacy.neighbours)
    return privacy.noise[0]


def expected_cohort(setting: Setting) -> float:
    """m̄: qN of a Poisson cohort, or the size of a fixed one."""
    if setting.sampler.name == "fixed":
        return float(len(setting.sampler.options["clients"]))
    if setting.sampler.name == "poisson":
        return float(setting.sampler.options["rate"]) * setting.clients
    return float(min(_cohort(setting), setting.clients))


def cohort_law(cohort: int, clients: int, sampler: Any) -> tuple[float, Sampling]:
    """(rate, kind) of the sample of clients that a round sees."""
    if sampler.name == "poisson":
        return float(sampler.options["rate"]), "poisson"
    if sampler.name == "fixed":
        return 1.0, "without_replacement"
    return min(cohort, clients) / clients, "without_replacement"


def _cohort(setting: Setting) -> int:
    return setting.clients if setting.cohort is None else setting.cohort


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.float64)
