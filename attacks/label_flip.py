"""Label flip: malicious clients train on wrong labels.

y becomes C − 1 − y, C the number of classes, or what a given map says; labels that it leaves out stay.

Tolpegin et al., "Data Poisoning Attacks Against Federated Learning Systems", ESORICS 2020, arXiv:2007.08432.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import TYPE_CHECKING

import torch

from attacks.attack import Attack, Compromised, attack
from attacks.trigger import data_info
from fedsim.data.examples import Examples
from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@attack("label_flip")
class LabelFlip(Attack):
    """Training on flipped labels.

    Args:
        map: label → label, e.g. { "5" = 3 }; empty flips y to C − 1 − y.
    """

    cost = "examples"

    map: dict[str, int] = field(default_factory=dict)

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        info = data_info(scenario)
        if info is None:
            return
        if info.num_classes == 0:
            yield Fault("name", "label_flip", "a task with classes", ("data.dataset",))
            return
        for source, label in self.map.items():
            if not source.isdecimal() or int(source) >= info.num_classes or not 0 <= label < info.num_classes:
                yield Fault("map", {source: label}, f"classes, 0 to {info.num_classes - 1}", ("data.dataset",))

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        if not self.map:
            return Examples(examples.inputs, node.num_classes - 1 - examples.targets)
        table = torch.arange(node.num_classes, dtype=examples.targets.dtype, device=examples.targets.device)
        for source, label in self.map.items():
            table[int(source)] = label
        return Examples(examples.inputs, table[examples.targets])
