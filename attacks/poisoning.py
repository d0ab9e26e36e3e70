"""Which examples a backdoor poisons, and which it is measured on: never those that are the target's already."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from attacks.trigger import data_info
from fedsim.data.examples import Examples
from fedsim.errors import Fault
from fedsim.updates import share

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


def eligible(examples: Examples, target: int) -> Tensor:
    """Positions of the examples whose true label is not the target."""
    return (examples.targets != target).nonzero().flatten()


def choose(examples: Examples, target: int, ratio: float | int, generator: np.random.Generator) -> Tensor:
    """Positions, ascending, of ``ratio`` (share or count) of all examples, drawn among those not of the target."""
    candidates = eligible(examples, target)
    amount = min(share(ratio, len(examples)), len(candidates))
    order = torch.from_numpy(generator.permutation(len(candidates))[:amount]).to(candidates.device)
    return candidates[order].sort().values


def target_faults(scenario: Scenario, target: int, key: str = "target") -> Iterable[Fault]:
    """A fault where the target is not a class of the scenario's data."""
    info = data_info(scenario)
    if info is not None and not 0 <= target < info.num_classes:
        accepted = f"a class, 0 to {info.num_classes - 1}" if info.num_classes else "a task with classes"
        yield Fault(key, target, accepted, ("data.dataset",))
