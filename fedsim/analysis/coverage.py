"""How often the intervals of :mod:`fedsim.analysis.statistics` hold what they promise, by simulation.

``python -m fedsim.analysis.coverage`` prints the tables of docs/statistics.md. Each row draws many experiments whose
truth is known and counts the share of intervals, of nominal 95 %, that contain it.

Brown, Cai & DasGupta, "Interval estimation for a binomial proportion", Statistical Science 2001.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from fedsim.analysis.statistics import bootstrap_interval, t_interval, wilson

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

SEEDS = (2, 3, 5, 10)
"""Seeds that people can pay for."""
TRIALS = 2000
DRAWS = 400
"""Resamples of each interval; more move the coverage by less than its own error."""


def _normal(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    return generator.normal(size=n)


def _slipped(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    """An attack that gets in in one seed of five: ASR near 1 there, near 0 elsewhere; its mean is .212."""
    inside = generator.random(n) < 0.2
    return np.where(inside, generator.uniform(0.9, 1.0, n), generator.uniform(0.0, 0.055, n))


def _skewed(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Losses: log-normal with σ = 1, its mean is e^½."""
    return generator.lognormal(size=n)


SHAPES: dict[str, tuple[Draw, float]] = {
    "normal": (_normal, 0.0),
    "skewed (log-normal)": (_skewed, math.exp(0.5)),
    "in one seed of five": (_slipped, 0.2 * 0.95 + 0.8 * 0.0275),
}
"""What a measure looks like over seeds: how it is drawn, and its true mean."""


def over_seeds(method: str, shape: str, seeds: int, trials: int = TRIALS, seed: int = 0) -> float:
    """Share of the intervals over seeds that contain the true mean.

    Args:
        method: ``t`` or ``bootstrap``.
        shape: a key of ``SHAPES``.
        seeds: values of each experiment.
        trials: experiments.
        seed: of the simulation.
    """
    draw, truth = SHAPES[shape]
    generator = np.random.default_rng([seed, seeds])
    held = 0
    for trial in range(trials):
        values = draw(generator, seeds)
        found = t_interval(values) if method == "t" else bootstrap_interval(values, draws=DRAWS, seed=trial)
        held += found.low <= truth <= found.high
    return held / trials


def of_rate(
    rate: float, images: int, seeds: int = 1, spread: float = 0.0, trials: int = TRIALS, seed: int = 0
) -> float:
    """Share of Wilson's intervals of pooled images that contain the true rate.

    Args:
        rate: true mean rate.
        images: eligible images of one seed.
        seeds: seeds whose images are thrown together.
        spread: standard deviation of a seed's own rate around it (a beta distribution); 0: all seeds have the same.
        trials: experiments.
        seed: of the simulation.
    """
    generator = np.random.default_rng([seed, images, seeds])
    rates = np.full((trials, seeds), rate)
    if spread:
        size = rate * (1 - rate) / spread**2 - 1
        rates = generator.beta(rate * size, (1 - rate) * size, (trials, seeds))
    hits = generator.binomial(images, rates).sum(1)
    total = images * seeds
    intervals = {count: wilson(count, total) for count in {int(count) for count in hits}}
    return sum(intervals[int(count)][0] <= rate <= intervals[int(count)][1] for count in hits) / trials


def tables() -> Iterator[str]:
    """The tables in Markdown."""
    yield from _table(
        ("a measure over seeds", "interval", *(f"{seeds} seeds" for seeds in SEEDS)),
        (
            (shape, method, *(_share(over_seeds(method, shape, seeds)) for seeds in SEEDS))
            for shape in SHAPES
            for method in ("t", "bootstrap")
        ),
    )
    yield ""
    sizes = (50, 300, 9000)
    yield from _table(
        ("true rate, one seed, Wilson", *(f"{images} images" for images in sizes)),
        (
            (f"{rate:g}", *(_share(of_rate(rate, images, trials=20_000)) for images in sizes))
            for rate in (0.001, 0.01, 0.1, 0.5)
        ),
    )
    yield ""
    yield from _table(
        ("true rate, spread over seeds (sd), Wilson over pooled images", *(f"{n} seeds of 300" for n in (2, 3, 5))),
        (
            (f"{rate:g}, {spread:g}", *(_share(of_rate(rate, 300, n, spread, 20_000)) for n in (2, 3, 5)))
            for rate, spread in ((0.1, 0.0), (0.1, 0.02), (0.1, 0.1), (0.5, 0.2))
        ),
    )


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


if __name__ == "__main__":
    print("\n".join(tables()))
