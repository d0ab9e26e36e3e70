"""The interface of an estimator: what clients send in place of a training update, and the step that the server makes.

A round with an estimator: the server sends its parameters and the records of ``request``; each client's handler
answers with one row, a gradient or a gradient difference; the defenses judge the *step* that each row would cause
(``to_steps``, its inverse ``to_rows``), and ``step`` turns what they made of the rows into the change of the model.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from fedsim import registry
from fedsim.errors import NOTHING, Fault
from fedsim.privacy.mechanism import Setting
from fedsim.registry import register
from fedsim.tables import Client, Part
from strategies.defense import Reply, Request, Round

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

estimator = partial(register, "estimator")


TRAINING = (
    "epochs",
    "steps",
    "batch_size",
    "optimizer",
    "lr_schedule",
    "proximal",
    "clip_norm",
    "augmentation",
    "straggler",
    "optimizer_state",
    "regularizers",
    "step_control",
    "adapter",
)
"""Keys of ``[client]`` that say how a client trains."""


class Estimator:
    """Base of all estimators."""

    message: ClassVar[str] = "train.estimate"
    """Type of the message that the clients' handler answers."""
    handlers: ClassVar[Mapping[str, str]] = {}
    """Message type → name of the method ``(node, content) -> content`` that answers it on a client."""
    weighted: ClassVar[bool] = False
    """Whether a row counts by its client's examples; else every client counts once."""

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        """What about this estimator does not fit the scenario (keys relative to the estimator)."""
        yield from _unread(scenario, self.reads())

    def reads(self) -> Collection[str]:
        """Which of ``[client]``'s keys of training it reads, where it does not train."""
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


def _unread(scenario: Scenario, read: Collection[str]) -> Iterator[Fault]:
    """What is set and would have no effect, since clients answer the estimator in place of training."""
    why, estimator = (
        "the default: clients do not train where server.estimator asks for something else",
        ("server.estimator",),
    )
    for name in TRAINING:
        given = getattr(scenario.client, name)
        if name not in read and not _is_default(name, given):
            yield Fault(f"/client.{name}", _told(given), f"{_told(getattr(Client(), name))!r}, {why}", estimator)
    step = scenario.server.optimizer
    if (step.name, step.options.get("lr", 1.0), step.options.get("momentum", 0.0)) != ("sgd", 1.0, 0.0):
        accepted = "'sgd' with lr = 1, the default: the estimator makes the server's step itself"
        yield Fault("/server.optimizer", step.model_dump(), accepted, estimator)
    if scenario.engine.precision == "bfloat16":
        accepted = "'float32' or 'float64', in which clients compute what the estimator asks for"
        yield Fault("/engine.precision", "bfloat16", accepted, estimator)
    if scenario.engine.path not in ("auto", "reference"):
        accepted = "'auto' or 'reference': the estimator's clients answer one at a time"
        yield Fault("/engine.path", scenario.engine.path, accepted, estimator)
    if scenario.guest:
        name = scenario.server.defenses[0].name
        accepted = "a list of fedsim's own: a stock Flower strategy aggregates parameters, not what is estimated"
        yield Fault("/server.defenses[0]", name, accepted, estimator)


def _told(given: Any) -> Any:
    """A value of a key as the scenario's file would say it."""
    if isinstance(given, list):
        return [_told(each) for each in given]
    if isinstance(given, Part):
        return given.model_dump() if given.options else given.name
    return NOTHING if given is None else given


def _is_default(name: str, given: Any) -> bool:
    default = getattr(Client(), name)
    if name == "epochs":
        return given in (None, 1)
    if name not in ("optimizer", "lr_schedule"):
        return bool(given == default)
    filled, _ = registry.check_options(name, default.name, default.options)
    return given.name == default.name and filled == {**filled, **given.options}


__all__ = ["Estimator", "Setting", "estimator"]
