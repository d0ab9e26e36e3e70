"""What a run guarantees as it is configured: whose privacy, against whom, at which epsilon.

The mechanism says what it releases with which noise (``publications``); who draws the noise (``privacy.trust``) says
who reads it:

===============  ============================================================================================
``central``      the server sees raw messages and is trusted with them; the public and other clients see what it
                 releases
``distributed``  the public and the server see sums behind secure summation, with the noise of P − f of P shares,
                 f = ``colluding``; another client knows its own share besides
``local``        everyone sees messages that are private by themselves
===============  ============================================================================================

Who sees a cohort gets no amplification by its sampling. The epsilon spent after each round is the closed form where
every release sees all records; otherwise it is accounted at a few rounds, and each round before one of these is said
to have spent as much.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from fedsim.errors import Fault, PrivacyError, ScenarioError
from fedsim.privacy import accounting
from fedsim.privacy.mechanism import Mechanism, Publication, Setting
from fedsim.privacy.releases import Accountant, Release
from fedsim.scenario_privacy import claims, noise_read, unprotected
from fedsim.tables import Privacy, Tables

CURVE_POINTS = 12
"""Rounds at which the epsilon of sampled releases is accounted."""


@dataclass(frozen=True)
class Reader:
    """Against whom: what somebody learns from all that it sees.

    Args:
        name: who.
        epsilons: accountant → epsilon at the scenario's delta; empty: none is guaranteed.
        note: why, or under which condition.
        promised: whether ``privacy.epsilon`` is promised to be kept against it.
    """

    name: str
    epsilons: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    promised: bool = False


@dataclass(frozen=True)
class Guarantee:
    """The guarantee of a run.

    Args:
        mechanism: name of the part that adds the noise.
        privacy: the scenario's table.
        publications: all that it releases.
        readers: against whom; empty where nothing is claimed.
        spent: (rounds,) epsilon after each round against the promised reader; empty where nothing is claimed.
        reasons: why nothing is guaranteed, one line each; empty where something is.
        remarks: what a reader of the numbers must know, one line each.
        dropped: numbers in the model's buffers, which clients send and nothing takes up.
    """

    mechanism: str
    privacy: Privacy
    publications: Sequence[Publication]
    readers: Sequence[Reader] = ()
    spent: Sequence[float] = ()
    reasons: Sequence[str] = ()
    remarks: Sequence[str] = ()
    dropped: int = 0

    @property
    def none(self) -> bool:
        """Whether nothing is guaranteed to anybody."""
        return not self.readers

    def after(self, server_round: int) -> float | None:
        """Epsilon spent after a round; None where nothing is claimed."""
        if self.none:
            return None
        return float(self.spent[server_round - 1]) if server_round else 0.0


def derive(scenario: Tables, name: str, mechanism: Mechanism, setting: Setting) -> Guarantee:
    """The guarantee of a scenario whose mechanism is set up.

    Args:
        scenario: without faults.
        name: the mechanism's name.
        mechanism: the part that adds the noise.
        setting: the run.

    Raises:
        ScenarioError: the noise that is given costs more than the epsilon that is promised.
        PrivacyError: the mechanism's releases cannot be accounted as asked.
    """
    privacy = setting.privacy
    published = list(mechanism.publications(setting))
    if not claims(scenario):
        _check_target(privacy, published)
        return Guarantee(name, privacy, published, reasons=_reasons(scenario))
    readers = list(_readers(mechanism, setting, published))
    _check_target(privacy, published, readers)
    spent = _spent(_against(mechanism, setting), setting)
    return Guarantee(name, privacy, published, readers, spent, remarks=_remarks(setting))


def accounted(releases: Sequence[Release], privacy: Privacy) -> dict[str, float]:
    """Epsilon by every accountant that has a valid bound for these releases."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Renyi orders at which a series does not converge are left out
    found = {}
    for accountant in get_args(Accountant):
        try:
            found[accountant] = accounting.epsilon(releases, privacy.delta, accountant, privacy.neighbours)
        except PrivacyError:
            continue
    return found


def _against(mechanism: Mechanism, setting: Setting, also: int = 0) -> list[Publication]:
    """What is released to a reader who misses or knows ``colluding`` shares and ``also`` more."""
    if setting.privacy.trust != "distributed":
        return list(mechanism.publications(setting))
    return list(mechanism.publications(setting, setting.privacy.colluding + also))


def _readers(mechanism: Mechanism, setting: Setting, published: Sequence[Publication]) -> list[Reader]:
    privacy, f, clients = setting.privacy, setting.privacy.colluding, setting.clients

    def epsilons(kinds: Sequence[Publication], seen: bool) -> dict[str, float]:
        return accounted([each.release(seen) for each in kinds], privacy)

    if privacy.trust == "central":
        found = epsilons(published, False)
        readers = [
            Reader("the public", found, "who sees every model", True),
            Reader("other clients", epsilons(published, True), "who see every model, and their own data"),
            Reader("the server", {}, "it sees the messages before its own noise, and is trusted with them"),
        ]
        if any(each.hidden_cohort for each in published):
            readers[0] = Reader("the public", found, "who sees every model, and no cohort", True)
            readers[1] = Reader("other clients", readers[1].epsilons, "and whoever sees the cohorts")
        return readers
    if privacy.trust == "local":
        found = epsilons(published, True)
        return [Reader("the server", found, "and all others: each message is private before it leaves", True)]
    shares = f"{clients - f} of {clients} shares of the noise"
    readers = [
        Reader(
            "the server, the public",
            epsilons(_against(mechanism, setting), True),
            f"behind secure summation, with {shares} added and unknown",
            True,
        )
    ]
    if f + 1 < clients:
        known = epsilons(_against(mechanism, setting, 1), True)
        note = f"each knows its own share: {clients - f - 1} of {clients} are left"
        return [*readers, Reader("other clients", known, note)]
    return [*readers, Reader("other clients", {}, "with the one that reads, no share of the noise is unknown")]


def _check_target(privacy: Privacy, published: Sequence[Publication], readers: Sequence[Reader] = ()) -> None:
    """Noise that is given beside an epsilon must keep it."""
    if privacy.epsilon is None or privacy.epsilon == "inf" or privacy.claim == "none":
        return
    noiseless = any(each.noise_multiplier == 0 for each in published)
    for epsilons in [{privacy.accountant: math.inf}] if noiseless else [r.epsilons for r in readers if r.promised]:
        if privacy.accountant not in epsilons:
            accepted = f"one that can account these releases: {', '.join(epsilons) or 'none'}"
            raise ScenarioError([Fault("privacy.accountant", privacy.accountant, accepted)])
        spent = epsilons[privacy.accountant]
        if not spent <= privacy.epsilon:
            given = privacy.noise if privacy.noise is not None else privacy.epsilon
            key = "privacy.noise" if privacy.noise is not None else "privacy.epsilon"
            accepted = (
                f"noise for an epsilon of at most {privacy.epsilon:g} at delta = {privacy.delta:g} "
                f"({privacy.neighbours}): this costs {spent:.4g} by {privacy.accountant}"
            )
            raise ScenarioError([Fault(key, given, accepted, ("privacy.epsilon",))])


def _spent(published: Sequence[Publication], setting: Setting) -> list[float]:
    privacy, rounds = setting.privacy, setting.rounds
    seen = privacy.trust != "central"
    if all(each.release(seen).sampling_rate == 1 for each in published):
        squares = np.zeros(rounds + 1)
        for each in published:
            for number in each.rounds:
                squares[number] += each.per_round / each.noise_multiplier**2
        return [_closed(total, privacy) for total in np.cumsum(squares)[1:].tolist()]
    at = sorted({math.ceil(rounds * part / CURVE_POINTS) for part in range(1, CURVE_POINTS + 1)})
    known = {}
    for number in at:
        releases = [each.release(seen, number) for each in published]
        known[number] = accounting.epsilon(releases, privacy.delta, privacy.accountant, privacy.neighbours)
    return [known[next(number for number in at if number >= each)] for each in range(1, rounds + 1)]


def _closed(total: float, privacy: Privacy) -> float:
    """Epsilon of all unsampled releases with Σ 1/z² = ``total``: one Gaussian."""
    if total == 0:
        return 0.0
    return accounting.epsilon([Release(total**-0.5)], privacy.delta, "gdp", privacy.neighbours)


def _remarks(setting: Setting) -> list[str]:
    privacy, examples = setting.privacy, sum(setting.sizes)
    records = examples if privacy.unit == "example" else setting.clients
    if not records or privacy.delta * records < 1:
        return []
    return [
        f"delta = {privacy.delta:g} is not below 1/{records}, one over the number of {privacy.unit}s: a mechanism that "
        f"publishes one {privacy.unit} in whole keeps it, too"
    ]


def _reasons(scenario: Tables) -> list[str]:
    privacy = scenario.privacy
    found = []
    if privacy.noise is None and privacy.epsilon in (None, "inf"):
        found.append(f"privacy.epsilon is {privacy.epsilon or 'not given'}: there is no noise")
    elif privacy.noise is not None and not all(noise_read(scenario)):
        found.append(f"privacy.noise is {privacy.noise}: a release without noise tells all")
    found += [
        f"{fault.key} = {fault.given!s}; valid: {fault.accepted.split(';')[0]}" for fault in unprotected(scenario)
    ]
    return found or ["privacy.claim is 'none': nothing is promised"]


__all__ = ["Guarantee", "Reader", "accounted", "derive"]
