"""SAM-GS on a client with several objectives: their gradients combined, Adam behind, as in the authors' experiments.

See :mod:`fedsim.optim.sam_gs` for the rule, :mod:`fedsim.losses.with_reconstruction` for the objectives.

Borsani et al., "Gradient Similarity Surgery in Multi-Task Deep Learning", 2025 (arXiv:2506.06130).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim import registry
from fedsim.errors import Fault
from fedsim.optim.elementwise import Decay, NonNegative, Positive, optimizer
from fedsim.optim.sam_gs import RULE, Pairs, SamGS


@dataclass
class Memories:
    """What SAM-GS remembers of the K objectives of each of k clients, all of which have made as many steps.

    Args:
        momentum: (k, K, d) m_k.
        spread: (k,) h.
        steps: how often both were updated.
    """

    momentum: Tensor
    spread: Tensor
    steps: int = 0

    @classmethod
    def fresh(cls, like: Tensor) -> Memories:
        """Before the first step, of gradients (k, K, d)."""
        return cls(torch.zeros_like(like), like.new_zeros(len(like), dtype=torch.float64))


def similarities(gradients: Tensor, pairs: Pairs = "distinct") -> Tensor:
    """(k,) Ψ of each client's (K, d) gradients in (k, K, d); see :func:`fedsim.optim.sam_gs.similarity`."""
    norms = torch.linalg.vector_norm(gradients, dim=2, dtype=torch.float64)
    products = 2 * norms[:, :, None] * norms[:, None, :]
    below = norms[:, :, None].square() + norms[:, None, :].square()
    psi = torch.where(below > 0, products / torch.where(below > 0, below, 1.0), 1.0)
    tasks = norms.shape[1]
    if pairs == "all":
        return psi.mean((1, 2))
    if tasks == 1:
        return psi[:, 0, 0]
    one, other = torch.triu_indices(tasks, tasks, 1, device=psi.device)
    return psi[:, one, other].mean(1)


@torch.no_grad()
def surgery_of_rows(
    gradients: Tensor,
    memories: Memories,
    *,
    betas: tuple[float, float],
    gamma: float,
    eps: float,
    pairs: Pairs,
    rescale: bool,
) -> Tensor:
    """(k, d): :func:`fedsim.optim.sam_gs.surgery` of k clients at once, each with its own Ψ, branch, momenta and h.

    Args:
        gradients: (k, K, d).
        memories: of these clients, updated in place.
        betas: decay β1 of the momenta and β2 of the spread.
        gamma: γ.
        eps: ε.
        pairs: what Ψ runs over.
        rescale: give the momentum branch the norm that the sum of the gradients has.
    """
    beta1, beta2 = betas
    psi = similarities(gradients, pairs)
    memories.momentum.lerp_(gradients, 1 - beta1)
    memories.spread.mul_(beta2).add_((1 - beta2) * (1 - psi).square() + eps)
    memories.steps += 1
    equal = (psi < gamma)[:, None]
    norms = torch.linalg.vector_norm(gradients, dim=2)
    unit = gradients / torch.where(norms > 0, norms, 1.0)[..., None]
    equalised: Tensor = unit.sum(1) * norms.mean(1, keepdim=True)
    if bool(equal.all()):
        return equalised
    spread = (memories.spread / (1 - beta2**memories.steps)).sqrt() + eps
    scale = (1 / (1 - beta1**memories.steps) / spread).to(gradients)
    weighted = memories.momentum.abs().mul_(scale[:, None, None]).mul_(gradients).sum(1)
    if rescale:
        norm = torch.linalg.vector_norm(weighted, dim=1)
        wanted = torch.linalg.vector_norm(gradients.sum(1), dim=1)
        weighted = weighted * torch.where(norm > 0, wanted / torch.where(norm > 0, norm, 1.0), 1.0)[:, None]
    return torch.where(equal, equalised, weighted)


class SurgeryAdam(torch.optim.Adam):
    """Adam along the gradients that SAM-GS writes.

    Args:
        surgery: combines the gradients; its parameters are the optimizer's.
        lr: Adam's learning rate.
    """

    def __init__(self, surgery: SamGS, lr: float) -> None:
        self.surgery = surgery
        self.memories: Memories | None = None
        super().__init__(surgery.param_groups[0]["params"], lr=lr, foreach=False)

    def combine_objectives(self, gradients: Tensor) -> Tensor:
        """(r, d) of the (r, K, d) gradients of r clients' objectives, where the parameter is one (k, d).

        Clients are sorted by their steps: those that are done are the last rows, and leave with what was remembered.
        """
        if self.memories is None:
            self.memories = Memories.fresh(gradients)
        active, kept = len(gradients), self.memories
        if active < len(kept.momentum):
            self.memories = Memories(kept.momentum[:active], kept.spread[:active], kept.steps)
        options = {name: self.surgery.param_groups[0][name] for name in RULE}
        return surgery_of_rows(gradients, self.memories, **options)

    def backward(self, losses: Tensor) -> None:
        """Write the combined gradient of the (K,) losses into ``.grad``, in place where there is one."""
        parameters = self.param_groups[0]["params"]
        places = [each.grad for each in parameters]
        self.surgery.backward(losses)
        for each, place in zip(parameters, places, strict=True):
            if place is not None and each.grad is not None and each.grad is not place:
                each.grad = place.copy_(each.grad)


@optimizer("sam_gs")
class ClientSamGS:
    """SAM-GS over a client's objectives, in front of Adam; for a loss that gives several.

    Args:
        lr: learning rate of Adam.
        betas: decay β1 of the objectives' momenta and β2 of the spread.
        gamma: γ, the similarity of sizes below which gradients are equalised.
        eps: ε of the rule.
        pairs: what the similarity runs over, "distinct" (the code) or "all" (the paper).
        rescale: give the momentum branch the norm that the sum of the gradients has.
    """

    row_wise: ClassVar[bool] = True
    combines_objectives: ClassVar[bool] = True

    lr: Positive = 0.001
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    gamma: NonNegative = 0.5
    eps: Positive = 1e-8
    pairs: Pairs = "distinct"
    rescale: bool = False

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> SurgeryAdam:
        """The optimizer of these parameters, its learning rate times ``scale``."""
        options = {"gamma": self.gamma, "eps": self.eps, "pairs": self.pairs, "rescale": self.rescale}
        return SurgeryAdam(SamGS(list(parameters), betas=self.betas, **options), self.lr * scale)  # type: ignore[arg-type]

    def check(self, scenario: Any) -> Iterable[Fault]:
        """There must be something to combine; its memory is of one round."""
        client = scenario.client
        given = None if client.loss is None else registry.get("loss", client.loss.name)
        if getattr(given, "objectives", 1) < 2:
            accepted = "one of a single objective; or client.loss = 'with_reconstruction', which gives two"
            yield Fault("", "sam_gs", accepted, ("client.loss",))
        if client.optimizer_state == "persist":
            accepted = "'reset': 'sam_gs' begins its objectives' momenta anew in each round"
            yield Fault("/client.optimizer_state", "persist", accepted, ("client.optimizer",))
