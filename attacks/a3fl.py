"""A3FL: a trigger that is optimised against the global model, and against one that has unlearnt it.

Before a round's training the adversary's client improves the pattern δ of a patch, from the received model θ:

    min_δ  L(x ⊕ δ, target; θ) + λ·L(x ⊕ δ, target; θ'),   θ' = θ after SGD steps on (x ⊕ δ, the true y)

θ' stands for what honest training will make of the model; λ = λ₀·cos(θ, θ'). δ moves by signed gradient steps within
[0, 1] and goes on from where the last round left it; θ' is made anew every ``refresh`` steps. All malicious clients
then train on their data with the new trigger, and success is measured with it. The pattern of one client serves all.

Zhang et al., "A3FL: Adversarially Adaptive Backdoor Attacks to Federated Learning", NeurIPS 2023, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.attack import Attack, Compromised, attack
from attacks.learned import Learned
from attacks.poisoning import attacked, eligible, poisoned, target_faults, trigger_faults
from attacks.trigger import make_trigger
from fedsim.data.examples import Examples
from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

PATTERN = "a3fl.pattern"
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


@attack("a3fl")
class A3FL(Attack):
    """An optimised trigger.

    Args:
        target: the label that triggered images get.
        ratio: share (float) or number (int) of a malicious client's examples that are poisoned.
        steps: steps of the pattern in a round.
        lr: length of a signed step.
        batch_size: images in a step.
        adversarial: λ₀, weight of the model that has unlearnt the trigger.
        unlearning: SGD steps that make it.
        unlearning_lr: their learning rate.
        refresh: steps of the pattern for which it serves.
        patch: where the pattern lies: options of the trigger ``learned``.
    """

    cost = "steps·2 forward and backward passes a round"
    untargeted = False
    knowledge = "colluding"
    learned_trigger = True

    target: Annotated[int, Field(ge=0)] = 0
    ratio: Annotated[float, Field(ge=0, le=1)] | Annotated[int, Field(ge=0)] = 0.5
    steps: Count = 50
    lr: Rate = 0.02
    batch_size: Count = 64
    adversarial: Annotated[float, Field(ge=0)] = 0.5
    unlearning: Annotated[int, Field(ge=0)] = 5
    unlearning_lr: Rate = 0.05
    refresh: Count = 10
    patch: dict[str, Any] = field(default_factory=dict)

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from target_faults(scenario, "a3fl", self.target)
        yield from trigger_faults(scenario, self.place, "patch")

    def place(self) -> Learned:
        """Where the pattern lies."""
        return cast(Learned, make_trigger({"name": "learned", **self.patch}))

    def learn(self, examples: Examples, node: Compromised) -> dict[str, Tensor]:
        model, place = node.model, self.place()
        chosen = examples.take(eligible(examples, self.target))
        pattern = node.learned.get(PATTERN, place.start(examples.inputs.shape[1:])).to(examples.inputs)
        if model is None or len(chosen) == 0:
            return {PATTERN: pattern}
        stream = node.fresh_stream("a3fl")
        theta = hardened = model.parameters.detach()
        weight = 0.0
        for step in range(self.steps):
            batch = chosen.take(torch.from_numpy(stream.permutation(len(chosen))[: self.batch_size]).sort().values)
            if step % self.refresh == 0 and self.adversarial and self.unlearning:
                hardened = self._unlearnt(model.predict, theta, place.stamp_with(pattern, batch.inputs), batch.targets)
                weight = self.adversarial * float(functional.cosine_similarity(theta, hardened, dim=0))
            with torch.enable_grad():
                moving = pattern.clone().requires_grad_()
                shown = place.stamp_with(moving, batch.inputs)
                wanted = torch.full_like(batch.targets, self.target)
                loss = functional.cross_entropy(model.predict(theta, shown), wanted)
                if weight:
                    loss = loss + weight * functional.cross_entropy(model.predict(hardened, shown), wanted)
                (gradient,) = torch.autograd.grad(loss, moving)
            pattern = (pattern - self.lr * gradient.sign()).clamp(0, 1)
        return {PATTERN: pattern}

    def _unlearnt(self, predict: Any, theta: Tensor, shown: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            for _ in range(self.unlearning):
                point = theta.detach().requires_grad_()
                loss = functional.cross_entropy(predict(point, shown), targets)
                theta = (point - self.unlearning_lr * torch.autograd.grad(loss, point)[0]).detach()
        return theta

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        return poisoned(
            examples, self.target, self.ratio, node.stream("poison"), lambda inputs: self._stamp(inputs, node.learned)
        )

    def shown(self, test: Examples, learned: Mapping[str, Tensor]) -> Examples:
        return attacked(test, self.target, lambda inputs: self._stamp(inputs, learned))

    def triggered(self, test: Examples) -> Examples:
        return self.shown(test, {})

    def _stamp(self, inputs: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        place = self.place()
        pattern = learned.get(PATTERN)
        return place.stamp(inputs) if pattern is None else place.stamp_with(pattern, inputs)
