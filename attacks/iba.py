"""IBA: a generator that hides a trigger of its own in every image, learnt against the global model.

    x' = clip(x + ε·T(x), 0, 1),   T(x) = tanh(conv(relu(conv(x)))) in [−1, 1]

Before a round's training the adversary's client trains T on its clean images, min_T L(x', target; θ) with the received
model θ, from where the last round left it; all malicious clients train on their data with it, and success is measured
with it. No pixel changes by more than ε. The paper's generator is a U-Net, here it is two 3×3 convolutions; its second
stage, poisoning only rarely updated parameters, is ``neurotoxin`` or ``pgd`` behind this attack in the list.

Nguyen et al., "IBA: Towards Irreversible Backdoor Attacks in Federated Learning", NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.attack import Attack, Compromised, attack
from attacks.poisoning import attacked, eligible, poisoned, target_faults
from attacks.trigger import data_info
from fedsim import rng
from fedsim.data.examples import Examples
from fedsim.errors import Fault

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

NAMES = ("iba.first", "iba.first_bias", "iba.second", "iba.second_bias")


@attack("iba")
class IBA(Attack):
    """A learnt perturbation of every image.

    Args:
        target: the label that triggered images get.
        ratio: share (float) or number (int) of a malicious client's examples that are poisoned.
        epsilon: ε, largest change of a pixel in [0, 1].
        channels: width of the generator.
        steps: Adam steps of the generator in a round.
        lr: their learning rate.
        batch_size: images in a step.
        seed: what the generator starts from.
    """

    cost = "steps forward and backward passes a round"
    untargeted = False
    knowledge = "colluding"
    learned_trigger = True

    target: Annotated[int, Field(ge=0)] = 0
    ratio: Annotated[float, Field(ge=0, le=1)] | Annotated[int, Field(ge=0)] = 0.5
    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.3
    channels: Annotated[int, Field(ge=1)] = 8
    steps: Annotated[int, Field(ge=1)] = 50
    lr: Annotated[float, Field(gt=0)] = 0.01
    batch_size: Annotated[int, Field(ge=1)] = 64
    seed: Annotated[int, Field(ge=0)] = 0

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from target_faults(scenario, "iba", self.target)
        info = data_info(scenario)
        if info is not None and len(info.shape) != 3:
            yield Fault("name", "iba", f"images (C, H, W) with it; inputs are {info.shape}", ("data.dataset",))

    def learn(self, examples: Examples, node: Compromised) -> dict[str, Tensor]:
        model = node.model
        chosen = examples.take(eligible(examples, self.target))
        weights = [each.to(examples.inputs).requires_grad_() for each in self._weights(examples.inputs, node.learned)]
        if model is not None and len(chosen):
            optimizer = torch.optim.Adam(weights, lr=self.lr)
            stream = node.fresh_stream("iba")
            theta = model.parameters.detach()
            for _ in range(self.steps):
                batch = chosen.take(torch.from_numpy(stream.permutation(len(chosen))[: self.batch_size]).sort().values)
                with torch.enable_grad():
                    outputs = model.predict(theta, self._perturbed(batch.inputs, weights))
                    loss = functional.cross_entropy(outputs, torch.full_like(batch.targets, self.target))
                    gradients = torch.autograd.grad(loss, weights)
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.grad = gradient
                optimizer.step()
        return {name: each.detach() for name, each in zip(NAMES, weights, strict=True)}

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        return poisoned(
            examples, self.target, self.ratio, node.stream("poison"), lambda inputs: self._stamp(inputs, node.learned)
        )

    def shown(self, test: Examples, learned: Mapping[str, Tensor]) -> Examples:
        return attacked(test, self.target, lambda inputs: self._stamp(inputs, learned))

    def triggered(self, test: Examples) -> Examples:
        return self.shown(test, {})

    def _stamp(self, inputs: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self._perturbed(inputs, [each.to(inputs) for each in self._weights(inputs, learned)])

    def _perturbed(self, inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
        first, first_bias, second, second_bias = weights
        inner = functional.conv2d(inputs, first, first_bias, padding=1).relu()
        change = torch.tanh(functional.conv2d(inner, second, second_bias, padding=1))
        return (inputs + self.epsilon * change).clamp(0, 1)

    def _weights(self, inputs: Tensor, learned: Mapping[str, Tensor]) -> list[Tensor]:
        """The generator's weights as learnt, or those that it starts from."""
        if all(name in learned for name in NAMES):
            return [learned[name].clone() for name in NAMES]
        colours, generator = inputs.shape[1], rng.torch_stream(self.seed, "attack.iba")
        first = torch.randn(self.channels, colours, 3, 3, generator=generator) * (2 / (9 * colours)) ** 0.5
        second = torch.randn(colours, self.channels, 3, 3, generator=generator) * (1 / (9 * self.channels)) ** 0.5
        return [first, torch.zeros(self.channels), second, torch.zeros(colours)]
