"""The canary that an audit sends through a mechanism, and the mechanism that it goes through.

The mechanism is the real one: its clients' handler with the clip, its noise, the server's stages and step. Only the
model is a stand-in: a :class:`Probe` says what each example's gradient is, so that they enter right before the clip.
All examples have the gradient zero but the canary, on the client with the smallest n_p: s·L·n_p·C·u at the iterate x_r
and −s·L·n_p·C·u at x_{r−1}, with L ≫ 1, so that its contribution is clipped in every release, whatever is clipped. A
canary *client* (``unit = "client"``) is one whose examples all have this gradient. Against what follows a private
message (``trust = "local"``) there is nothing to audit, and it is left out.

A mechanism joins by ``@subject.register``: a function (mechanism, federation) -> :class:`Subject`.

Nasr et al., "Tight Auditing of Differentially Private Machine Learning", USENIX Security 2023, arXiv 2302.07956.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, singledispatch
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim import rng
from fedsim.data.examples import Examples
from fedsim.errors import FedsimError
from fedsim.federation import Federation, make, setting_of
from fedsim.flower import flatten
from fedsim.privacy.mechanism import Setting
from fedsim.scenario_privacy import mechanisms
from fedsim.updates import Aggregate, Layout, Updates
from strategies.defense import Defense, Round
from strategies.diff2 import GradientDifferences, radius_of
from strategies.strategy import DefendedStrategy, Outcome

LOUDNESS = 100.0
"""L: how much longer the canary's raw gradient is than what a clip of a client's mean would still let pass."""

DIMENSIONS = 32
"""Largest number of the probe's parameters: noise has one law in every direction, and one direction is looked at."""


class Subject(Protocol):
    """A mechanism with a canary in it, ready to be played as often as the audit wants."""

    @property
    def canary(self) -> str:
        """What the canary is, for people."""

    @property
    def sampled(self) -> bool:
        """Whether a release may miss the canary by chance, in which case it is no plain Gaussian."""

    @property
    def noise(self) -> NDArray[np.float64]:
        """(R,) claimed sd of each release's noise on u, in units of its radius C_r."""

    @property
    def shift(self) -> NDArray[np.float64]:
        """(R,) how far a canary of sign 1 moves each release along u at most, by the claim, in units of C_r."""

    def play(self, sign: float, seed: int) -> NDArray[np.float64]:
        """(R,) ⟨m_r − the known honest part, u⟩ / C_r of one run of the mechanism.

        Args:
            sign: s; 0 where the canary is absent.
            seed: of the run's noise.
        """


@singledispatch
def subject(mechanism: object, federation: Federation) -> Subject:
    """The mechanism of a federation with a canary in it.

    Raises:
        FedsimError: there is no canary for mechanisms of this kind.
    """
    name = getattr(mechanism, "name", type(mechanism).__name__)
    raise FedsimError(
        f"audit: given the mechanism '{name}'; accepted: 'diff2', 'dp_gd', 'dp_fedavg', 'dp_sgd', 'reclip'"
    )


def subject_of(federation: Federation) -> Subject:
    """The subject of a federation that claims something.

    Raises:
        FedsimError: it has no mechanism, or none that can be audited.
    """
    if federation.estimator is not None:
        return subject(federation.estimator, federation)
    for _, kind, part in mechanisms(federation.scenario):
        mechanism = make(kind, part)
        mechanism.set_up(setting_of(federation.scenario, federation.shares.sizes).of(kind))
        return subject(mechanism, federation)
    raise FedsimError("audit: given a scenario without a part that adds noise; accepted: server.estimator = 'diff2', …")


def direction(dimensions: int) -> Tensor:
    """(d,) u: a unit vector, the same in every audit."""
    drawn = rng.stream(0, "audit.direction").standard_normal(dimensions)
    return torch.from_numpy(drawn / np.linalg.norm(drawn))


class Probe(nn.Module):
    """A model whose per-example gradients are what the audit says: ``raw`` at the iterate ``now``, −``raw`` elsewhere.

    An example's input is the share of it that it has: 1 for a canary, 0 for all others.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(dimensions, dtype=torch.float64))
        # One frozen parameter, of no numbers, spares the search for linear layers in a model that has none.
        self.frozen = nn.Parameter(self.x.new_zeros(0), requires_grad=False)
        self.raw = torch.zeros(dimensions, dtype=torch.float64)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.x.sum()

    def gradient_rows(self, parameters: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, d) gradients of the examples."""
        return inputs * (self.raw if parameters["x"].equal(self.x) else -self.raw)


@dataclass
class Site:
    """A client as the mechanism's handler sees it (see :class:`fedsim.client.node.Node`)."""

    module: Probe
    held: Examples
    client: int
    round: int
    parameters: Tensor
    seed: int
    layout: Layout

    @property
    def workload(self) -> Any:
        return SimpleNamespace(layout=self.layout, example_loss=None, seed=self.seed)

    def examples(self) -> Examples:
        return self.held

    def stream(self, purpose: str) -> np.random.Generator:
        return rng.stream(self.seed, purpose, round=self.round, client=self.client)


class Server(DefendedStrategy):
    """The server's real step, on rows that come from no grid."""

    def begin(self, server_round: int, parameters: Tensor) -> Round:
        """A round begins; what the estimator knows of it."""
        self._vector = parameters
        self.outcome = Outcome(server_round, list(range(self.per_round)))
        self._contexts = [self._context(i, server_round, self.per_round) for i in range(len(self.defenses))]
        return self._estimator_context(server_round, self.per_round)

    def end(self, rows: Tensor) -> Tensor:
        """The defenses and the estimator's step; the (d,) new parameters."""
        clients, ones = list(range(len(rows))), torch.ones(len(rows), dtype=torch.float64)
        updates = Updates(rows, ones, clients, self._vector, kind="gradient", layout=self.layout)
        if self._acting("transform", "select", "combine", "finish"):
            return self._step(updates, self._contexts, talks=False)
        # What plain averaging tells of the round beside the step is not looked at here.
        return self._vector + self._estimated(updates, Aggregate(self._vector, ones), talks=False)

    def _changed(self, updates: Updates, result: Aggregate) -> bool:
        """Never asked: whether a defense acted stands in no verdict, and takes as long as the defense."""
        return False


@dataclass
class Differences:
    """A canary in DIFF2 or DP-GD.

    Args:
        part: the estimator, set up.
        setting: the run.
        sigma: the claimed σ of each round.
        defenses: stages in front of the server's step.
        optimizer, sampler: the server's.
        dimensions: the probe's parameters.
    """

    part: GradientDifferences
    setting: Setting
    sigma: NDArray[np.float64]
    defenses: Sequence[Defense]
    optimizer: Any
    sampler: Any
    dimensions: int
    sampled: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        sizes = self.setting.sizes
        self.client = int(np.argmin(sizes))
        self.count = int(sizes[self.client])
        self.module = Probe(self.dimensions)
        self.layout = Layout.of(self.module)
        self.direction = direction(self.dimensions)
        marks = torch.zeros(self.count, 1, dtype=torch.float64)
        marks[slice(None) if self.setting.privacy.unit == "client" else -1] = 1.0
        self.held = Examples(marks, torch.zeros(self.count))
        self.nothing = Examples(torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1))

    @property
    def canary(self) -> str:
        one = "client" if self.setting.privacy.unit == "client" else "one example of client"
        return f"{one} {self.client}, which holds {self.count} examples"

    @property
    def _shared(self) -> int:
        """By what the mean over clients divides; a message is released by itself under ``local``."""
        return 1 if self.setting.privacy.trust == "local" else self.setting.clients

    @cached_property
    def noise(self) -> NDArray[np.float64]:
        known = self.setting.privacy.colluding
        return self.sigma * math.sqrt((self.setting.clients - known) / self.setting.clients)

    @cached_property
    def shift(self) -> NDArray[np.float64]:
        among = 1 if self.setting.privacy.unit == "client" else self.count
        return np.full(self.setting.rounds, 1 / (among * self._shared))

    def play(self, sign: float, seed: int) -> NDArray[np.float64]:
        server = Server(
            self.defenses, self.optimizer, self.sampler, estimator=self.part, layout=self.layout,
            sizes=np.asarray(self.setting.sizes), per_round=self.setting.clients, seed=seed, dtype=torch.float64,
        )  # fmt: skip
        parameters = torch.zeros(self.dimensions, dtype=torch.float64)
        seen = np.zeros(self.setting.rounds)
        for number in range(1, self.setting.rounds + 1):
            ctx = server.begin(number, parameters)
            restart = self.part.restarts(ctx)
            radius = self.part.c1 if restart else radius_of(self.part.c2, parameters, ctx.state["at"])
            before = 0.0 if restart else ctx.state["v"]
            self.module.x.data = parameters
            self.module.raw = self.direction * (sign * LOUDNESS * self.count * radius)
            rows = self._rows(RecordDict(self.part.request(ctx)), parameters, number, seed, restart)
            parameters = server.end(rows)
            if radius:
                local = self.setting.privacy.trust == "local"
                message = rows[self.client] if local else server.estimator_state["v"] - before
                seen[number - 1] = float(message @ self.direction) / radius
        return seen

    def _rows(self, content: RecordDict, parameters: Tensor, number: int, seed: int, restart: bool) -> Tensor:
        """(P, d) what the clients send; noise whose share is known to the adversary is taken off."""
        rows = self.others(restart)
        privacy, shared = self.setting.privacy, self.setting.privacy.trust == "distributed"
        known = [client for client in range(self.setting.clients) if client != self.client][: privacy.colluding]
        for client in range(self.setting.clients):
            if client == self.client or (shared and client not in known):
                held = self.held if client == self.client else self.nothing
                site = Site(self.module, held, client, number, parameters, seed, self.layout)
                answer = self.part.measure(site, content)["arrays"]
                rows[client] += flatten(answer, self.layout, torch.float64)  # type: ignore[arg-type]
        return rows

    def others(self, restart: bool) -> Tensor:
        """(P, d) the honest clients' known messages without noise."""
        return torch.zeros(self.setting.clients, self.dimensions, dtype=torch.float64)


@subject.register
def _(mechanism: GradientDifferences, federation: Federation) -> Differences:
    if mechanism.subroutine != "gd":
        raise FedsimError(f"audit: given subroutine = '{mechanism.subroutine}'; accepted: 'gd', which alone is private")
    scenario, local = federation.scenario, federation.scenario.privacy.trust == "local"
    defenses = [] if local else [make("defense", part) for part in scenario.server.defenses]
    numbers, interval = range(scenario.rounds), mechanism.interval(scenario.rounds)
    return Differences(
        mechanism,
        replace(mechanism.setting, deployed=False),
        np.asarray([mechanism.sigma[0 if number % interval == 0 else 1] for number in numbers]),
        defenses,
        make("server_optimizer", scenario.server.optimizer),
        make("sampler", scenario.server.sampler),
        min(federation.layout.d, DIMENSIONS),
    )


__all__ = ["Differences", "Probe", "Subject", "direction", "subject", "subject_of"]
