"""What a reply must be before a server rule sees it.

A client may send anything: no numbers at all, infinities, arrays that the model does not have. What is wrong with
a reply is said in one line, which stands beside the client's name in the round's record; the reply itself goes no
further.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.flower import flatten, to_numpy
from fedsim.updates import Layout

EXAMPLES = "num-examples"
LONGEST_REASON = 200
MOST_EXAMPLES = 2**53
"""Counts above this are no longer exact in float64."""


SECOND = "a second reply"


class InvalidReply(FedsimError):
    """A reply that must not reach the model; the message is the reason, one line."""

    def __init__(self, reason: object) -> None:
        super().__init__(one_line(reason))


def one_line(reason: object) -> str:
    """Any text as one line of bounded length."""
    text = " ".join(str(reason).split())
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."


def uninvited(reply: Message) -> str:
    """The reason why a reply of someone who was not in the cohort does not count."""
    return f"a reply of node {reply.metadata.src_node_id} that no one asked for"


def check_reply(
    message: Message,
    layout: Layout,
    expects: Literal["delta", "weights"] = "delta",
    limit: float = math.inf,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, int, dict[str, Any]]:
    """The content of a valid reply.

    Args:
        message: what came back; an Error reply is invalid for its own reason.
        layout: the arrays that must be there, no more and no less.
        expects: ``delta`` for our own clients (further records may ride along), ``weights`` for what a stock
            Flower strategy is given: exactly one record of arrays and one of metrics, all metrics finite.
        limit: largest |value| that is accepted.
        dtype: precision of the vector that is returned.

    Returns:
        The (d + b,) vector (it may share the message's memory), the example count, and the metrics.

    Raises:
        InvalidReply: with the reason.
    """
    if message.has_error():
        raise InvalidReply(message.error.reason or f"error {message.error.code}")
    arrays, metrics = _records(message.content, strict=expects == "weights")
    try:
        vector = flatten(arrays, layout, dtype)
    except Exception as error:
        raise InvalidReply(error) from error
    _check_values(vector, layout, limit)
    count = _count(metrics)
    values = dict(metrics)
    if expects == "weights":
        for name, value in values.items():
            numbers = value if isinstance(value, list) else [value]
            if not all(math.isfinite(number) for number in numbers):
                raise InvalidReply(f"metric '{name}' is not finite")
    return vector, count, values


def check_answer(message: Message, limit: float = math.inf) -> None:
    """Look at the numbers of a reply in an exchange that a part asked for.

    Raises:
        InvalidReply: it is an error, or holds what is not finite, or in its arrays what is beyond the limit.
    """
    if message.has_error():
        raise InvalidReply(message.error.reason or f"error {message.error.code}")
    for key, arrays in message.content.array_records.items():
        for name, array in arrays.items():
            try:
                values = to_numpy(array)
            except Exception as error:
                raise InvalidReply(f"record '{key}': array '{name}': {error}") from error
            if values.dtype.kind not in "fiub":
                raise InvalidReply(f"record '{key}': array '{name}' holds {values.dtype}, no numbers")
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise InvalidReply(f"record '{key}': array '{name}' is not finite")
            if values.size and float(np.abs(values.astype(np.float64)).max()) > limit:
                raise InvalidReply(f"record '{key}': array '{name}' goes beyond the limit {limit:g}")
    for key, metrics in message.content.metric_records.items():
        for name, value in metrics.items():
            if not np.isfinite(np.asarray(value, dtype=np.float64)).all():
                raise InvalidReply(f"record '{key}': metric '{name}' is not finite")


Form = tuple[tuple[str, ...], ...]


def form(content: RecordDict) -> Form:
    """Which records a reply has, and what they are made of: names, shapes of arrays, lengths of lists."""
    found: list[tuple[str, ...]] = []
    for key, record in content.items():
        kind = "arrays" if isinstance(record, ArrayRecord) else type(record).__name__
        found.append((key, kind))
        for name, value in record.items():
            shape = tuple(value.shape) if isinstance(value, Array) else len(value) if isinstance(value, list) else ""
            found.append((key, kind, name, str(shape)))
    return tuple(sorted(found))


def usual(forms: Iterable[Form]) -> Form:
    """The commonest form; of equally common ones the first in order."""
    counts = Counter(forms)
    return min(counts, key=lambda each: (-counts[each], each), default=())


def _records(content: RecordDict, strict: bool) -> tuple[ArrayRecord, MetricRecord]:
    arrays, metrics = content.array_records, content.metric_records
    if strict and (len(arrays) != 1 or len(metrics) != 1):
        raise InvalidReply(f"{len(arrays)} records of arrays and {len(metrics)} of metrics instead of one of each")
    found: list[Any] = []
    for kind, key, records in (("arrays", "arrays", arrays), ("metrics", "metrics", metrics)):
        if key in records:
            found.append(records[key])
        elif len(records) == 1:
            found.append(next(iter(records.values())))
        else:
            raise InvalidReply(f"no record of {kind}")
    return found[0], found[1]


def _check_values(vector: Tensor, layout: Layout, limit: float) -> None:
    if len(vector) == 0:
        return
    low, high = (float(bound) for bound in torch.aminmax(vector))
    if -limit <= low and high <= limit and math.isfinite(low) and math.isfinite(high):
        return
    bad = ~vector.isfinite() if not (math.isfinite(low) and math.isfinite(high)) else vector.abs() > limit
    position = int(bad.nonzero()[0])
    name = next(name for name, start, stop, _ in layout.slices if start <= position < stop)
    value = float(vector[position])
    if math.isfinite(value):
        raise InvalidReply(f"array '{name}' holds {value:g}, beyond the limit {limit:g}")
    raise InvalidReply(f"array '{name}' holds {value:g}, which is not finite")


def _count(metrics: MetricRecord) -> int:
    if EXAMPLES not in metrics:
        raise InvalidReply(f"metric '{EXAMPLES}' is missing")
    value = metrics[EXAMPLES]
    if isinstance(value, list) or not math.isfinite(value) or value != int(value):
        raise InvalidReply(f"metric '{EXAMPLES}' is {value!r} instead of a whole number")
    if value < 0:
        raise InvalidReply(f"metric '{EXAMPLES}' is negative: {value!r}")
    if value > MOST_EXAMPLES:
        raise InvalidReply(f"metric '{EXAMPLES}' is {value!r}, more than anyone can hold")
    return int(value)
