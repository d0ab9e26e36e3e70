"""The Flower Strategy of fedsim: sampled cohorts, validated replies, defenses in a row, a server optimizer.

``configure_train`` draws the cohort and addresses it, ``aggregate_train`` turns the valid replies into an
:class:`~fedsim.updates.Updates` matrix, runs the defenses, steps the server's optimizer and lets each defense finish
the model. It runs on any Flower grid, in ``fedsim.run`` as in Flower's own ``start``. Parts that need further
exchanges get them around the training (:mod:`strategies.exchanges`).
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.app.message_type import MessageType
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor

from fedsim import rng
from fedsim.data.examples import Examples
from fedsim.errors import FedsimError, UpdatesError
from fedsim.flower import Flat, flatten
from fedsim.updates import Aggregate, Layout, Updates
from strategies.analysis import Analysis
from strategies.defense import RAW, Defense, Request, Round, overrides
from strategies.estimator import Estimator
from strategies.exchanges import Exchanges, Post
from strategies.fedavg import FedAvg
from strategies.pipeline import aggregate
from strategies.validity import SECOND, InvalidReply, check_reply, uninvited

log = logging.getLogger("fedsim")

Force = Callable[[int, NDArray[np.int64]], tuple[Sequence[int], list[tuple[int, int]]]]


@dataclass
class Outcome:
    """What happened in a round, for its record.

    Args:
        round: the round.
        cohort: partition ids that were asked, ascending.
        forced: (attacker, client whose draw it took).
        faults: (client, reason) of every reply that did not count; client -1 is the server itself, or a
            node that holds no partition of this federation.
        updates: the valid rows, or None where there were none.
        aggregate: what the defenses made of them.
        acted: whether the defenses changed anything against the weighted mean.
        train_loss: clients' mean training loss, weighted by examples; NaN where no one told.
        measures: what parts measured, under ``part.measure``.
    """

    round: int
    cohort: list[int] = field(default_factory=list)
    forced: list[tuple[int, int]] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)
    updates: Updates | None = None
    aggregate: Aggregate | None = None
    acted: bool = False
    train_loss: float = math.nan
    worst10: float = math.nan
    measures: dict[str, float | None] = field(default_factory=dict)


class DefendedStrategy(Strategy):
    """Federated averaging behind a list of defenses.

    Args:
        defenses: in order, from the clients to the model.
        optimizer: server optimizer part, ``step(parameters, update, state, round)``.
        sampler: sampler part, ``sample(round, sizes, per_round, generator)``.
        estimator: estimator part, set up; None where clients train.
        analyses: analysis parts, set up.
        layout: parameters (d) and buffers (b) of the model.
        sizes: (clients,) examples of each client.
        per_round: clients asked in a round.
        seed: the scenario's seed.
        limit: largest magnitude of a number in a valid reply.
        timeout: seconds to wait in exchanges that parts ask for.
        scale: round → factor on the clients' learning rate.
        force: (round, cohort in draw order) → cohort, [(attacker, replaced)]; the adversary's forced selection.
        root: the server's own clean examples.
        predict: (vector (d + b,), inputs) → logits.
        evaluate_clients: fixed partition ids for per-client accuracy.
        evaluate_every: rounds between such evaluations; 0: never.
        last_round: the round in which they are evaluated in any case.
        secret_cohorts: draw cohorts from the operating system's entropy, since a claim counts on nobody knowing them.
        dtype: precision of what is exchanged.
        device: where the server computes.
    """

    def __init__(
        self,
        defenses: Sequence[Defense],
        optimizer: Any,
        sampler: Any,
        *,
        layout: Layout,
        sizes: NDArray[Any],
        per_round: int,
        estimator: Estimator | None = None,
        analyses: Sequence[Analysis] = (),
        seed: int = 0,
        limit: float = 1e8,
        timeout: float = 3600.0,
        scale: Callable[[int], float] = lambda round: 1.0,
        force: Force | None = None,
        root: Examples | None = None,
        predict: Callable[[Tensor, Tensor], Tensor] | None = None,
        evaluate_clients: Sequence[int] = (),
        evaluate_every: int = 0,
        last_round: int = 0,
        secret_cohorts: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.defenses = list(defenses)
        self.optimizer = optimizer
        self.sampler = sampler
        self.estimator = estimator
        self.analyses = list(analyses)
        self.layout = layout
        self.sizes = sizes
        self.per_round = per_round
        self.secret_cohorts = secret_cohorts
        self.seed = self._drawing = seed
        self.limit = limit
        self.timeout = timeout
        self.force = force
        self.root = root
        self.predict = predict
        self.evaluate_clients = list(evaluate_clients)
        self.evaluate_every = evaluate_every
        self.last_round = last_round
        self.dtype = dtype
        self.device = torch.device(device)
        self.states: list[dict[str, Any]] = [{} for _ in self.defenses]
        self.optimizer_state: dict[str, Any] = {}
        self.estimator_state: dict[str, Any] = {}
        self.analysis_states: list[dict[str, Any]] = [{} for _ in self.analyses]
        self.outcome = Outcome(0)
        self._post = Post(layout, len(sizes), scale)
        self._exchanges = Exchanges(self._post, torch.zeros(0), [], [], limit=limit, timeout=timeout)
        self._vector = torch.zeros(layout.d + layout.b, dtype=dtype)
        self._contexts: list[Round] = []
        self._watching: list[Round] = []
        self._talks: list[tuple[Generator[Request, Any, None], Round]] = []
        self._skipped = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the cohort, let the parts talk first, and address the training message."""
        self._post.connect(grid)
        self._vector = flatten(arrays, self.layout, self.dtype).to(self.device)
        secret = self.secret_cohorts
        generator = np.random.default_rng() if secret else rng.stream(self.seed, "server.sample", round=server_round)
        drawn = np.asarray(self.sampler.sample(server_round, self.sizes, self.per_round, generator), dtype=np.int64)
        if len(np.unique(drawn)) < len(drawn):
            raise FedsimError(
                f"server.sampler: given {drawn.tolist()} in round {server_round}; accepted: each client once, since "
                "who is asked twice answers twice"
            )
        forced: list[tuple[int, int]] = []
        if self.force is not None:
            replaced, forced = self.force(server_round, drawn)
            drawn = np.asarray(replaced, dtype=np.int64)
        cohort = [int(client) for client in np.sort(drawn)]
        self.outcome = Outcome(server_round, cohort, forced)
        self._contexts = [self._context(i, server_round, len(cohort)) for i in range(len(self.defenses))]
        self._exchanges = Exchanges(
            self._post, self._vector, cohort, self.outcome.faults, limit=self.limit, timeout=self.timeout
        )
        self._talks = []
        self._skipped = False
        try:
            for part, ctx in zip(self.defenses, self._contexts, strict=True):
                if overrides(part, "exchanges"):
                    talk = part.exchanges(ctx)
                    self._exchanges.advance(talk, None, ctx, until_train=True)
                    self._talks.append((talk, ctx))
        except UpdatesError as error:
            self.outcome.faults.append((-1, f"round skipped: {error}"))
            self._skipped = True
            return []
        self._watch(server_round, len(cohort))
        records = {key: record for ctx in self._contexts for key, record in ctx.records.items()}
        kind: str = MessageType.TRAIN
        if self.estimator is not None:
            kind = self.estimator.message
            records |= self.estimator.request(self._estimator_context(server_round, len(cohort)))
        return self._post.messages(kind, cohort, self._vector, records, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Validate, defend, step; the parameters stay as they are where no valid row came or no rule could work."""
        outcome = self.outcome
        updates = None if self._skipped else self._collect(replies)
        outcome.updates = updates
        vector = self._vector
        rows = self._no_rows() if updates is None and self._answers_nobody and not self._skipped else updates
        if rows is not None:
            try:
                vector = self._step(rows, self._contexts)
            except UpdatesError as error:
                outcome.faults.append((-1, f"round skipped: {error}"))
                outcome.aggregate = None
        self._conclude()
        self._talks = []
        self._contexts = []
        self._vector = vector
        metrics = {} if math.isnan(outcome.train_loss) else {"train-loss": outcome.train_loss}
        return Flat(vector, self.layout), MetricRecord(metrics)  # type: ignore[arg-type]

    def preview(self, updates: Updates, server_round: int) -> Tensor:
        """(d,) parameters that these rows would lead to: the server, checks of replies included, on copied state.

        What the server draws, it draws from other streams than in the round itself: who knows the defense does not
        know its dice.

        Args:
            updates: (n, d) steps, also where an estimator's rows are no steps.
            server_round: the round.
        """
        kept = self.states, self.optimizer_state, self.estimator_state, self.outcome
        self.states, self.optimizer_state, self.estimator_state = copy.deepcopy(kept[:3])
        self._drawing = rng.integer(self.seed, "server.preview")
        self.outcome = Outcome(server_round, kept[-1].cohort)
        try:
            asked = len(self.outcome.cohort) or self.per_round
            contexts = [self._context(i, server_round, asked) for i in range(len(self.defenses))]
            if self.estimator is not None:
                ctx = self._estimator_context(server_round, asked)
                updates = updates.replace(values=self.estimator.to_rows(updates.values, ctx), kind="gradient")
            return self._step(self._presentable(updates), contexts, talks=False)[: self.layout.d]
        except UpdatesError:
            return self._vector[: self.layout.d].clone()
        finally:
            self.states, self.optimizer_state, self.estimator_state, self.outcome = kept
            self._drawing = self.seed

    def _presentable(self, updates: Updates) -> Updates:
        """The rows that would pass the checks of :func:`~strategies.validity.check_reply`."""
        rows = [updates.values, *(extra for name, extra in updates.extras.items() if name == "buffers")]
        good = torch.stack([(each.abs() <= self.limit).all(dim=1) & each.isfinite().all(dim=1) for each in rows])
        return updates.rows(good.all(dim=0).nonzero().flatten().cpu())

    def to_steps(self, rows: Tensor) -> Tensor:
        """(n, d) the change of the model that each row of this round alone would cause."""
        if self.estimator is None:
            return rows
        return self.estimator.to_steps(rows, self._estimator_context(self.outcome.round, len(self.outcome.cohort)))

    def to_rows(self, steps: Tensor) -> Tensor:
        """Inverse of :meth:`to_steps`."""
        if self.estimator is None:
            return steps
        return self.estimator.to_rows(steps, self._estimator_context(self.outcome.round, len(self.outcome.cohort)))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the fixed clients for their own accuracy, every ``evaluate_every`` rounds and in the last."""
        due = self.evaluate_every and (server_round % self.evaluate_every == 0 or server_round == self.last_round)
        if not due or not self.evaluate_clients:
            return []
        self._post.connect(grid)
        vector = flatten(arrays, self.layout, self.dtype)
        return self._post.messages(MessageType.EVALUATE, self.evaluate_clients, vector, {}, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Mean accuracy of the clients, and of the worst tenth of them (at least one)."""
        accuracies = []
        awaited = set(self.evaluate_clients)
        for reply in replies:
            client = self._post.sender(reply)
            if client not in awaited:
                continue
            awaited.discard(client)
            if reply.has_content() and "metrics" in reply.content.metric_records:
                metrics = reply.content.metric_records["metrics"]
                accuracy, count = metrics.get("accuracy"), metrics.get("num-examples", 0)
                if isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1 and isinstance(count, int) and count > 0:
                    accuracies.append(float(accuracy))
        if not accuracies:
            return None
        worst = sorted(accuracies)[: max(1, len(accuracies) // 10)]
        self.outcome.worst10 = sum(worst) / len(worst)
        return MetricRecord({"accuracy": sum(accuracies) / len(accuracies), "worst10": self.outcome.worst10})

    def summary(self) -> None:
        """Log what this strategy is made of."""
        log.info("defenses: %s", ", ".join(getattr(part, "name", type(part).__name__) for part in self.defenses))
        log.info("cohort: %d of %d clients", self.per_round, len(self.sizes))

    def state_dict(self) -> dict[str, Any]:
        """Memory of the defenses and of the server optimizer (tensors, numbers, strings)."""
        state: dict[str, Any] = {"defenses": self.states, "optimizer": self.optimizer_state}
        if self.estimator is not None:
            state["estimator"] = self.estimator_state
        if self.analyses:
            state["analyses"] = self.analysis_states
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.states, self.optimizer_state = list(state["defenses"]), dict(state["optimizer"])
        self.estimator_state = dict(state.get("estimator", {}))
        self.analysis_states = list(state.get("analyses", self.analysis_states))

    def _context(self, position: int, server_round: int, num_clients: int) -> Round:
        part = self.defenses[position]
        name = f"{position}.{getattr(part, 'name', type(part).__name__)}"
        return self._round_of(name, self.states[position], server_round, num_clients)

    def _watch(self, server_round: int, num_clients: int) -> None:
        """Let the analyses ask what they want to know; what goes wrong with them is told, and stops nothing."""
        self._watching = []
        for position, (part, state) in enumerate(zip(self.analyses, self.analysis_states, strict=True)):
            ctx = self._round_of(f"analysis.{position}.{label_of(part)}", state, server_round, num_clients)
            self._watching.append(ctx)
            try:
                ctx.measures |= self._exchanges.played(part.before(ctx), ctx) or {}
            except UpdatesError as error:
                self.outcome.faults.append((-1, f"analysis {label_of(part)}: {error}"))

    def _conclude(self) -> None:
        """Gather what parts have measured, the analyses last."""
        outcome = self.outcome
        for part, ctx in zip(self.defenses, self._contexts, strict=True):
            self._note(part, ctx)
        for watcher, ctx in zip(self.analyses, self._watching, strict=False):
            if outcome.updates is not None and outcome.aggregate is not None:
                ctx.updates, ctx.aggregate, ctx.train_loss = outcome.updates, outcome.aggregate, outcome.train_loss
                try:
                    ctx.measures |= watcher.measure(outcome.updates, ctx)
                except UpdatesError as error:
                    outcome.faults.append((-1, f"analysis {label_of(watcher)}: {error}"))
            self._note(watcher, ctx)
        self._watching = []

    def _note(self, part: Any, ctx: Round) -> None:
        self.outcome.measures |= {f"{label_of(part)}.{name}": value for name, value in ctx.measures.items()}

    def _estimator_context(self, server_round: int, num_clients: int) -> Round:
        return self._round_of("estimator", self.estimator_state, server_round, num_clients)

    def _round_of(self, part: str, state: dict[str, Any], server_round: int, num_clients: int) -> Round:
        d = self.layout.d
        return Round(
            round=server_round,
            seed=self._drawing,
            part=part,
            layout=self.layout,
            num_clients=num_clients,
            root=self.root,
            predict=self._predict if self.predict is not None else None,
            buffers=self._vector[d:] if self.layout.b else None,
            state=state,
            parameters=self._vector[:d],
        )

    def _predict(self, parameters: Tensor, inputs: Tensor) -> Tensor:
        assert self.predict is not None
        vector = (
            torch.cat([parameters, self._vector[self.layout.d :]]) if len(parameters) == self.layout.d else parameters
        )
        return self.predict(vector, inputs)

    def _collect(self, replies: Iterable[Message]) -> Updates | None:
        """The valid rows in ascending partition id; everything else is named in the outcome's faults."""
        outcome, size = self.outcome, self.layout.d + self.layout.b
        asked = set(outcome.cohort)
        rows: dict[int, tuple[Tensor, int]] = {}
        refused: dict[int, str] = {}
        losses: dict[int, tuple[float, int]] = {}
        told: list[tuple[int, dict[str, Any]]] = []
        for reply in replies:
            client = self._post.sender(reply)
            if client not in asked:
                outcome.faults.append((client, uninvited(reply)))
                continue
            if client in rows or client in refused:
                outcome.faults.append((client, SECOND))
                continue
            try:
                vector, count, metrics = check_reply(reply, self.layout, "delta", self.limit, self.dtype)
            except InvalidReply as error:
                refused[client] = str(error)
                continue
            rows[client] = (vector, count)
            told.append((count, metrics))
            loss = metrics.get("loss")
            if isinstance(loss, (int, float)) and math.isfinite(loss) and count > 0:
                losses[client] = (float(loss), count)
        refused |= dict.fromkeys(asked - rows.keys() - refused.keys(), "no reply")
        outcome.faults += [(client, refused[client]) for client in sorted(refused)]
        outcome.measures |= clipping(told) if self.estimator is not None else friction(told)
        total = sum(count for _, count in losses.values())
        if total:
            outcome.train_loss = sum(losses[client][0] * losses[client][1] for client in sorted(losses)) / total
        if not rows:
            return None
        if not any(count for _, count in rows.values()):
            if not self._answers_nobody:
                outcome.faults.append((-1, "round skipped: no client has examples"))
            return None
        clients = sorted(rows)
        matrix = stack([rows[client][0] for client in clients], size).to(self.device)
        extras = {"buffers": matrix[:, self.layout.d :]} if self.layout.b else {}
        counts = torch.tensor([rows[client][1] for client in clients], dtype=torch.float64)
        return Updates(
            matrix[:, : self.layout.d],
            counts if self.estimator is None or self.estimator.weighted else (counts > 0).double(),
            clients,
            self._vector[: self.layout.d],
            kind="delta" if self.estimator is None else "gradient",
            extras=extras,
            layout=self.layout,
        )

    @property
    def _answers_nobody(self) -> bool:
        return self.estimator is None and any(part.answers_nobody for part in self.defenses)

    def _no_rows(self) -> Updates:
        """What nobody sent."""
        d, none = self.layout.d, self._vector.new_zeros((0, len(self._vector)))
        extras = {"buffers": none[:, d:]} if self.layout.b else {}
        return Updates(none[:, :d], torch.zeros(0), [], self._vector[:d], extras=extras, layout=self.layout)

    def _step(self, updates: Updates, contexts: list[Round], talks: bool = True) -> Tensor:
        """The new (d + b,) vector."""
        d, outcome, rows = self.layout.d, self.outcome, updates
        if self.estimator is not None:
            updates = updates.replace(values=self.to_steps(updates.values), kind="delta")
            outcome.updates = updates
        result = aggregate(self.defenses, updates, contexts)
        outcome.acted = self._changed(updates, result)
        for talk, ctx in self._talks if talks else ():
            ctx.aggregate = result
            ctx.server_step = self._server_step
            self._exchanges.advance(talk, updates, ctx, until_train=False)
            outcome.acted |= ctx.aggregate is not result
            result = ctx.aggregate
        outcome.aggregate = result
        if self.estimator is not None:
            result = replace(result, update=self._estimated(rows, result, talks))
        parameters = self.optimizer.step(self._vector[:d], result.update, self.optimizer_state, outcome.round)
        for part, ctx in zip(self.defenses, contexts, strict=True):
            if overrides(part, "finish"):
                finished = part.finish(parameters, ctx)
                outcome.acted |= not torch.equal(finished, parameters)
                parameters = finished
        if not bool(torch.isfinite(parameters).all()):
            raise UpdatesError("the aggregate is not finite")
        buffers = self._vector[d:]
        if result.buffers is not None and len(buffers):
            buffers = buffers + result.buffers.to(buffers)
        return torch.cat([parameters.to(self._vector), buffers]) if len(buffers) else parameters.to(self._vector)

    def _estimated(self, rows: Updates, result: Aggregate, talks: bool) -> Tensor:
        """(d,) change of the parameters by the estimator, whose rows the defenses have judged as steps."""
        assert self.estimator is not None
        ctx = self._estimator_context(self.outcome.round, len(self.outcome.cohort))
        ctx.updates, ctx.train_loss = rows, self.outcome.train_loss
        if not self._acting("transform", "select", "combine"):
            total = float(rows.num_examples.sum()) if self.estimator.weighted else self.estimator.divisor(len(rows))
            row = rows.weighted_sum(rows.num_examples / total)
        elif not self._acting("transform", "combine"):
            row = rows.weighted_sum(result.weights)
        else:
            row = self.estimator.to_rows(result.update, ctx)
            if not self._acting("select", "combine"):
                answered = int((rows.num_examples > 0).sum())
                row = row * (answered / self.estimator.divisor(len(rows)))
        step = self.estimator.step(row, ctx)
        if talks:
            changed = self._exchanges.played(self.estimator.afterwards(ctx), ctx)
            step = step if changed is None else changed
        self._note(self.estimator, ctx)
        return step

    def _server_step(self, update: Tensor) -> Tensor:
        parameters, state = self._vector[: self.layout.d], copy.deepcopy(self.optimizer_state)
        moved: Tensor = self.optimizer.step(parameters, update, state, self.outcome.round)
        return moved - parameters

    def _acting(self, *stages: str) -> bool:
        """Whether a defense other than plain averaging defines one of these stages."""
        return any(overrides(part, stage) for part in self.defenses if not isinstance(part, FedAvg) for stage in stages)

    def _changed(self, updates: Updates, result: Aggregate) -> bool:
        if not self._acting(*RAW):
            return False
        total = updates.num_examples.sum()
        if total > 0 and not torch.allclose(result.weights, updates.num_examples / total, atol=1e-12, rtol=1e-9):
            return True
        head = slice(0, min(4096, updates.d))
        sample = Updates(updates.values[:, head], updates.num_examples, updates.client_ids, updates.reference[head])
        if not torch.allclose(sample.mean(), result.update[head], rtol=1e-5, atol=1e-12):
            return True
        return not torch.allclose(updates.mean(), result.update, rtol=1e-5, atol=1e-12)


def label_of(part: Any) -> str:
    """A part's name in the record."""
    return str(getattr(part, "name", type(part).__name__))


def clipping(told: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, float | None]:
    """What clients that clip their examples tell of it, which they do only where the server is trusted.

    Args:
        told: (example count, metrics) of each valid reply.

    Returns:
        ``clipped``, the share of the examples that were longer than the radius, and ``nonfinite``, how many had no
        finite gradient and counted as zero; nothing where nobody tells.
    """
    shares = [(n, each["clipped"]) for n, each in told if _is_number(each.get("clipped")) and each["clipped"] <= 1]
    counts = [each["nonfinite"] for _, each in told if _is_number(each.get("nonfinite"))]
    found: dict[str, float | None] = {}
    total = sum(n for n, _ in shares)
    if total:
        found["clipped"] = math.fsum(n * share for n, share in shares) / total
    if counts:
        found["nonfinite"] = int(sum(counts))
    return found


def friction(told: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, float]:
    """``friction``, the mean ξ of the clients' diffGrad weighted by their examples; nothing where nobody tells it."""
    means = [(n, each["friction"]) for n, each in told if _is_number(each.get("friction")) and each["friction"] <= 1]
    total = sum(n for n, _ in means)
    return {"friction": math.fsum(n * mean for n, mean in means) / total} if total else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0


def stack(rows: Sequence[Tensor], size: int) -> Tensor:
    """The rows as one (n, size) matrix; rows that already lie one behind the other in memory are not copied."""
    first = rows[0]
    step = size * first.element_size()
    in_place = all(
        row.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and row.data_ptr() == first.data_ptr() + i * step
        and row.is_contiguous()
        for i, row in enumerate(rows)
    )
    if in_place:
        return first.as_strided((len(rows), size), (size, 1))
    return torch.stack(list(rows))
