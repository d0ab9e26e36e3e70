"""Releases: what leaves with Gaussian noise, how often, and of how large a sample of the records."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from fedsim.errors import PrivacyError

Accountant = Literal["pld", "rdp", "gdp"]
Neighbours = Literal["replace_one", "add_or_remove"]
Sampling = Literal["poisson", "without_replacement"]

SENSITIVITY: dict[Neighbours, float] = {"replace_one": 2.0, "add_or_remove": 1.0}
"""How far a record moves a sum, in units of its largest contribution."""


@dataclass(frozen=True)
class Release:
    """A Gaussian release, repeated: a sum over records plus noise.

    Args:
        noise_multiplier: standard deviation of the noise, in units of the largest contribution C of ONE record (a
            clip's radius, never twice of it: the accountant applies the relation between neighbours). Infinity tells
            nothing, zero tells all.
        count: how many releases of this kind there are.
        sampling_rate: share of the records that each release sees; 1 is all of them.
        sampling: ``poisson`` takes each record independently with that probability, ``without_replacement`` a fixed
            number of them. Nobody but the one who draws may see who was drawn, or the rate is 1.
    """

    noise_multiplier: float
    count: int = 1
    sampling_rate: float = 1.0
    sampling: Sampling = "poisson"

    def __post_init__(self) -> None:
        if not self.noise_multiplier >= 0:
            raise PrivacyError(f"noise_multiplier: given {self.noise_multiplier!r}; accepted: 0 or more, or infinity")
        if not float(self.count).is_integer() or self.count < 0:
            raise PrivacyError(f"count: given {self.count!r}; accepted: an integer of 0 or more")
        if not 0 < self.sampling_rate <= 1:
            raise PrivacyError(f"sampling_rate: given {self.sampling_rate!r}; accepted: above 0, up to 1")
        check_choice("sampling", self.sampling, get_args(Sampling))

    @property
    def sampled(self) -> bool:
        """Whether a release sees less than all records."""
        return self.sampling_rate < 1


ReleaseLike: TypeAlias = Release | tuple[float, int] | tuple[float, int, float]


def grouped(releases: Iterable[ReleaseLike]) -> list[Release]:
    """Equal releases as one with their counts added, in order of appearance; without those that tell nothing."""
    counts: dict[tuple[float, float, Sampling], int] = {}
    for given in releases:
        release = given if isinstance(given, Release) else Release(*given)
        if release.count == 0 or math.isinf(release.noise_multiplier):
            continue
        sampling: Sampling = release.sampling if release.sampled else "poisson"
        key = (float(release.noise_multiplier), float(release.sampling_rate), sampling)
        counts[key] = counts.get(key, 0) + int(release.count)
    return [Release(multiplier, count, rate, kind) for (multiplier, rate, kind), count in counts.items()]


def check_choice(name: str, given: object, accepted: tuple[str, ...]) -> None:
    """Raise a PrivacyError unless the given is one of the accepted."""
    if given not in accepted:
        raise PrivacyError(f"{name}: given {given!r}; accepted: {', '.join(accepted)}")


def check_delta(delta: float) -> None:
    """Raise a PrivacyError unless 0 < delta < 1."""
    if not 0 < delta < 1:
        raise PrivacyError(f"delta: given {delta!r}; accepted: above 0, below 1")
