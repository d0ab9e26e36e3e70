"""The server's side of the clients' adapters: its root data go to them as the reference, before the training.

Uscidda & Cuturi, "The Monge gap: a regularizer to learn all transport maps", ICML 2023, arXiv 2302.04953.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from fedsim.client.adapted import ADAPT, REFERENCE
from fedsim.flower import as_record
from strategies.defense import TRAIN, Defense, Request, Round


class ReferenceSample(Defense):
    """Stands behind the defenses, without a stage of its own.

    Args:
        sample: most examples that are sent.
    """

    def __init__(self, sample: int) -> None:
        self.sample = sample
        self.name = "adapter"

    def exchanges(self, ctx: Round) -> Generator[Request, Any, None]:
        """The reference, without labels; clients that have their map already answer at once."""
        assert ctx.root is not None
        yield Request("adapter", ADAPT, {REFERENCE: as_record({"inputs": ctx.root.inputs[: self.sample]})})
        yield TRAIN
