"""The batches of local training: every example once an epoch, in an order of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shuffled(n: int, steps: int, batch: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], list[int]]:
    """Positions of the examples in the order of their visit, and the size of each of the steps.

    Args:
        n: examples.
        steps: how many batches; an epoch is ⌈n/batch⌉ of them, the last one short where batch does not divide n.
        batch: examples in a batch.
        generator: draws a permutation for each epoch.
    """
    if not n or not steps:
        return np.zeros(0, dtype=np.int64), []
    epoch = [min(batch, n - start) for start in range(0, n, batch)]
    epochs = -(-steps // len(epoch))
    sizes = (epoch * epochs)[:steps]
    order = (
        generator.permutation(n) if epochs == 1 else np.concatenate([generator.permutation(n) for _ in range(epochs)])
    )
    return order[: sum(sizes)], sizes
