"""Stock Flower strategies as defenses: ``defenses = ["flwr:FedMedian"]``.

A :class:`Guest` wraps any strategy of ``flwr.serverapp.strategy`` by its class name; its options are the strategy's
own. It is a Flower Strategy itself, with what the stock ones lack: replies are checked before they reach it, and
what is wrong is said by client; the global random states from which it samples are seeded per round and restored;
its memory (moments, current arrays, numbers) can be saved and loaded, so that an interrupted run goes on bit for bit.
Rows with zero examples do not vote.

Beutel et al., "Flower: A Friendly Federated Learning Framework", arXiv:2007.14390.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, ClassVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import Strategy

from fedsim import rng, runtime
from fedsim.errors import FedsimError, nearest
from fedsim.flower import Directory, Flat, addressed, flatten, set_identity, with_content, with_id
from fedsim.registry import register
from fedsim.updates import Layout, Updates
from strategies.memory import restored, saved
from strategies.validity import EXAMPLES, SECOND, InvalidReply, check_reply, one_line, uninvited

COHORT: dict[str, Any] = {
    "fraction_train": (
        float | None,
        None,
        "share of the nodes asked in a round; client.per_round if not given",
    ),
    "fraction_evaluate": (float, 0.0, "share of the nodes that evaluates the model after a round"),
    "min_train_nodes": (int | None, None, "least number of nodes asked in a round; client.per_round if not given"),
    "min_evaluate_nodes": (int, 0, "least number of nodes that evaluate"),
    "min_available_nodes": (int, 1, "nodes that must be there before a round begins"),
    "num_sampled_clients": (int | None, None, "clients asked in a round; client.per_round if not given"),
    "train_loss_key": (str, "loss", "metric in which clients tell their training loss; fedsim's own say loss"),
}
"""Options that many strategies share, with the defaults that they have here: the cohort is the scenario's."""

UNUSABLE = {
    "DifferentialPrivacyClientSideAdaptiveClipping": "it needs Flower's client mods; its server-side twin does not",
    "DifferentialPrivacyClientSideFixedClipping": "it needs Flower's client mods; its server-side twin does not",
    "FedXgbBagging": "it aggregates trees, not arrays of numbers",
    "FedXgbCyclic": "it aggregates trees, not arrays of numbers",
}


class Guest(Strategy):
    """A stock Flower strategy, guarded and resumable.

    After each ``aggregate_train``: ``faults`` (partition → reason), ``ignored`` ((partition, reason) of replies beside
    the one that was asked for, -1 for nodes of no partition), ``cohort`` (partitions asked, ascending),
    ``updates`` (the valid rows as deltas, None if there are none) and ``failure`` (why the strategy gave nothing).
    """

    kind: ClassVar[str] = "defense"
    name: ClassVar[str] = "flwr:NAME"
    stock_class: ClassVar[type[Strategy]]

    def __post_init__(self) -> None:
        self._layout: Layout | None = None
        self._seed = 0
        self._num_clients = 0
        self._per_round: int | None = None
        self._limit = float("inf")
        self._dtype = torch.float32
        self._directory: Directory | None = None
        self._reference: torch.Tensor | None = None
        self.faults: dict[int, str] = {}
        self.ignored: list[tuple[int, str]] = []
        self.cohort: list[int] = []
        self.updates: Updates | None = None
        self.failure: str | None = None
        self._stock: Strategy | None = None
        if getattr(self, "num_sampled_clients", 0) is not None:
            self._stock = self._build()

    @property
    def stock(self) -> Strategy:
        """Flower's strategy itself."""
        if self._stock is None:
            self._stock = self._build()
        return self._stock

    def set_up(
        self,
        layout: Layout,
        *,
        num_clients: int,
        per_round: int | None = None,
        seed: int = 0,
        limit: float = float("inf"),
        dtype: torch.dtype = torch.float32,
        directory: Directory | None = None,
    ) -> None:
        """What the scenario says; without it the strategy goes by its own options.

        Args:
            layout: the model's arrays, by which replies are judged.
            num_clients: all clients.
            per_round: clients asked in a round, where the strategy's own options do not say it.
            seed: the scenario's seed.
            limit: largest |value| of a valid reply.
            dtype: precision of the exchanged vectors.
            directory: which node holds which partition, where it is known already.
        """
        self._layout, self._seed, self._num_clients, self._per_round = layout, seed, num_clients, per_round
        self._limit, self._dtype, self._directory = limit, dtype, directory
        self._stock = self._build()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's own messages, each with an id, the round as group id, and a content of its own."""
        record = self._flat(arrays)
        self._reference = record.vector
        messages = self._configure("configure_train", server_round, record, config, grid)
        assert self._directory is not None
        self.cohort = sorted(self._directory.partition(message.metadata.dst_node_id) for message in messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """New arrays, or None where no reply was valid or the strategy failed (see ``failure``)."""
        self.failure, self.updates = None, None
        valid = self._valid(replies)
        if not valid:
            self.failure = "no valid reply"
            return None, None
        try:
            with self._around("aggregate_train", server_round):
                arrays, metrics = self.stock.aggregate_train(server_round, valid)
            if arrays is None:
                self.failure = f"{type(self.stock).__name__} gave no arrays"
                return None, metrics
            return self._checked(arrays), metrics
        except Exception as error:
            self.failure = one_line(f"{type(self.stock).__name__}: {error!r}")
            return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self._configure("configure_evaluate", server_round, self._flat(arrays), config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        valid = [reply for reply in replies if reply.has_content()]
        try:
            with self._around("aggregate_evaluate", server_round):
                return self.stock.aggregate_evaluate(server_round, valid)
        except Exception as error:
            self.failure = one_line(f"{type(self.stock).__name__}: {error!r}")
            return None

    def summary(self) -> None:
        self.stock.summary()

    def state_dict(self) -> dict[str, Any]:
        """The strategy's memory: tensors, numbers, strings, None and dicts of them."""
        return saved(self.stock)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave."""
        restored(self.stock, state)

    def _build(self) -> Strategy:
        given = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}  # type: ignore[arg-type]
        per_round = self._per_round
        if per_round is None:
            cohort: dict[str, Any] = {"fraction_train": 1.0, "min_train_nodes": 1}
        else:
            share = min(1.0, (per_round + 0.5) / max(self._num_clients, 1))
            cohort = {"fraction_train": share, "min_train_nodes": per_round, "num_sampled_clients": per_round}
        try:
            with _quiet():
                return _construct(self.stock_class, given, cohort)
        except ValueError as error:
            raise FedsimError(f"defense '{self.name}': {one_line(error)}") from error

    def _configure(
        self, stage: str, server_round: int, record: Flat, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        set_identity()
        if self._directory is None:
            self._directory = Directory(grid, self._num_clients or len(list(grid.get_node_ids())))
        ordered = _Ordered(grid, self._directory)
        with self._around(stage, server_round):
            made = list(getattr(self.stock, stage)(server_round, record, config, ordered))
        copies: dict[int, ConfigRecord] = {}
        messages = []
        for message in made:
            content = RecordDict()
            for key, value in message.content.items():
                if isinstance(value, ConfigRecord):
                    value = copies.setdefault(id(value), value.copy())
                elif not self._directory.ours and isinstance(value, Flat):
                    value = value.plain()
                content[key] = value
            messages.append(with_id(addressed(with_content(message, content), str(server_round))))
        return messages

    def _valid(self, replies: Iterable[Message]) -> list[Message]:
        """Replies that may reach the strategy, in ascending partition id, rebuilt from what was checked."""
        assert self._directory is not None
        assert self._layout is not None
        self.faults, self.ignored = dict.fromkeys(self.cohort, "no reply"), []
        asked, heard = set(self.cohort), set[int]()
        found: dict[int, tuple[Message, torch.Tensor, int, dict[str, Any]]] = {}
        for reply in replies:
            client = self._directory.find(reply.metadata.src_node_id)
            if client is None or client not in asked:
                self.ignored.append((-1 if client is None else client, uninvited(reply)))
                continue
            if client in heard:
                self.ignored.append((client, SECOND))
                continue
            heard.add(client)
            try:
                vector, count, metrics = check_reply(reply, self._layout, "weights", self._limit, self._dtype)
                vector = vector.cpu()
                found[client] = (reply, vector, count, metrics)
                self.faults.pop(client, None)
            except InvalidReply as error:
                self.faults[client] = str(error)
        usual = _usual({client: _signature(metrics) for client, (*_, metrics) in found.items()})
        valid = []
        rows, counts, clients = [], [], []
        for client, (reply, vector, count, metrics) in sorted(found.items()):
            if _signature(metrics) != usual:
                self.faults[client] = one_line(f"metrics {sorted(metrics)} differ from those of most clients")
                continue
            rows.append(vector[: self._layout.d])
            counts.append(float(count))
            clients.append(client)
            if count:
                content = RecordDict({"metrics": MetricRecord(metrics)})
                content["arrays"] = Flat(vector, self._layout).named()
                valid.append(with_content(reply, content))
        if rows and self._reference is not None:
            reference = self._reference[: self._layout.d]
            weights = torch.tensor(counts, dtype=torch.float64)
            self.updates = Updates(torch.stack(rows) - reference, weights, clients, reference, layout=self._layout)
        return valid

    def _checked(self, arrays: ArrayRecord) -> Flat:
        assert self._layout is not None
        vector = flatten(arrays, self._layout, self._dtype)
        if not bool(vector.isfinite().all()):
            raise ValueError("the new arrays are not finite")
        return Flat(vector, self._layout)

    def _flat(self, arrays: ArrayRecord) -> Flat:
        if self._layout is None:
            shapes = tuple((name, tuple(array.shape)) for name, array in arrays.items())
            self._layout = Layout(shapes)
        return arrays if isinstance(arrays, Flat) else Flat(flatten(arrays, self._layout, self._dtype), self._layout)

    @contextmanager
    def _around(self, stage: str, server_round: int) -> Iterator[None]:
        with rng.global_states(self._seed, f"server.{self.name}.{stage}", round=server_round), _quiet():
            yield


class _Ordered(Grid):
    """A grid whose node ids come in the order of the partitions, so that sampling is the same on every grid."""

    def __init__(self, grid: Grid, directory: Directory) -> None:
        self._grid = grid
        self._directory = directory

    def get_node_ids(self) -> Iterable[int]:
        if self._directory.ours:
            return self._grid.get_node_ids()
        return [self._directory.node(partition) for partition in range(self._directory.population)]

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *args: Any, **options: Any) -> Message:
        return self._grid.create_message(*args, **options)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


@lru_cache(maxsize=64)
def guest(name: str) -> type[Guest]:
    """The defense that wraps Flower's strategy ``name``.

    Raises:
        FedsimError: Flower has no such strategy, or it cannot work here.
    """
    known = [each for each in stock.__all__ if each not in ("Result", "Strategy", *UNUSABLE)]
    if name in UNUSABLE:
        raise FedsimError(f"defense 'flwr:{name}': {UNUSABLE[name]}")
    if name not in known:
        raise FedsimError(
            f"defense 'flwr:{name}': Flower has no such strategy{nearest(name, known)}; {', '.join(known)}"
        )
    wrapped: type[Strategy] = getattr(stock, name)
    meanings = _numpy_meanings(wrapped)
    fields: list[tuple[str, Any, Any]] = []
    lines = []
    for option, annotation, default in _options(wrapped):
        if option in COHORT:
            annotation, default, meanings[option] = COHORT[option]
        if default is inspect.Parameter.empty:
            fields.append((option, annotation, dataclasses.field()))
        else:
            fields.append((option, annotation, dataclasses.field(default=default)))
        lines.append(f"    {option}: {meanings.get(option, 'see Flower')}")
    headline = (inspect.getdoc(wrapped) or name).split("\n\n")[0].replace("\n", " ")
    source = next(iter(re.findall(r"(?:https?://|openreview\.net)\S+", inspect.getdoc(wrapped) or "")), "flower.ai")
    made: Any = dataclasses.make_dataclass(f"Guest{name}", fields, bases=(Guest,), kw_only=True, eq=False, repr=False)
    made.__module__ = __name__
    made.__doc__ = "\n".join([f"Flower's own: {headline}", "", f"Source: {source}", "", "Args:", *lines])
    made.name = f"flwr:{name}"
    made.stock_class = wrapped
    return typing.cast(type[Guest], made)


@register("defense", "flwr:NAME")
def any_stock(name: str) -> type[Guest]:
    """Any stock strategy of Flower by its class name, e.g. ``flwr:FedMedian``."""
    return guest(name)


def _options(wrapped: type[Strategy]) -> Iterator[tuple[str, Any, Any]]:
    """Plain options of a strategy's constructor; what it wraps is named by ``strategy``; callables are dropped."""
    hints = typing.get_type_hints(wrapped.__init__)
    for option, parameter in list(inspect.signature(wrapped.__init__).parameters.items())[1:]:
        if option == "strategy":
            yield option, str, "FedAvg"
            continue
        kinds = set(typing.get_args(hints[option])) or {hints[option]}
        if kinds <= {int, float, str, bool, type(None)}:
            yield option, hints[option], parameter.default


def _construct(wrapped: type[Strategy], given: Mapping[str, Any], cohort: Mapping[str, Any]) -> Strategy:
    accepted = inspect.signature(wrapped.__init__).parameters
    values = {key: COHORT[key][1] for key in COHORT if key in accepted}
    values |= {key: value for key, value in given.items() if key in accepted}
    values |= {key: value for key, value in cohort.items() if key in accepted and values.get(key) is None}
    if "strategy" in accepted:
        inner = guest(values["strategy"])
        values["strategy"] = _construct(inner.stock_class, {}, cohort)
    return wrapped(**{key: 1 if value is None and key in COHORT else value for key, value in values.items()})


def _numpy_meanings(wrapped: type) -> dict[str, str]:
    """Option → what the NumPy-style docstring says of it."""
    found = {}
    doc = inspect.getdoc(wrapped) or ""
    for match in re.finditer(r"^(\w+) ?: [^\n]*\n((?: +\S[^\n]*\n?)+)", doc, re.MULTILINE):
        found[match.group(1)] = " ".join(match.group(2).split())
    return found


def _signature(metrics: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((name, len(value) if isinstance(value, list) else -1) for name, value in metrics.items()))


def _usual(signatures: Mapping[int, tuple[tuple[str, int], ...]]) -> tuple[tuple[str, int], ...]:
    """The commonest one; Flower gives up a round where replies differ in their metrics."""
    counts = Counter(signatures.values())
    return min(counts, key=lambda signature: (-counts[signature], signature), default=((EXAMPLES, -1),))


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower's progress lines are left out; what matters is in the round's record."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(before if runtime.verbose else logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
