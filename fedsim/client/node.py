"""One client as the handlers of parts see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from attacks.attack import Compromised
from fedsim import rng
from fedsim.client.adapted import adapt_of
from fedsim.client.job import clean_examples, local_examples
from fedsim.data.examples import Examples

if TYPE_CHECKING:
    from fedsim.client.app import FederatedClient
    from fedsim.client.workload import Workload

BLOCK = 256
"""Examples in one forward pass."""


@dataclass
class Node:
    """A client in one exchange.

    Args:
        app: the federation's ClientApp.
        client: partition id.
        round: the round, 0 if the message names none.
        parameters: (d + b,) received vector, read-only; None if the message carries none.
        state: kept over rounds; what is put here is there in the next exchange.
        compromised: who it is to the adversary, None if it is honest.
    """

    app: FederatedClient = field(repr=False)
    client: int
    round: int
    parameters: Tensor | None
    state: RecordDict
    compromised: Compromised | None = None

    @property
    def workload(self) -> Workload:
        return self.app.workload

    def examples(self) -> Examples:
        """A copy of what the client trains on: its view, poisoned if it is malicious."""
        adapt = adapt_of(self.workload, self.state)
        attacks = self.app.attacks_of(self.compromised)
        source, rows = local_examples(self.workload, self.client, self.compromised, attacks, adapt)
        taken = source.take(rows)
        return Examples(self.workload.inputs(taken.inputs), self.workload.targets(taken.targets))

    def clean(self) -> Examples:
        """A copy of the client's own data, its view of it, not poisoned."""
        taken = clean_examples(self.workload, self.client, adapt_of(self.workload, self.state))
        return Examples(self.workload.inputs(taken.inputs), self.workload.targets(taken.targets))

    def held_out(self) -> Examples:
        """What the client evaluates on: its held-out share, or all it has without one."""
        taken = self.workload.examples.take(self.workload.held_out(self.client))
        if self.workload.view is not None:
            taken = self.workload.view(taken, self.client, self.workload.seed)
        adapt = adapt_of(self.workload, self.state)
        inputs = taken.inputs if adapt is None else adapt(taken.inputs)
        return Examples(self.workload.inputs(inputs), self.workload.targets(taken.targets))

    @property
    def module(self) -> nn.Module:
        """This thread's module with the received parameters in it; valid until the handler returns."""
        if self.parameters is None:
            raise ValueError("the message carries no arrays")
        return self.app.replica.load(self.parameters)

    def stream(self, purpose: str) -> np.random.Generator:
        """Random numbers of this client and round for one purpose."""
        return rng.stream(self.workload.seed, purpose, round=self.round, client=self.client)

    def head_view(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the received model's head is given and what it makes of it, in evaluation mode; with regularizers."""
        module, replica = self.module.eval(), self.app.replica
        features, outputs = [], []
        with torch.no_grad(), replica.autocast():
            for i in range(0, max(len(inputs), 1), BLOCK):
                outputs.append(module(replica.batch(inputs[i : i + BLOCK])))
                features.append(replica.features())
        wide = self.workload.dtype
        return torch.cat(features).to(wide), torch.cat(outputs).to(wide)

    def predict(self, inputs: Tensor) -> Tensor:
        """Outputs of the received model in evaluation mode."""
        module, replica = self.module.eval(), self.app.replica
        with torch.no_grad(), replica.autocast():
            blocks = [module(replica.batch(inputs[i : i + BLOCK])) for i in range(0, max(len(inputs), 1), BLOCK)]
        return torch.cat(blocks)
