"""The interface of an observer: who is honest but curious, and what its standpoint shows it.

An observer is a class registered with ``@observer("name")`` and named in ``[observe] observers = [...]``. It changes
nothing: it is given copies, draws from streams of its own, and a run's digest is the same with it and without. What it
sees goes by its ``standpoint`` and by who draws the noise (``privacy.trust``):

==========  ======================  ===================================================================================
standpoint  trust                   what it sees of a round
==========  ======================  ===================================================================================
server      no part adds noise      the model that is sent, each client's message as it arrives, the new model
server      ``local``               the same: the messages carry their noise already
server      ``distributed``         the model that is sent, the mean behind secure summation, the new model
server      ``central``             the models alone: the server is trusted, the observer stands outside (the public)
client      any                     the models alone
==========  ======================  ===================================================================================

It knows the scenario, as everybody does: the model's architecture, how clients train, the range of the inputs. Beside
what it sees it is handed the truth, by which it is judged and which it may not use to guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim import rng
from fedsim.client.job import clean_examples, make_job
from fedsim.client.workload import Workload
from fedsim.data.examples import DataInfo, Examples
from fedsim.errors import Fault
from fedsim.registry import register
from fedsim.scenario_privacy import mechanisms

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

observer = partial(register, "observer")

Standpoint = Literal["server", "client"]
Sight = Literal["messages", "sum", "models"]

SIGHTS: dict[Sight, str] = {
    "messages": "each client's message as it arrives",
    "sum": "the sum of the clients' messages",
    "models": "the global models",
}
"""What can be seen of a round beside the model that is sent, in words."""


def sight(scenario: Any, standpoint: Standpoint) -> Sight:
    """What a standpoint shows of a round."""
    if standpoint == "client":
        return "models"
    if not mechanisms(scenario):
        return "messages"
    shown: dict[str, Sight] = {"local": "messages", "distributed": "sum", "central": "models"}
    return shown[scenario.privacy.trust]


@dataclass(frozen=True)
class Sent:
    """A client's message.

    Args:
        vector: (d + b,) what it sends, as a change of the parameters, or the row of the scenario's estimator.
        num_examples: what it says that it trained on.
    """

    vector: Tensor
    num_examples: int


@dataclass(frozen=True)
class Truth:
    """What an observer is judged by, and may not use to guess.

    Args:
        trained: honest clients whose messages have arrived so far, this round included, ascending.
        answered: honest clients whose messages arrived in this round, ascending.
        malicious: clients that have attacked so far, whose data may be poisoned, ascending.
        epsilon: ε spent after this round against this standpoint; None where nothing is claimed.
    """

    trained: tuple[int, ...] = ()
    answered: tuple[int, ...] = ()
    malicious: tuple[int, ...] = ()
    epsilon: float | None = None


@dataclass(frozen=True)
class Seen:
    """A round as a standpoint shows it; all tensors are copies.

    Args:
        round: the round, from 1.
        before: (d + b,) the model that was sent.
        after: (d + b,) the model after the round.
        messages: client → what it sent; empty where the standpoint does not show them.
        total: (d + b,) mean of all messages behind secure summation; None where it is not shown.
        truth: what it is judged by.
    """

    round: int
    before: Tensor
    after: Tensor
    messages: Mapping[int, Sent] = field(default_factory=dict)
    total: Tensor | None = None
    truth: Truth = field(default_factory=Truth)


@dataclass(frozen=True)
class Watched:
    """The run that is observed.

    Args:
        scenario: known to everybody.
        workload: how clients train, known; with their data, which are the truth.
        info: of the data set.
        test: examples that nobody trains on.
        initial: (d + b,) the model before the first round.
        estimator: what clients send in place of training, set up; None where they train.
    """

    scenario: Scenario
    workload: Workload
    info: DataInfo
    test: Examples
    initial: Tensor
    estimator: Any = None

    def outputs(self, vector: Tensor, inputs: Tensor) -> Tensor:
        """(n, C) outputs of a (d + b,) model, differentiable by both."""
        found: Tensor = torch.func.functional_call(self._module, self.workload.layout.views(vector), (inputs,))
        return found

    @property
    def _module(self) -> torch.nn.Module:
        if "module" not in self.__dict__:
            self.__dict__["module"] = self.workload.fresh_module().eval()
        module: torch.nn.Module = self.__dict__["module"]
        return module

    def stream(self, purpose: str, round: int = 0) -> np.random.Generator:
        """Random numbers of an observer, which nothing else in the run draws from."""
        return rng.stream(self.scenario.seed, f"observer.{purpose}", round=round)

    def visited(self, client: int, round: int) -> Examples:
        """Truth: the examples that a client visits in a round, each once, in the order of the first visit."""
        if self.estimator is not None:
            return clean_examples(self.workload, client)
        job = make_job(self.workload, client, round, None, ())
        first = np.sort(np.unique(job.order, return_index=True)[1])
        return job.source.take(job.order[first])


@dataclass(frozen=True)
class Observation:
    """What an observer found out.

    Args:
        measures: numbers and words for ``observations.json``.
        pictures: name → (m, C, H, W) images, of the same m, for the report.
    """

    measures: dict[str, Any]
    pictures: dict[str, NDArray[Any]] = field(default_factory=dict)


class Observer:
    """Base of all observers."""

    standpoint: Standpoint
    goal: ClassVar[str] = ""
    """What it is after, for the catalogue."""
    cost: ClassVar[str] = ""
    """What it costs, for the catalogue."""

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        """What about this observer does not fit the scenario (keys relative to the observer)."""
        return ()

    def fit(self, num_classes: int) -> None:
        """Called when the targets are known, by a scenario's check where a data set tells them unread.

        Raises:
            FedsimError: the observer is not for such targets.
        """

    def set_up(self, watched: Watched) -> Iterable[Fault]:
        """Called once, before the first round, when the data are known; what does not fit them."""
        self.watched = watched
        return ()

    def wants(self, round: int, state: dict[str, Any]) -> bool:
        """Whether it wants to see this round."""
        return True

    def observe(self, seen: Seen, state: dict[str, Any]) -> Observation | None:
        """Look at a round.

        Args:
            seen: what its standpoint shows.
            state: its memory over rounds, checkpointed; ``state["why"]`` says why it has found nothing so far.
        """
        raise NotImplementedError


__all__ = [
    "SIGHTS",
    "Observation",
    "Observer",
    "Seen",
    "Sent",
    "Sight",
    "Standpoint",
    "Truth",
    "Watched",
    "observer",
    "sight",
]
