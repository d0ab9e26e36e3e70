"""The interface of a defense: one or more of five stages, composed in a list from the clients to the model.

=============  ==========================================  ===================================================
stage          signature                                   examples
=============  ==========================================  ===================================================
``transform``  ``(updates, ctx) -> Updates``               clip rows, mix neighbours (pre-aggregation)
``select``     ``(updates, ctx) -> Selection``             drop or down-weight rows (filters)
``combine``    ``(updates, ctx) -> Aggregate``             rows → one update (aggregators)
``bound``      ``(aggregate, ctx) -> Aggregate``           clip what the rules before it made of the rows
``finish``     ``(parameters, ctx) -> parameters``         clip the new model, add noise
=============  ==========================================  ===================================================

A defense is a class registered with ``@defense("name")``; its fields are its options. A selection is followed by
what comes next in the list, at the end by the weighted mean. Detection is measured on selections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.errors import Fault, UpdatesError
from fedsim.registry import register
from fedsim.updates import Aggregate, Layout, Selection, Updates

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

    from fedsim.data.examples import Examples
    from fedsim.scenario import Scenario

defense = partial(register, "defense")

SEEING = ("transform", "select", "combine")
"""Stages that see clients' rows."""

RAW = (*SEEING, "bound")
"""Stages that see what clients sent, or what was made of it, before the server's step."""


@dataclass(frozen=True)
class Request:
    """One exchange with clients that a part asks for.

    Args:
        name: what it is for; shown in errors and records.
        handler: the ClientApp's handler, e.g. ``query.head_statistics`` or ``train.trial``.
        records: what goes down beside the parameters.
        cohort: partition ids; None asks the round's cohort.
        parameters: (d,) parameters to send in place of the current ones.
        uniform: replies whose records are not like most clients' (names, shapes, lengths) are faults; False: the
            part looks at them itself.
    """

    name: str
    handler: str
    records: Mapping[str, ArrayRecord | ConfigRecord | MetricRecord] = field(default_factory=dict)
    cohort: Sequence[int] | None = None
    parameters: Tensor | None = None
    uniform: bool = True


@dataclass(frozen=True)
class Reply:
    """A client's valid reply to a :class:`Request`."""

    client: int
    content: RecordDict


TRAIN = Request("train", "train")
"""Yielded by ``exchanges`` where the round's own training stands; the part is sent the round's :class:`Updates`."""


@dataclass
class Round:
    """What a stage of a defense knows of its round.

    Args:
        round: the round, from 1 (0 when a defense is used alone).
        seed: what :meth:`stream` draws from; the part cannot read it.
        part: name of the part, which keys its random streams.
        layout: parameter layout, None if unknown.
        num_clients: K, clients that were asked in this round.
        root: the server's own clean examples, if the scenario gives it any.
        predict: (parameters (d,), inputs) -> logits, or None where the server has no model.
        buffers: (b,) current buffers.
        state: the part's own memory over rounds (tensors, numbers, strings, dicts of them), checkpointed;
            what concerns a client is keyed by its partition id.
        records: records that this part adds to the round's training message (set before ``TRAIN`` is yielded).
        aggregate: the outcome of the defenses, set after ``TRAIN``; ``exchanges`` may replace it.
        parameters: (d,) parameters at the start of the round.
        updates: the round's rows, as an estimator's step and an analysis see them.
        train_loss: the clients' mean loss, weighted by examples; NaN where no one told.
        server_step: (d,) update -> (d,), what the server's optimizer would add to the parameters; on copied state.
        measures: numbers that this part adds to the round's record, under its name.
    """

    round: int = 0
    seed: InitVar[int] = 0
    part: str = ""
    layout: Layout | None = None
    num_clients: int = 0
    root: Examples | None = None
    predict: Callable[[Tensor, Tensor], Tensor] | None = None
    buffers: Tensor | None = None
    state: dict[str, Any] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    aggregate: Aggregate | None = None
    parameters: Tensor | None = None
    updates: Updates | None = None
    train_loss: float = math.nan
    server_step: Callable[[Tensor], Tensor] | None = None
    measures: dict[str, float | None] = field(default_factory=dict)

    def __post_init__(self, seed: int) -> None:
        self._streams = rng.Streams(seed, f"server.{self.part}")

    def stream(self, purpose: str) -> np.random.Generator:
        """Random numbers of this part for one purpose in this round."""
        return self._streams.stream(f"server.{self.part}.{purpose}", round=self.round)

    def torch_stream(self, purpose: str) -> torch.Generator:
        """As :meth:`stream`, a torch generator on the CPU."""
        return self._streams.torch_stream(f"server.{self.part}.{purpose}", round=self.round)


# The default of what the constructor takes: as an attribute it would say 0 for every seed.
del Round.seed  # type: ignore[attr-defined]


class Defense:
    """Base of all defenses: define at least one stage."""

    coordinatewise: ClassVar[bool] = False
    """True if ``combine`` treats every coordinate alike and alone, so that buffers go through it as well."""
    answers_nobody: ClassVar[bool] = False
    """True if it releases something even where no valid row came, so that noise hides whether anybody took part:
    ``combine`` is then given no rows, ``bound`` a zero aggregate, also where the rules before it have too few rows."""
    handlers: ClassVar[Mapping[str, str]] = {}
    """Handlers that this part wants on the clients: message type, e.g. ``query.statistics`` → name of its method
    ``(node, content: RecordDict) -> RecordDict``; they answer the requests of ``exchanges``."""

    translation_equivariant: ClassVar[bool] = False
    """True if the same vector added to every update is added to the aggregate; the conformance suite tests it."""

    scale_equivariant: ClassVar[bool] = False
    """True if updates times a positive number give the aggregate times it; the conformance suite tests it."""

    cost: ClassVar[str] = ""
    """What it costs beside the mean, in n clients and d parameters; for the catalogue."""

    sees: ClassVar[str] = "updates"
    """What it reads, in words; for the catalogue."""

    sensitivity: ClassVar[Literal["unbounded", "row clip", "sum", "reclip"]] = "unbounded"
    """What one client's row can do to what comes out, for the pipeline's privacy (fedsim/scenario_privacy.py);
    counts only where the class itself declares it."""

    @classmethod
    def defines(cls, *stages: str) -> bool:
        """Whether it defines one of these stages itself."""
        return any(getattr(cls, stage) is not getattr(Defense, stage) for stage in stages)

    @classmethod
    def privacy_stage(cls) -> str:
        """``sensitivity``; ``exchange`` where it sends messages of its own; ``released`` where it sees no row."""
        if cls.handlers or cls.exchanges is not Defense.exchanges:
            return "exchange"
        return str(vars(cls).get("sensitivity", "unbounded")) if cls.defines(*RAW) else "released"

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        """What about this defense does not fit the scenario (keys relative to the defense)."""
        return ()

    def fit(self, num_classes: int) -> None:
        """Called when the data are known; ``num_classes`` is 0 where the targets are numbers.

        Raises:
            FedsimError: the defense is not for such targets.
        """

    def transform(self, updates: Updates, ctx: Round) -> Updates:
        return updates

    def select(self, updates: Updates, ctx: Round) -> Selection:
        return Selection(updates.num_examples)

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        total = updates.num_examples.sum().clamp(min=1e-300)
        return Aggregate(updates.mean(), updates.num_examples / total)

    def bound(self, aggregate: Aggregate, ctx: Round) -> Aggregate:
        return aggregate

    def finish(self, parameters: Tensor, ctx: Round) -> Tensor:
        return parameters

    def exchanges(self, ctx: Round) -> Generator[Request, Any, None]:
        """Messages of its own around the round's training: yields requests, is sent lists of :class:`Reply`.

        Yields ``TRAIN`` exactly once, and is sent the round's updates there.
        """
        yield TRAIN

    def aggregate(self, updates: Updates, ctx: Round | None = None) -> Aggregate:
        """This defense alone: its transform, its selection or the weighted mean, its combination.

        Raises:
            UpdatesError: too few rows for this rule.
        """
        from strategies.pipeline import aggregate

        return aggregate([self], updates, [ctx or Round(part=getattr(self, "name", type(self).__name__))])


def overrides(part: Defense, stage: str) -> bool:
    """Whether this defense defines the stage itself."""
    return getattr(type(part), stage) is not getattr(Defense, stage)


def require(condition: bool, rule: str, given: object, accepted: str) -> None:
    """Raise one clear line where a rule is given rows that it cannot work on."""
    if not condition:
        raise UpdatesError(f"{rule}: given {given}; accepted: {accepted}")
