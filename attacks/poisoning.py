"""Which examples a backdoor poisons, and which it is measured on: never those that are the target's already."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from attacks.attack import overrides
from attacks.trigger import Trigger, data_info
from fedsim import registry
from fedsim.data.examples import Examples
from fedsim.errors import Fault, FedsimError, ScenarioError
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


def poisoned(
    examples: Examples,
    target: int,
    ratio: float | int,
    generator: np.random.Generator,
    stamp: Callable[[Tensor], Tensor],
) -> Examples:
    """``ratio`` of the examples (share or count) with the trigger and the target's label, in their old places."""
    chosen = choose(examples, target, ratio, generator)
    if len(chosen) == 0:
        return examples
    inputs, targets = examples.inputs.clone(), examples.targets.clone()
    inputs[chosen] = stamp(inputs[chosen])
    targets[chosen] = target
    return Examples(inputs, targets)


def attacked(test: Examples, target: int, stamp: Callable[[Tensor], Tensor]) -> Examples:
    """The test examples that are not the target's, with the trigger and the target's label."""
    others = test.take(eligible(test, target))
    return Examples(stamp(others.inputs), torch.full_like(others.targets, target))


def target_faults(scenario: Scenario, name: str, target: int) -> Iterable[Fault]:
    """Faults where the target is not a class of the scenario's data, or where two attacks bring a target."""
    info = data_info(scenario)
    if info is not None and not 0 <= target < info.num_classes:
        accepted = f"a class, 0 to {info.num_classes - 1}" if info.num_classes else "a task with classes"
        yield Fault("target", target, accepted, ("data.dataset",))
    backdoors = [part.name for part in scenario.adversary.attacks if _has_trigger(part.name)]
    if len(backdoors) > 1:
        yield Fault("name", name, f"one attack with a target, whose success is measured; here {', '.join(backdoors)}")


def trigger_faults(scenario: Scenario, pattern: Callable[[], Trigger], key: str) -> Iterable[Fault]:
    """Faults of a trigger whose options are wrong or that lies outside of the images, keys below ``key``."""
    prefix = f"{key}." if key else ""
    try:
        trigger = pattern()
    except ScenarioError as error:
        faults = list(error.faults)
    else:
        info = data_info(scenario)
        faults = [] if info is None else list(trigger.check(info.shape))
    for fault in faults:
        yield Fault(f"{prefix}{fault.key}", fault.given, fault.accepted, ("data.dataset",))


def _has_trigger(name: str) -> bool:
    try:
        return overrides(registry.get("attack", name), "triggered")
    except FedsimError:
        return False
