"""The received model as a function, for attacks that look into it: differentiable by parameters and by inputs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch
from flwr.app import RecordDict
from torch import Tensor, nn
from torch.func import functional_call

from attacks.attack import Received
from fedsim.client.workload import Workload
from fedsim.flower import as_record
from fedsim.losses.harmonic import HarmonicHead
from fedsim.losses.loss import last_linear

if TYPE_CHECKING:
    from fedsim.client.node import Node

LEARN = "query.adversary"
"""Type of the message by which the adversary asks one of its clients to learn."""

ADVERSARY, PREVIOUS, LEARNED = "adversary", "adversary.previous", "adversary.learned"
"""Records that the adversary puts beside its mark."""


class Models:
    """Makes :class:`Received` from vectors; ``functional_call`` needs a module for each thread."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._threads = threading.local()

    def received(self, vector: Tensor, previous: Tensor | None) -> Received:
        """The model in a (d + b,) vector."""
        d = self.workload.layout.d
        buffers = vector[d:].clone()

        def predict(parameters: Tensor, inputs: Tensor) -> Tensor:
            return self._call(torch.cat([parameters, buffers]), inputs)

        def features(parameters: Tensor, inputs: Tensor) -> Tensor:
            kept: list[Tensor] = []
            _, last = last_linear(self._module(), (HarmonicHead,))
            handle = last.register_forward_pre_hook(lambda module, given: kept.append(given[0]))
            try:
                self._call(torch.cat([parameters, buffers]), inputs)
            finally:
                handle.remove()
            return kept[-1].flatten(1)

        return Received(vector[:d], None if previous is None else previous[:d], predict, features)

    def _module(self) -> nn.Module:
        if not hasattr(self._threads, "module"):
            self._threads.module = self.workload.fresh_module().eval()
        module: nn.Module = self._threads.module
        return module

    def _call(self, vector: Tensor, inputs: Tensor) -> Tensor:
        given = self.workload.inputs(inputs)
        outputs: Tensor = functional_call(self._module(), self.workload.layout.views(vector), (given,))
        return outputs


def learn(node: Node, content: RecordDict) -> RecordDict:
    """The client's handler: what its attacks learn from the model that it received."""
    if node.compromised is None:
        raise ValueError(f"client {node.client} is not marked as the adversary's")
    examples = node.clean()
    found: dict[str, Tensor] = {}
    for attack in node.app.attacks:
        found |= attack.learn(examples, node.compromised)
    return RecordDict({LEARNED: as_record(found)})
