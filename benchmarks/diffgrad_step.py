"""A step of DiffGrad beside torch's Adam, on one thread: ``python diffgrad_step.py [STEPS]``.

A million parameters in six tensors; the two optimizers step in turn, in blocks so that each finds its own state in the
cache. Processor time of the thread, so that what else runs on the machine counts little.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import fedsim

if TYPE_CHECKING:
    import torch

SHAPES = ((784, 1000), (1000,), (1000, 216), (216,), (216, 10), (10,))
BLOCK = 10


def parameters() -> list[torch.Tensor]:
    """A million parameters with gradients."""
    import torch

    torch.manual_seed(0)
    found = [torch.nn.Parameter(0.01 * torch.randn(shape)) for shape in SHAPES]
    for each in found:
        each.grad = 0.01 * torch.randn_like(each)
    return found


def block(step: Callable[[], object]) -> float:
    """Seconds of a step, mean of a block of them."""
    start = time.thread_time()
    for _ in range(BLOCK):
        step()
    return (time.thread_time() - start) / BLOCK


def measure(steps: int) -> dict[str, float]:
    """Seconds of a step of each, and DiffGrad's ratio to Adam as it comes and to Adam with ``foreach=True``."""
    import torch

    torch.set_num_threads(1)
    optimizers = {
        "diffgrad": fedsim.optim.DiffGrad(parameters()),
        "adam": torch.optim.Adam(parameters()),
        "adam_foreach": torch.optim.Adam(parameters(), foreach=True),
        "adam_fused": torch.optim.Adam(parameters(), fused=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for turn in range(1 + max(1, steps // BLOCK)):
        for name, optimizer in optimizers.items():
            taken = block(optimizer.step)
            if turn:
                seconds[name].append(taken)
    ours = seconds["diffgrad"]
    found = {name: statistics.median(each) for name, each in seconds.items()}
    for name in ("adam", "adam_foreach", "adam_fused"):
        found[f"ratio_{name}"] = statistics.median(a / b for a, b in zip(ours, seconds[name], strict=True))
    return {"parameters": sum(each.numel() for each in parameters()), **found, "ratio": found["ratio_adam"]}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 300)))
