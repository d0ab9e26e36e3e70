"""How long a part takes beside a plain one: a part that is slow holds up every run.

What works on a round's rows is held against Krum, what malicious clients do beside their training against a plain local
step, an optimizer against plain SGD. Processor time of this process is measured, the best of three, so that a busy
machine makes nobody slow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from attacks.attack import Attack, LocalStep, overrides
from fedsim import flower, registry, runtime
from fedsim.data.examples import Examples
from fedsim.flower import Flat
from fedsim.testing import attacks, optimizers
from fedsim.updates import Layout, Updates
from strategies.defense import Defense, Round

CLIENTS, MALICIOUS = 30, 6
STEPPING = 4
"""Clients in a local step."""
STEPS = 10
"""Local steps in a round."""
CLASSES, INPUTS = 4, 4999
LAYOUT = Layout((("weight", (CLASSES, INPUTS)), ("bias", (CLASSES,))))
LIMIT = 50.0
"""Times as long as the plain one from which on a part is called slow."""

Work = Callable[[], Any]


def remark(kind: str, make: Work, limit: float = LIMIT) -> str:
    """One line if a part takes more than ``limit`` times as long as what it is held against, else nothing."""
    with runtime.one_thread():
        for what, work, beside, plain in _timed(kind, make):
            measured, yardstick = _seconds(work), _seconds(plain)
            if measured > limit * yardstick:
                return f"{what} takes {measured:.2g} s, {measured / yardstick:.0f} times as long as {beside}"
    return ""


def _timed(kind: str, make: Work) -> Iterator[tuple[str, Work, str, Work]]:
    """(what is timed, it, what it is held against, that)."""
    if kind == "optimizer":
        sgd = partial(registry.make, "optimizer", "sgd", lr=0.1)
        yield "training of 2 clients", partial(_train, make), "that by plain SGD", partial(_train, sgd)
    if kind not in ("attack", "defense"):
        return
    krum, rows = registry.make("defense", "krum"), _rows()
    size, yardstick = f"{CLIENTS} clients and {LAYOUT.d:,} parameters", partial(_aggregate, krum, rows)
    if kind == "defense":
        yield f"a round of {size}", lambda: _aggregate(make(), rows), "Krum", yardstick
        return
    part = attacks.prepared(make)
    own, others = rows.rows(list(range(MALICIOUS))), rows.rows(list(range(MALICIOUS, CLIENTS)))
    if overrides(part, "craft"):
        yield f"craft of {size}", lambda: part.craft(own.values, attacks.context(own, others)), "Krum", yardstick
    if overrides(part, "claimed_examples"):
        claim = partial(part.claimed_examples, own.num_examples)
        yield f"claimed_examples of {size}", lambda: claim(attacks.context(own, others)), "Krum", yardstick
    if overrides(part, "observe"):
        yield f"observe of {size}", partial(_observe, part, _exchanged(rows)), "Krum", yardstick
    yield from _timed_locally(part)


def _timed_locally(part: Attack) -> Iterator[tuple[str, Work, str, Work]]:
    """The same for what malicious clients do beside their training, and for the trigger of the evaluation."""
    (train, test), node, step = attacks.images(), attacks.node(), attacks.local_step(STEPPING, d=LAYOUT.d)
    plain = ("a plain local step", partial(_step, step))
    clients = f"{STEPPING} clients and {LAYOUT.d:,} parameters"
    if overrides(part, "poison"):
        yield f"poison of {len(train)} images", lambda: part.poison(train, node), *plain
    if overrides(part, "after_step"):
        yield f"after_step of {clients}", partial(_after_step, part, step), *plain
    if overrides(part, "objective"):
        yield f"objective of {clients}", partial(_objective, part, step), *plain
    if overrides(part, "triggered"):
        yield f"triggered of {len(test)} images", lambda: part.triggered(test), *plain
    if overrides(part, "learn"):
        # Once a round, before all its steps.
        beside = f"{STEPS} plain local steps"
        yield f"learn of {len(train)} images", lambda: part.learn(train, node), beside, partial(_steps, step)
    if overrides(part, "shown"):
        learned = part.learn(train, node)
        yield f"shown of {len(test)} images", lambda: part.shown(test, learned), *plain


def _rows() -> Updates:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(CLIENTS, LAYOUT.d, generator=generator)
    reference = torch.randn(LAYOUT.d, generator=generator)
    return Updates(values, torch.arange(10, 10 + CLIENTS), list(range(CLIENTS)), reference, layout=LAYOUT)


def _after_step(part: Attack, step: LocalStep) -> None:
    part.after_step(torch.ones(STEPPING, LAYOUT.d), step)


def _objective(part: Attack, step: LocalStep) -> None:
    parameters = torch.ones(STEPPING, LAYOUT.d, requires_grad=True)
    losses = part.objective(parameters.mean(dim=1), parameters, step)
    torch.autograd.grad(losses.sum(), parameters)


def _step(step: LocalStep) -> None:
    """Each client's loss on a batch, and its gradient."""
    for node in step.clients:
        assert node.model is not None
        assert node.examples is not None
        parameters = torch.ones(LAYOUT.d, requires_grad=True)
        batch = node.examples.take(torch.arange(32))
        loss = torch.nn.functional.cross_entropy(node.model.predict(parameters, batch.inputs), batch.targets)
        torch.autograd.grad(loss, parameters)


def _steps(step: LocalStep) -> None:
    for _ in range(STEPS):
        _step(step)


def _exchanged(rows: Updates) -> list[tuple[Message, Message]]:
    """What a round's clients are sent, and what they reply."""
    flower.set_identity()
    config = ConfigRecord({"server-round": 1, "reply": "delta"})
    found = []
    for client, row, count in zip(rows.client_ids, rows.values, rows.num_examples.tolist(), strict=True):
        content = RecordDict({"arrays": Flat(rows.reference, LAYOUT), "config": config})
        asked = flower.send(content, client + flower.FIRST_NODE, "train")
        metrics = MetricRecord({"num-examples": int(count)})
        found.append((asked, Message(RecordDict({"arrays": Flat(row, LAYOUT), "metrics": metrics}), reply_to=asked)))
    return found


def _observe(part: Attack, exchanged: list[tuple[Message, Message]]) -> None:
    for message, reply in exchanged:
        part.observe(message, reply)


def _train(make: Work) -> None:
    optimizers.train_plainly(make())


def _seconds(work: Work) -> float:
    found = []
    for _ in range(3):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return max(min(found), 1e-6)


def _aggregate(part: Defense, rows: Updates) -> None:
    generator = torch.Generator().manual_seed(5)
    root = Examples(torch.randn(40, INPUTS, generator=generator), torch.arange(40) % CLASSES)
    name = getattr(part, "name", type(part).__name__)
    part.aggregate(rows, Round(round=1, part=name, layout=LAYOUT, root=root, predict=_predict))


def _predict(parameters: Tensor, inputs: Tensor) -> Tensor:
    views = LAYOUT.views(parameters)
    return torch.nn.functional.linear(inputs.to(parameters.dtype), views["weight"], views["bias"])


__all__ = ["LIMIT", "remark"]
