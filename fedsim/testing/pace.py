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
from torch import Tensor

from attacks.attack import Attack, LocalStep, overrides
from fedsim import registry, runtime
from fedsim.data.examples import Examples
from fedsim.testing import attacks, optimizers
from fedsim.updates import Layout, Updates
from strategies.defense import Defense, Round

CLIENTS, MALICIOUS = 30, 6
STEPPING = 4
"""Clients in a local step."""
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
    if overrides(part, "craft"):
        own, others = rows.rows(list(range(MALICIOUS))), rows.rows(list(range(MALICIOUS, CLIENTS)))
        yield f"craft of {size}", lambda: part.craft(own.values, attacks.context(own, others)), "Krum", yardstick
    step = attacks.local_step(STEPPING)
    if overrides(part, "poison"):
        (train, _), node = attacks.images(), attacks.node()
        yield (
            f"poison of {len(train)} images",
            lambda: part.poison(train, node),
            "a plain local step",
            partial(_step, step),
        )
    hooks = {"after_step": partial(_after_step, part, step), "objective": partial(_objective, part, step)}
    for hook, work in hooks.items():
        if overrides(part, hook):
            yield f"{hook} of {STEPPING} clients", work, "a plain local step", partial(_step, step)


def _rows() -> Updates:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(CLIENTS, LAYOUT.d, generator=generator)
    reference = torch.randn(LAYOUT.d, generator=generator)
    return Updates(values, torch.arange(10, 10 + CLIENTS), list(range(CLIENTS)), reference, layout=LAYOUT)


def _after_step(part: Attack, step: LocalStep) -> None:
    part.after_step(torch.ones(STEPPING, attacks.DIMENSION), step)


def _objective(part: Attack, step: LocalStep) -> None:
    parameters = torch.ones(STEPPING, attacks.DIMENSION, requires_grad=True)
    losses = part.objective(parameters.mean(dim=1), parameters, step)
    torch.autograd.grad(losses.sum(), parameters)


def _step(step: LocalStep) -> None:
    """Each client's loss on a batch, and its gradient."""
    for node in step.clients:
        assert node.model is not None
        assert node.examples is not None
        parameters = torch.ones(attacks.DIMENSION, requires_grad=True)
        batch = node.examples.take(torch.arange(32))
        loss = torch.nn.functional.cross_entropy(node.model.predict(parameters, batch.inputs), batch.targets)
        torch.autograd.grad(loss, parameters)


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
