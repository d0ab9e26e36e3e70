"""What a part that adds noise is told of its run, and what it says that it releases.

A *mechanism* is an estimator, a defense or an optimizer of the scenario with a method ``publications``; ``[privacy]``
is read by exactly one. From what it says, :mod:`fedsim.privacy.guarantee` derives the guarantee of the whole run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from fedsim.privacy.releases import Release, Sampling
from fedsim.tables import Client, Part, Privacy


@dataclass(frozen=True)
class Setting:
    """What a mechanism knows of the run before it begins.

    Args:
        rounds: R.
        seed: the scenario's seed; None for a defense and an estimator, which may not know it.
        sizes: examples that each client works on.
        privacy: what privacy is asked for.
        cohort: clients in a round; None: all.
        attackers: clients that the adversary holds; 0 for a defense, which may not know it.
        deployed: whether the nodes are others' machines: noise then comes from the operating system's entropy.
        sampler: how cohorts are drawn.
        client: how clients train.
    """

    rounds: int
    seed: int | None
    sizes: Sequence[int]
    privacy: Privacy
    cohort: int | None = None
    attackers: int = 0
    deployed: bool = False
    sampler: Part = field(default_factory=lambda: Part(name="uniform"))
    client: Client = field(default_factory=Client)

    @property
    def clients(self) -> int:
        """P."""
        return len(self.sizes)

    def of(self, kind: str) -> Setting:
        """As a part of this kind is told it."""
        if kind not in ("defense", "estimator"):
            return self
        return replace(self, seed=None, attackers=0 if kind == "defense" else self.attackers)


@dataclass(frozen=True)
class Publication:
    """Gaussian releases of one kind over a run.

    Args:
        name: what leaves, e.g. "clipped gradients".
        clip: what is clipped to which radius, e.g. "each example's gradient to C1 = 1".
        sensitivity: how far one record moves it, as a formula with its numbers.
        noise_multiplier: sd of the noise over the largest contribution of ONE record (see ``Release``).
        rounds: in which rounds it leaves.
        per_round: how often in such a round.
        reads: what is clipped: each client's own data, or what the server's rules make of raw messages.
        sampling_rate, sampling: share of the records that each sees, and how it is drawn.
        sampled: who is drawn: ``cohort``: clients, which the server and all who see the cohort know; ``batch``:
            examples, which nobody but their client knows.
    """

    name: str
    clip: str
    sensitivity: str
    noise_multiplier: float
    rounds: Sequence[int]
    per_round: int = 1
    reads: Literal["each client's own data", "raw messages"] = "each client's own data"
    sampling_rate: float = 1.0
    sampling: Sampling = "poisson"
    sampled: Literal["cohort", "batch"] = "batch"

    @property
    def count(self) -> int:
        """Releases in all."""
        return len(self.rounds) * self.per_round

    @property
    def hidden_cohort(self) -> bool:
        """Whether it costs less only where nobody sees the cohort."""
        return self.sampling_rate < 1 and self.sampled == "cohort"

    def release(self, seen: bool = False, until: int | None = None) -> Release:
        """What is to be accounted.

        Args:
            seen: for a reader who sees the cohorts, for whom sampling them amplifies nothing.
            until: releases up to this round alone.
        """
        rounds = len(self.rounds) if until is None else sum(number <= until for number in self.rounds)
        rate = 1.0 if seen and self.sampled == "cohort" else self.sampling_rate
        return Release(self.noise_multiplier, rounds * self.per_round, rate, self.sampling)


class Mechanism(Protocol):
    """The part that adds the noise. Class attributes with other values than these defaults are looked up by name:

    ``full_participation = True``: every client takes part in every round; ``samplers``: the only ones whose cohorts it
    can account, where it refuses others itself; ``sends_buffers = False``: batch-norm
    statistics leave the clients beside the update; ``bounds_aggregate = False``: it clips what other rules made of the
    rows, so that these need bound nothing; ``diagnostics = ()``: metrics of private data that the clients send along
    where the server is trusted.
    """

    def set_up(self, setting: Setting) -> None:
        """Calibrate the noise; called once."""

    def publications(self, setting: Setting, absent: int = 0) -> Sequence[Publication]:
        """All that leaves, of which ``absent`` shares of the noise (under ``distributed``) do not count."""


__all__ = ["Mechanism", "Publication", "Setting"]
