"""An attack on a privacy claim: a canary through the mechanism as it is configured, and what can be told from outside.

The mechanism runs N/2 times with the canary of sign +1 and N/2 times with its opposite (with its absence under
``add_or_remove``). Of what each run releases, m_r, the adversary looks at

    Σ_r ⟨m_r − the known honest part, u⟩ / (C_r σ_r²)     and     z_r − z_q,   z_r = ⟨m_r − …, u⟩ / (C_r σ_r),

the latter for every pair of releases (which finds noise that is used twice), and says which of the two it was by a
threshold in the middle, fixed beforehand. Where releases are sampled, Clopper and Pearson alone are left, whose bound
lives in the tails: the sum is then held against thresholds there as well, which share its half of the error. The rates
of its errors, α and β, are bounded from above by Clopper and Pearson; whoever is (ε, δ)-private has
α + e^ε β ≥ 1 − δ and β + e^ε α ≥ 1 − δ, and a Gaussian mechanism, which all unsampled ones together are, has
Φ⁻¹(1 − α) − Φ⁻¹(β) ≤ μ. Either gives a lower bound on ε. All of an audit's bounds hold together with the probability
.998: half of the error is spent on the sum, half is shared by the pairs.

A bound below the claim proves nothing; one above it, that the claim is false.

Nasr et al., "Tight Auditing of Differentially Private Machine Learning", USENIX Security 2023, arXiv 2302.07956;
Clopper & Pearson, "The Use of Confidence or Fiducial Limits", Biometrika 1934.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import beta

from fedsim import canary_aggregates, canary_steps, canary_updates, rng, runtime  # noqa: F401  (each has its canaries)
from fedsim.canary import Subject, subject_of
from fedsim.errors import FedsimError
from fedsim.federation import build
from fedsim.privacy.accounting import epsilon
from fedsim.scenario import Scenario

CONFIDENCE = 0.998
"""With which all bounds of an audit hold together."""

MIDDLE = {"replace_one": 0.0, "add_or_remove": 0.5}
"""The threshold, as a share of what the canary of sign 1 moves a statistic by the claim."""

TAILS = (0.0, 1.3, -1.3, 1.9, -1.9, 2.4, -2.4)
"""Thresholds of a sampled mechanism's sum, in standard deviations of its claimed noise from the middle."""

PARALLEL = 20_000
"""Releases of all trials from which on more than one process is worth its start."""


@dataclass(frozen=True)
class Claim:
    """What is to be refuted.

    Args:
        epsilon: ε.
        delta: δ.
        neighbours: the relation between neighbours.
        reader: against whom.
        accountant: who says so.
    """

    epsilon: float
    delta: float
    neighbours: str = "replace_one"
    reader: str = ""
    accountant: str = ""

    def __str__(self) -> str:
        return (
            f"ε = {self.epsilon:.4g} at δ = {self.delta:g} ({self.neighbours}, by {self.accountant}) "
            f"against {self.reader}"
        )


@dataclass(frozen=True)
class Bound:
    """Lower bounds on ε from one way to tell the two sides apart.

    Args:
        what: the statistic.
        alpha: share of the other side that was taken for the canary of sign 1.
        beta: share of the canary's side that was not.
        plain: by Clopper and Pearson alone.
        gaussian: by the Gaussian trade-off function; None where the mechanism samples.
    """

    what: str
    alpha: float
    beta: float
    plain: float
    gaussian: float | None

    @property
    def epsilon(self) -> float:
        """The better of the two."""
        return max(self.plain, self.gaussian or 0.0)


@dataclass(frozen=True)
class Verdict:
    """What an audit with one seed found.

    Args:
        claim: what was claimed.
        total: by the sum over all releases.
        pair: by the best pair of releases; None where there is one release.
        trials: runs of the mechanism, both sides together.
        seed: of the audit.
    """

    claim: Claim
    total: Bound
    pair: Bound | None
    trials: int
    seed: int

    @property
    def bound(self) -> float:
        """The best lower bound on ε."""
        return max(self.total.epsilon, self.pair.epsilon if self.pair else 0.0)

    @property
    def refuted(self) -> bool:
        """Whether the claim is false."""
        return self.bound > self.claim.epsilon


@dataclass(frozen=True)
class Audit:
    """A claim, and what it is put to the test with."""

    claim: Claim
    subject: Subject

    def run(self, trials: int, seed: int, workers: int | None = None) -> Verdict:
        """Play and judge.

        Args:
            trials: runs of the mechanism, half of them on each side.
            seed: of the audit, which changes the noise of every run.
            workers: processes; by default as many as there are cores where that pays. They change no bit.
        """
        if trials < 2 or trials % 2:
            raise FedsimError(f"trials: given {trials}; accepted: an even number of 2 or more")
        absent = 0.0 if self.claim.neighbours == "add_or_remove" else -1.0
        half = trials // 2
        plays = [(1.0 if trial < half else absent, rng.integer(seed, "audit", round=trial)) for trial in range(trials)]
        seen = _play(self.subject, plays, workers)
        return judge(self.claim, self.subject, seen[:half], seen[half:], seed)


def prepare(scenario: Scenario) -> Audit:
    """The audit of a scenario.

    Raises:
        ScenarioError: the claim does not even hold on paper.
        FedsimError: nothing is claimed, or the mechanism cannot be audited.
    """
    federation = build(scenario)
    guarantee = federation.guarantee
    reader = next((each for each in guarantee.readers if each.promised), None) if guarantee else None
    if guarantee is None or reader is None:
        why = "; ".join(guarantee.reasons) if guarantee else "no part adds noise"
        raise FedsimError(f"audit: given a scenario that claims no privacy ({why}); accepted: one that does")
    privacy = guarantee.privacy
    claim = Claim(
        reader.epsilons[privacy.accountant], privacy.delta, privacy.neighbours, reader.name, privacy.accountant
    )
    return Audit(claim, subject_of(federation))


def judge(
    claim: Claim, subject: Subject, present: NDArray[np.float64], absent: NDArray[np.float64], seed: int = 0
) -> Verdict:
    """Lower bounds on ε from what was seen.

    Args:
        claim: what was claimed.
        subject: what was played.
        present: (n, R) releases along u, in units of their radii, with the canary of sign 1.
        absent: (n, R) the same with its opposite, or without it.
        seed: of the audit.
    """
    error, middle = (1 - CONFIDENCE) / 2, MIDDLE[claim.neighbours]
    weights, threshold = subject.noise**-2.0, middle * float((subject.shift / subject.noise**2).sum())
    spread = float((subject.noise**-2.0).sum()) ** 0.5
    thresholds = threshold + spread * np.asarray(TAILS if subject.sampled else TAILS[:1])
    false = ((absent @ weights)[:, None] > thresholds).sum(0)
    missed = ((present @ weights)[:, None] <= thresholds).sum(0)
    total = _bounds("sum", false, missed, len(present), error / len(thresholds), claim, subject)
    return Verdict(claim, total, _best_pair(claim, subject, present, absent, error), len(present) * 2, seed)


def _best_pair(
    claim: Claim, subject: Subject, present: NDArray[np.float64], absent: NDArray[np.float64], error: float
) -> Bound | None:
    """The best of all pairs of releases, each of which gets its share of the error for either order of the two."""
    rounds = present.shape[1]
    if rounds < 2:
        return None
    ours, theirs = present / subject.noise, absent / subject.noise
    expected = MIDDLE[claim.neighbours] * subject.shift / subject.noise
    share = error / (rounds * (rounds - 1))
    found = []
    for first in range(rounds):
        others = np.delete(np.arange(rounds), first)
        threshold = expected[others] - expected[first]
        alpha = ((theirs[:, others] - theirs[:, [first]]) > threshold).sum(0)
        missed = ((ours[:, others] - ours[:, [first]]) <= threshold).sum(0)
        best = _bounds("", alpha, missed, len(present), share, claim, subject, [(first, int(q)) for q in others])
        found.append(best)
    return max(found, key=lambda each: each.epsilon)


def _bounds(
    what: str, false: NDArray[Any], missed: NDArray[Any], count: int, error: float, claim: Claim, subject: Subject,
    pairs: Sequence[tuple[int, int]] = (),
) -> Bound:  # fmt: skip
    """The best bound of several statistics, of whose two error rates each is bounded with half of the error."""
    alpha, miss = upper(false, count, error / 2), upper(missed, count, error / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.fmax((1 - claim.delta - alpha) / miss, (1 - claim.delta - miss) / alpha)
        plain = np.log(np.fmax(odds, 1.0))
        mu = np.zeros(len(alpha)) if subject.sampled else np.fmax(ndtri(1 - alpha) - ndtri(miss), 0.0)
    found = []
    for best in {int(np.argmax(plain)), int(np.argmax(mu))}:
        name = "releases {1} and {0}".format(*(number + 1 for number in pairs[best])) if pairs else what
        by_gaussian = None if subject.sampled else gaussian(float(mu[best]), claim.delta)
        rates = float(false[best] / count), float(missed[best] / count)
        found.append(Bound(name, *rates, float(plain[best]), by_gaussian))
    return max(found, key=lambda each: each.epsilon)


def upper(successes: NDArray[Any], count: int, error: float) -> NDArray[np.float64]:
    """Clopper and Pearson's upper limit of a probability, exceeded with at most the probability ``error``."""
    limits = beta.ppf(1 - error, successes + 1, np.maximum(count - successes, 1))
    return np.where(successes < count, limits, 1.0)


def gaussian(mu: float, delta: float) -> float:
    """ε at δ of a μ-GDP mechanism."""
    return epsilon([(1 / mu, 1)], delta, "gdp", "add_or_remove") if mu > 0 else 0.0


def _play(subject: Subject, plays: Sequence[tuple[float, int]], workers: int | None) -> NDArray[np.float64]:
    """(N, R) what each run released."""
    if workers is None:
        workers = runtime.cores() if len(plays) * len(subject.noise) >= PARALLEL else 1
    if workers == 1:
        return np.stack([subject.play(*each) for each in plays])
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (subject,)) as pool:
        return np.stack(list(pool.map(_play_one, plays, chunksize=max(1, len(plays) // (8 * workers)))))


_playing: list[Subject] = []


def _begin(subject: Subject) -> None:
    import torch

    torch.set_num_threads(1)
    _playing[:] = [subject]


def _play_one(play: tuple[float, int]) -> NDArray[np.float64]:
    return _playing[0].play(*play)


def lines(verdict: Verdict) -> Iterator[tuple[str, ...]]:
    """One line a statistic: seed, statistic, α, β, both bounds, verdict."""
    for bound in (verdict.total, verdict.pair):
        if bound is not None:
            numbers = (bound.alpha, bound.beta, bound.plain, bound.gaussian)
            shown = ("–" if number is None else f"{number:.3f}" for number in numbers)
            refuted = bound.epsilon > verdict.claim.epsilon
            yield str(verdict.seed), bound.what, *shown, "REFUTED" if refuted else "not refuted"


HEADS = ("seed", "statistic", "α", "β", "ε ≥ (Clopper–Pearson)", "ε ≥ (Gaussian)", "verdict")

__all__ = ["HEADS", "Audit", "Bound", "Claim", "Verdict", "judge", "lines", "prepare"]
