"""Client sampling: which clients take part in a round.

=========  ========================================================================================
uniform    ``per_round`` distinct clients, all subsets alike
by_size    ``per_round`` distinct clients, drawn one after the other with p ∝ example count
poisson    every client by itself with probability ``rate``; the cohort's size is random
fixed      the same clients in every round
=========  ========================================================================================

Ids come back in the order in which they were drawn.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.registry import register

sampler = partial(register, "sampler")


@sampler("uniform")
class Uniform:
    """Every subset of ``per_round`` clients is equally likely; the cost does not grow with the population."""

    def sample(
        self, round: int, sizes: NDArray[Any], per_round: int, generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """Partition ids in the order in which they were drawn."""
        return distinct(len(sizes), min(per_round, len(sizes)), generator)


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
