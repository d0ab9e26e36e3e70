"""How long a part takes beside Krum, on rows of a small model: a part that is slow holds up every run.

Processor time of this process is measured, the best of three, so that a busy machine makes nobody slow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attacks.attack import overrides
from fedsim import registry, runtime
from fedsim.data.examples import Examples
from fedsim.testing import attacks
from fedsim.updates import Layout, Updates
from strategies.defense import Defense, Round

CLIENTS, MALICIOUS = 30, 6
CLASSES, INPUTS = 4, 4999
LAYOUT = Layout((("weight", (CLASSES, INPUTS)), ("bias", (CLASSES,))))
LIMIT = 50.0
"""Times as long as Krum from which on a part is called slow."""


def remark(kind: str, make: Callable[[], Any], limit: float = LIMIT) -> str:
    """One line if a part takes more than ``limit`` times as long as Krum, else nothing."""
    if kind not in ("attack", "defense") or (kind == "attack" and not overrides(make(), "craft")):
        return ""
    measured, yardstick = ratio(kind, make)
    if measured <= limit * yardstick:
        return ""
    what = "craft" if kind == "attack" else "a round"
    return (
        f"{what} of {CLIENTS} clients and {LAYOUT.d:,} parameters takes {measured:.2g} s, "
        f"{measured / yardstick:.0f} times as long as Krum"
    )


def ratio(kind: str, make: Callable[[], Any]) -> tuple[float, float]:
    """Processor seconds of the part, and of Krum on the same rows."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(CLIENTS, LAYOUT.d, generator=generator)
    reference = torch.randn(LAYOUT.d, generator=generator)
    rows = Updates(values, torch.arange(10, 10 + CLIENTS), list(range(CLIENTS)), reference, layout=LAYOUT)
    krum = registry.make("defense", "krum")
    with runtime.one_thread():
        yardstick = _seconds(lambda: _aggregate(krum, rows))
        if kind == "defense":
            return _seconds(lambda: _aggregate(make(), rows)), yardstick
        own, others = rows.rows(list(range(MALICIOUS))), rows.rows(list(range(MALICIOUS, CLIENTS)))
        part = attacks.prepared(make)
        return _seconds(lambda: part.craft(own.values, attacks.context(own, others))), yardstick


def _seconds(work: Callable[[], Any]) -> float:
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


__all__ = ["LIMIT", "ratio", "remark"]
