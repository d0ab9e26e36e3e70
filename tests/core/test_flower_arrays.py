"""Arrays of messages, read by several threads at once."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from flwr.app import Array

from fedsim.flower import as_record, as_tensors, to_numpy

READS, THREADS = 300, 4


@contextmanager
def eager_switches() -> Iterator[None]:
    """Collections often, with Python code in them, and threads that change at every chance."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()

    def count(phase: str, info: dict[str, int]) -> None:
        sum(range(50))

    gc.callbacks.append(count)
    gc.set_threshold(3)
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
        gc.callbacks.remove(count)


def test_threads_read_arrays_at_once() -> None:
    """Without the lock, CPython 3.11 raises SystemError in one of seven of these reads."""
    array = Array(np.arange(6.0))

    def read(_: int) -> float:
        return float(sum(to_numpy(array).sum() for _ in range(READS)))

    with eager_switches(), ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(read, range(THREADS))) == [15.0 * READS] * THREADS


def test_what_is_read_is_a_copy() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3, dtype=torch.int64)}
    record = as_record(tensors)
    first = as_tensors(record)
    assert all(torch.equal(first[name], each) and first[name].dtype == each.dtype for name, each in tensors.items())
    first["a"].zero_()
    assert torch.equal(as_tensors(record)["a"], tensors["a"])
