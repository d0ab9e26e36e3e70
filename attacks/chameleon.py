"""Chameleon: the features of triggered images are drawn to those of the target's own, and away from their old class's.

A backdoor lasts as long as no honest image pulls its features elsewhere. A supervised contrastive loss on the features
z (what goes into the last layer, of length 1), triggered images carrying the target's label, is added to the task:

    loss = task loss + weight · mean_i −1/|P(i)| Σ_{p ∈ P(i)} log( exp(z_i·z_p/τ) / Σ_{a ≠ i} exp(z_i·z_a/τ) )

P(i) the other images of the batch with i's label. The paper trains the encoder with the contrastive loss first and then
the classifier behind it; here both are minimised together, since a client has one loop over its steps.

Dai & Li, "Chameleon: Adapting to Peer Images for Planting Durable Backdoors in Federated Learning", ICML 2023,
arXiv:2304.12961.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.attack import Attack, Compromised, LocalStep, attack
from attacks.poisoning import attacked, poisoned, target_faults, trigger_faults
from attacks.trigger import Trigger, make_trigger
from fedsim.data.examples import Examples
from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@attack("chameleon")
class Chameleon(Attack):
    """A backdoor with features like the target's own images.

    Args:
        target: the label that triggered images get.
        ratio: share (float) or number (int) of a malicious client's examples that are poisoned.
        trigger: the trigger, by name or as a table with its options.
        weight: of the contrastive loss beside the task's.
        temperature: τ.
        batch_size: examples in a contrastive batch.
    """

    cost = "one more forward and backward pass a local step"
    untargeted = False

    target: Annotated[int, Field(ge=0)] = 0
    ratio: Annotated[float, Field(ge=0, le=1)] | Annotated[int, Field(ge=0)] = 0.5
    trigger: str | dict[str, Any] = "patch"
    weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 0.1
    batch_size: Annotated[int, Field(ge=2)] = 64

    def pattern(self) -> Trigger:
        """The trigger."""
        return make_trigger(self.trigger)

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from target_faults(scenario, "chameleon", self.target)
        yield from trigger_faults(scenario, self.pattern, "trigger")

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        return poisoned(examples, self.target, self.ratio, node.stream("poison"), self.pattern().stamp)

    def triggered(self, test: Examples) -> Examples:
        return attacked(test, self.target, self.pattern().stamp)

    def objective(self, loss: Tensor, parameters: Tensor, step: LocalStep) -> Tensor:
        if self.weight == 0:
            return loss
        terms = [self._term(row, step.step, node) for row, node in zip(parameters, step.clients, strict=True)]
        return loss + self.weight * torch.stack(terms).to(loss)

    def _term(self, parameters: Tensor, step: int, node: Compromised) -> Tensor:
        if node.model is None or node.examples is None or len(node.examples) < 2:
            return parameters.sum() * 0
        examples = self.poison(node.examples, node)
        order = node.fresh_stream(f"chameleon.{step}").permutation(len(examples))[: self.batch_size]
        batch = examples.take(torch.from_numpy(order).sort().values)
        return contrastive(node.model.features(parameters, batch.inputs), batch.targets, self.temperature)


def contrastive(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020) of (n, width) features; an image alone of its label counts 0."""
    unit = functional.normalize(features, dim=1, eps=1e-8)
    own = torch.eye(len(labels), dtype=torch.bool, device=features.device)
    logits = (unit @ unit.T / temperature).masked_fill(own, -torch.inf)
    log_share = (logits - logits.logsumexp(dim=1, keepdim=True)).masked_fill(own, 0.0)
    positive = (labels[:, None] == labels[None, :]) & ~own
    each = -(log_share * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return each.mean()
