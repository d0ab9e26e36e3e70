"""The interface of an estimator: what clients send in place of a training update, and the step that the server makes.

A round with an estimator: the server sends its parameters and the records of ``request``; each client's handler
answers with one row, a gradient or a gradient difference; the defenses judge the *step* that each row would cause
(``to_steps``, its inverse ``to_rows``), and ``step`` turns what they made of the rows into the change of the model.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from fedsim.errors import Fault
from fedsim.registry import register
from fedsim.tables import Privacy
from strategies.defense import Reply, Request, Round

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

estimator = partial(register, "estimator")


@dataclass(frozen=True)
class Setting:
    """What an estimator knows of the run before it begins.

    Args:
        rounds: R.
        seed: the scenario's seed.
        sizes: examples of each client.
        privacy: what privacy is asked for.
    """

    rounds: int
    seed: int
    sizes: Sequence[int]
    privacy: Privacy

    @property
    def clients(self) -> int:
        """P."""
        return len(self.sizes)


class Estimator:
    """Base of all estimators."""

    message: ClassVar[str] = "train.estimate"
    """Type of the message that the clients' handler answers."""
    handlers: ClassVar[Mapping[str, str]] = {}
    """Message type → name of the method ``(node, content) -> content`` that answers it on a client."""

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        """What about this estimator does not fit the scenario (keys relative to the estimator)."""
        return ()

    def set_up(self, setting: Setting) -> None:
        """Called once, before the first round, on the server and wherever clients run."""

    def request(self, ctx: Round) -> dict[str, Any]:
        """Records that ride on the round's message beside the parameters."""
        return {}

    def divisor(self, answered: int) -> float:
        """What the sum of all rows is divided by where no defense acts.

        Args:
            answered: valid rows.

        Raises:
            UpdatesError: too few rows to release anything.
        """
        return float(answered)

    def to_steps(self, rows: Tensor, ctx: Round) -> Tensor:
        """(n, d) change of the parameters that each row alone would cause."""
        raise NotImplementedError

    def to_rows(self, steps: Tensor, ctx: Round) -> Tensor:
        """(…, d) inverse of :meth:`to_steps`."""
        raise NotImplementedError

    def step(self, row: Tensor, ctx: Round) -> Tensor:
        """(d,) change of the parameters by the rows' mean; moves the estimator's state on."""
        raise NotImplementedError

    def afterwards(self, ctx: Round) -> Generator[Request, list[Reply], Tensor | None]:
        """Exchanges after the step; its return value, if any, is the (d,) change of the parameters in its place."""
        return None
        yield


__all__ = ["Estimator", "Setting", "estimator"]
