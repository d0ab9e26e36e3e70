"""Anticipate: the backdoor is trained to survive the honest steps that will follow it.

The attacker's loss looks k steps ahead. From its own parameters w, with a = ``share`` its part in the round's mean,

    w_0 = w_received + a·(w − w_received),   w_{i+1} = w_i − η·∇L(w_i, clean batch)
    loss = task loss + weight · Σ_{i=1..k} L(w_i, triggered batch) / k

differentiated through the simulated steps. The clean batches are drawn from the attacker's own data, which stand for
the others'. A share of its training data carries the trigger as well, so that the task loss holds both.

Wen et al., "Thinking Two Steps Ahead: Poisoning Federated Learning by Anticipating Benign Updates" (Anticipate), 2022,
arXiv:2210.09305.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.attack import Attack, Compromised, LocalStep, attack
from attacks.poisoning import attacked, eligible, poisoned, target_faults, trigger_faults
from attacks.trigger import Trigger, make_trigger
from fedsim.data.examples import Examples
from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@attack("anticipate")
class Anticipate(Attack):
    """A backdoor that is trained through simulated honest steps.

    Args:
        target: the label that triggered images get.
        ratio: share (float) or number (int) of a malicious client's examples that are poisoned.
        trigger: the trigger, by name or as a table with its options.
        ahead: k, honest steps that are simulated.
        lr: η, their learning rate.
        share: a, the attacker's part in the round's mean.
        weight: of the anticipated loss beside the task's.
        batch_size: examples in a simulated step.
    """

    cost = "2·k forward and backward passes a local step"
    untargeted = False

    target: Annotated[int, Field(ge=0)] = 0
    ratio: Annotated[float, Field(ge=0, le=1)] | Annotated[int, Field(ge=0)] = 0.5
    trigger: str | dict[str, Any] = "patch"
    ahead: Annotated[int, Field(ge=1)] = 3
    lr: Annotated[float, Field(gt=0)] = 0.05
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight: Annotated[float, Field(ge=0)] = 1.0
    batch_size: Annotated[int, Field(ge=1)] = 32

    def pattern(self) -> Trigger:
        """The trigger."""
        return make_trigger(self.trigger)

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from target_faults(scenario, "anticipate", self.target)
        yield from trigger_faults(scenario, self.pattern, "trigger")

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        return poisoned(examples, self.target, self.ratio, node.stream("poison"), self.pattern().stamp)

    def triggered(self, test: Examples) -> Examples:
        return attacked(test, self.target, self.pattern().stamp)

    def objective(self, loss: Tensor, parameters: Tensor, step: LocalStep) -> Tensor:
        if self.weight == 0:
            return loss
        ahead = [
            self.anticipated(row, step.reference, step.step, node)
            for row, node in zip(parameters, step.clients, strict=True)
        ]
        return loss + self.weight * torch.stack(ahead).to(loss)

    def anticipated(self, parameters: Tensor, received: Tensor, step: int, node: Compromised) -> Tensor:
        """Mean backdoor loss over the next k simulated models."""
        if node.model is None or node.examples is None:
            return parameters.sum() * 0
        shown = node.examples.take(eligible(node.examples, self.target))
        if len(shown) == 0:
            return parameters.sum() * 0
        stream = node.fresh_stream(f"anticipate.{step}")
        weights = received.to(parameters) + self.share * (parameters - received.to(parameters))
        total = parameters.sum() * 0
        for _ in range(self.ahead):
            clean = _batch(node.examples, self.batch_size, stream)
            honest = functional.cross_entropy(node.model.predict(weights, clean.inputs), clean.targets)
            (gradient,) = torch.autograd.grad(honest, weights, create_graph=True)
            weights = weights - self.lr * gradient
            batch = _batch(shown, self.batch_size, stream)
            outputs = node.model.predict(weights, self.pattern().stamp(batch.inputs))
            total = total + functional.cross_entropy(outputs, torch.full_like(batch.targets, self.target))
        return total / self.ahead


def _batch(examples: Examples, size: int, stream: Any) -> Examples:
    return examples.take(torch.from_numpy(stream.permutation(len(examples))[:size]).sort().values)
