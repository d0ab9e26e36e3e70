"""Independent random streams, one for each (seed, purpose, round, client).

A stream is keyed, not drawn from another one: adding a client, a round, an attack or a defense moves no other
stream. NumPy's ``SeedSequence`` hashes the key; its children are independent for all practical purposes
(O'Neill 2014; numpy.random.SeedSequence).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@lru_cache(maxsize=1024)
def _words(purpose: str) -> tuple[int, int]:
    digest = hashlib.sha256(purpose.encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def _sequence(seed: int, purpose: str, round: int, client: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(entropy=seed, spawn_key=(*_words(purpose), round, client + 1))


def stream(seed: int, purpose: str, *, round: int = 0, client: int = -1) -> np.random.Generator:
    """A NumPy generator for one purpose.

    Args:
        seed: the scenario's seed, an int ≥ 0.
        purpose: what the numbers are for, e.g. ``"client.shuffle"``; other purposes get other numbers.
        round: the round, 0 where it does not matter.
        client: the partition id, -1 for the server.
    """
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, round, client)))


def normal_stream(seed: int, purpose: str, *, round: int = 0, client: int = -1) -> np.random.Generator:
    """As :func:`stream`, for many normal numbers: SFC64 draws them a fifth faster than PCG64."""
    return np.random.Generator(np.random.SFC64(_sequence(seed, purpose, round, client)))


def integer(seed: int, purpose: str, *, round: int = 0, client: int = -1) -> int:
    """A 63-bit seed from the same key, for libraries that take one."""
    return int(_sequence(seed, purpose, round, client).generate_state(1, np.uint64)[0] >> np.uint64(1))


def torch_stream(
    seed: int, purpose: str, *, round: int = 0, client: int = -1, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A torch generator for one purpose; see :func:`stream`."""
    import torch

    generator = torch.Generator(device=device)
    generator.manual_seed(integer(seed, purpose, round=round, client=client))
    return generator


class Streams:
    """Streams of some subjects under a seed that its holder cannot read: what attacks and defenses are handed.

    They give the numbers that :func:`stream` gives for the same seed and purpose. Whoever holds those of ``attack``
    can draw none of ``server.krum``: an attacker does not know the defense's dice, nor the defense the attacker's.

    Args:
        seed: the scenario's seed.
        subjects: what purposes must begin with, each followed by a dot.
    """

    __slots__ = ("__seed", "__subjects")

    def __init__(self, seed: int, *subjects: str) -> None:
        self.__seed = seed
        self.__subjects = subjects

    def stream(self, purpose: str, *, round: int = 0, client: int = -1) -> np.random.Generator:
        """A NumPy generator; see :func:`stream`.

        Raises:
            ValueError: a purpose of another subject.
        """
        return stream(self.__seed, self.__checked(purpose), round=round, client=client)

    def integer(self, purpose: str, *, round: int = 0, client: int = -1) -> int:
        """A 63-bit seed; see :func:`integer`."""
        return integer(self.__seed, self.__checked(purpose), round=round, client=client)

    def torch_stream(
        self, purpose: str, *, round: int = 0, client: int = -1, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        """A torch generator; see :func:`torch_stream`."""
        return torch_stream(self.__seed, self.__checked(purpose), round=round, client=client, device=device)

    def __checked(self, purpose: str) -> str:
        if not any(purpose.startswith(f"{subject}.") for subject in self.__subjects):
            accepted = " or ".join(f"'{subject}.…'" for subject in self.__subjects)
            raise ValueError(f"random stream: given '{purpose}'; accepted: {accepted}")
        return purpose

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Streams) and self.__subjects == other.__subjects
        return same and self.__seed == other.__seed  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self.__subjects)

    def __repr__(self) -> str:
        return f"Streams({', '.join(map(repr, self.__subjects))})"


@contextmanager
def global_states(seed: int, purpose: str, *, round: int = 0, client: int = -1) -> Iterator[None]:
    """The global random states of Python, NumPy and torch are seeded by this key in the block, and restored after it.

    For others' code only, which draws from them; one thread at a time.
    """
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    number = integer(seed, purpose, round=round, client=client)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
