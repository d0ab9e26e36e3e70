"""The server's arithmetic alone: ``python server.py pairwise|multi_metrics N D``.

``pairwise`` times the filter's Manhattan distances and scipy's pdist in turn on the same rows; ``multi_metrics`` times
one whole filter step and takes the memory that it needs at its peak, relative to the updates.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from typing import TYPE_CHECKING

import fedsim

if TYPE_CHECKING:
    import torch

UNIT = 1 if sys.platform == "darwin" else 1024


def updates(n: int, d: int) -> torch.Tensor:
    """(n, d) float32 rows, made in place."""
    import torch

    torch.manual_seed(0)
    return torch.empty(n, d).normal_(std=0.01)


def pairwise(n: int, d: int, repetitions: int = 3) -> dict[str, float]:
    """Seconds of both for all distances between n rows of d numbers."""
    import torch
    from scipy.spatial.distance import pdist

    from fedsim.pairwise import manhattan

    rows = updates(n, d)
    manhattan(rows[:4])
    ours, theirs, ratios = [], [], []
    for _ in range(repetitions):
        start = time.perf_counter()
        found = manhattan(rows)
        middle = time.perf_counter()
        expected = pdist(rows.numpy(), "cityblock")
        end = time.perf_counter()
        ours.append(middle - start)
        theirs.append(end - middle)
        ratios.append(ours[-1] / theirs[-1])
    upper = found[torch.triu_indices(n, n, 1).unbind()].numpy()
    return {
        "seconds": statistics.median(ours),
        "theirs": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "error": float(abs(upper / expected - 1).max()),
    }


def multi_metrics(n: int, d: int) -> dict[str, float]:
    """Seconds of one filter step, and its peak memory in units of the updates' size."""
    defense = fedsim.make("defense", "multi_metrics")
    values = updates(n, 8192)
    defense.aggregate(of(values, n))
    values = updates(n, d)
    given = of(values, n)
    before = peak()
    start = time.perf_counter()
    defense.aggregate(given)
    seconds = time.perf_counter() - start
    size = values.numel() * values.element_size()
    return {"seconds": seconds, "memory": 1 + (peak() - before) / size}


def of(values: torch.Tensor, n: int) -> fedsim.Updates:
    """The rows as the updates of n clients."""
    import torch

    return fedsim.Updates(values, torch.full((n,), 100), list(range(n)), torch.zeros(values.shape[1]))


def peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


if __name__ == "__main__":
    measure = {"pairwise": pairwise, "multi_metrics": multi_metrics}[sys.argv[1]]
    print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
