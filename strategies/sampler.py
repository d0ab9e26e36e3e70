"""Client sampling: which clients take part in a round.

=========  ========================================================================================
uniform    ``per_round`` distinct clients, all subsets alike
by_size    ``per_round`` distinct clients, drawn one after the other with p ∝ example count
poisson    every client by itself with probability ``rate``; the cohort's size is random
fixed      the same clients in every round
=========  ========================================================================================

Ids come back in the order in which they were drawn. A sampler that looks at no example count says so
(``reads_sizes = False``); with any other a claim of privacy for whole clients is refused.

Efraimidis & Spirakis, "Weighted random sampling with a reservoir", Information Processing Letters 2006 (by_size).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.errors import Fault
from fedsim.registry import register

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

sampler = partial(register, "sampler")


@sampler("uniform")
class Uniform:
    """Every subset of ``per_round`` clients is equally likely; the cost does not grow with the population."""

    reads_sizes: ClassVar[bool] = False

    def sample(
        self, round: int, sizes: NDArray[Any], per_round: int, generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """Partition ids in the order in which they were drawn."""
        return distinct(len(sizes), min(per_round, len(sizes)), generator)


@sampler("by_size")
class BySize:
    """Clients drawn one after the other, each time with probability proportional to the example count.

    Clients without examples are never drawn.
    """

    def sample(
        self, round: int, sizes: NDArray[Any], per_round: int, generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """Partition ids in the order in which they were drawn.

        The order of exponential times with rates ``sizes`` has the law of these draws (Efraimidis & Spirakis 2006).
        """
        holders = np.flatnonzero(sizes)
        times = generator.standard_exponential(len(holders)) / sizes[holders]
        count = min(per_round, len(holders))
        first = np.argpartition(times, count - 1)[:count] if count else np.zeros(0, dtype=np.int64)
        return holders[first[np.argsort(times[first], kind="stable")]].astype(np.int64)


@sampler("poisson")
class Poisson:
    """Every client takes part by itself with the same probability, so that the cohort's size varies.

    Args:
        rate: probability of a client to take part in a round; ``per_round`` plays no role.
    """

    reads_sizes: ClassVar[bool] = False

    rate: Annotated[float, Field(gt=0, le=1)]

    def sample(
        self, round: int, sizes: NDArray[Any], per_round: int, generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """Partition ids in random order; there may be none."""
        return distinct(len(sizes), int(generator.binomial(len(sizes), self.rate)), generator)


@sampler("fixed")
class Fixed:
    """The same clients in every round.

    Args:
        clients: partition ids, all different.
    """

    reads_sizes: ClassVar[bool] = False

    clients: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        population = scenario.data.clients
        if max(self.clients) >= population:
            yield Fault("clients", max(self.clients), f"partition ids 0 to {population - 1}", ("data.clients",))
        if len(set(self.clients)) < len(self.clients):
            yield Fault("clients", self.clients, "every partition id once")

    def sample(
        self, round: int, sizes: NDArray[Any], per_round: int, generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """The partition ids as given."""
        return np.array(self.clients, dtype=np.int64)


def distinct(population: int, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """``count`` different numbers below ``population``, every ordered choice alike, in the order drawn.

    A Fisher–Yates shuffle that stops after ``count`` draws and remembers only the places that it moved.
    """
    moved: dict[int, int] = {}
    drawn = np.empty(count, dtype=np.int64)
    places = generator.integers(np.arange(count), population) if count else drawn
    for i, place in enumerate(places.tolist()):
        drawn[i] = moved.get(place, place)
        moved[place] = moved.get(i, i)
    return drawn
