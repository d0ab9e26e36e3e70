"""Locks between processes of one machine that end with their owner, however it ends.

A lock is ``flock`` on a file: the kernel lets go of it in the instant in which its owner dies, by SIGKILL too, and
never before. A heartbeat would do neither: it frees a dead owner's cell late, and a sleeping owner's cell too early.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of this file for the block.

    Args:
        path: the file; it is made and stays.
        wait: until it is free.

    Yields:
        Whether it is ours.
    """
    lock = take(path, wait)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def free(path: Path) -> bool:
    """Whether nobody on this machine has the lock; the file is not made."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def take(path: Path, wait: bool = False) -> int | None:
    """The lock as a file descriptor, to be closed; None where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(lock)
        return None
    except BaseException:
        os.close(lock)
        raise
    return lock


__all__ = ["free", "held", "take"]
