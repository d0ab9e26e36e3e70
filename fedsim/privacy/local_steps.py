"""What steps on Poisson batches cost a federation's clients, each of which releases its own: the largest of them.

A client of n examples that takes part in K rounds with s steps each makes K·s releases of Poisson samples at the rate
q = min(1, B/n). An example is one client's alone, so that the guarantee is the worst client's. Which rounds a client
takes part in is drawn without a look at data and known to the server; it amplifies nothing, and is counted as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim import registry, rng
from fedsim.errors import FedsimError
from fedsim.privacy.mechanism import Setting
from fedsim.privacy.releases import Release

REPEATED = ("uniform", "poisson", "fixed")
"""Samplers whose draws can be drawn again here; of any other every client is taken to take part in each round."""


@dataclass(frozen=True)
class Local:
    """What one client releases.

    Args:
        rate: q of each release.
        rounds: rounds in which it takes part.
        steps: releases in each of them.
    """

    rate: float
    rounds: int
    steps: int

    @property
    def count(self) -> int:
        return self.rounds * self.steps

    @property
    def size(self) -> float:
        """q²·count, by which the cost of small rates goes (a central limit)."""
        return self.rate**2 * self.count

    def release(self, noise_multiplier: float) -> Release:
        return Release(noise_multiplier, self.count, self.rate)


def participation(setting: Setting) -> tuple[NDArray[np.int64], list[int]]:
    """How many rounds each client is drawn for, and by which round some client has been for the k-th time.

    Raises:
        FedsimError: cohorts that only the seed tells, and a setting without it.
    """
    everybody = setting.cohort == setting.clients and setting.sampler.name != "poisson"
    if setting.cohort is None or everybody or setting.sampler.name not in REPEATED:
        return np.full(setting.clients, setting.rounds), list(range(1, setting.rounds + 1))
    if setting.seed is None:
        raise FedsimError("participation: given a setting without seed; accepted: an optimizer's")
    sampler = registry.make("sampler", setting.sampler.name, **setting.sampler.options)
    sizes = np.asarray(setting.sizes)
    counts = np.zeros(setting.clients, dtype=np.int64)
    when: list[int] = []
    for number in range(1, setting.rounds + 1):
        drawn = sampler.sample(number, sizes, setting.cohort, rng.stream(setting.seed, "server.sample", round=number))
        counts[drawn] += 1
        if len(drawn) and counts[drawn].max() > len(when):
            when.append(number)
    return counts, when


def kinds(setting: Setting) -> list[Local]:
    """The clients' releases, each kind once; without those that cost no more than another by rate and count both."""
    client = setting.client
    counts, _ = participation(setting)
    found = set()
    for n, rounds in {(int(n), int(k)) for n, k in zip(setting.sizes, counts, strict=True) if n and k}:
        epochs = (client.epochs or 1) * -(-n // client.batch_size)
        found.add(Local(min(1.0, client.batch_size / n), rounds, client.steps or epochs))
    kept: list[Local] = []
    for each in sorted(found, key=lambda each: (-each.rate, -each.count)):
        if not kept or each.count > kept[-1].count:
            kept.append(each)
    return kept


def worst(found: Sequence[Local], cost: Callable[[Local], float]) -> Local:
    """The one that costs most.

    Args:
        found: by falling rate and rising count, as :func:`kinds` has them; one or more.
        cost: not falling in the rate, nor in the count.
    """
    best = max(found, key=lambda each: each.size)
    highest = cost(best)
    waiting = [list(found)]
    while waiting:
        group = waiting.pop()
        bound = group[0] if len(group) == 1 else Local(group[0].rate, 1, group[-1].count)
        price = highest if bound is best else cost(bound)
        if price <= highest:
            continue
        if len(group) == 1:
            best, highest = bound, price
            continue
        waiting += halves(group)
    return best


def halves(group: list[Local]) -> Iterable[list[Local]]:
    middle = len(group) // 2
    return group[:middle], group[middle:]
