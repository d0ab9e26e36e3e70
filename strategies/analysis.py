"""The interface of an analysis: what is measured of a round beside accuracy, without changing it.

``before`` may ask clients at the received parameters, ``measure`` sees the round's rows and what the defenses made of
them. Both give named numbers, which stand in ``rounds.jsonl`` as ``part.measure``. An analysis that fails is told in
the round's faults and stops nothing; the model is the same with it and without. Where privacy is claimed, only one
whose class declares what it ``reads`` is let in (see :mod:`fedsim.scenario_privacy`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from fedsim.errors import Fault
from fedsim.registry import register
from fedsim.updates import Updates
from strategies.defense import Reply, Request, Round

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedsim.data.examples import DataInfo
    from fedsim.scenario import Scenario

analysis = partial(register, "analysis")

Measures = dict[str, float | None]


class Analysis:
    """Base of all analyses."""

    handlers: ClassVar[Mapping[str, str]] = {}
    """Message type → name of the method ``(node, content) -> content`` that answers it on a client."""

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        """What about this analysis does not fit the scenario (keys relative to the analysis)."""
        if scenario.guest:
            name = scenario.server.defenses[0].name
            yield Fault("", self._name, f"none in front of '{name}', which keeps its rows", ("server.defenses",))

    def fit(self, num_classes: int) -> None:
        """Raise a FedsimError if it is not for targets of so many classes, 0 for numbers."""

    def set_up(self, scenario: Scenario, info: DataInfo, sizes: NDArray[Any]) -> None:
        """Called once, on the server, before the first round.

        Args:
            scenario: the run.
            info: of the data set.
            sizes: (clients,) examples of each.
        """

    def before(self, ctx: Round) -> Generator[Request, list[Reply], Measures | None]:
        """Exchanges before the training, at the parameters that the clients are about to receive."""
        return None
        yield

    def measure(self, updates: Updates, ctx: Round) -> Measures:
        """Named numbers of a round, ``ctx.aggregate`` being what the defenses made of its rows."""
        return {}

    @classmethod
    def asks(cls) -> bool:
        """Whether it has messages of its own for the clients, or sends those of others."""
        return bool(cls.handlers) or cls.before is not Analysis.before

    @property
    def _name(self) -> str:
        return str(getattr(self, "name", type(self).__name__))


__all__ = ["Analysis", "Measures", "analysis"]
