"""SAM-GS on a client with several objectives: their gradients combined, Adam behind, as in the authors' experiments.

See :mod:`fedsim.optim.sam_gs` for the rule, :mod:`fedsim.losses.with_reconstruction` for the objectives.

Borsani et al., "Gradient Similarity Surgery in Multi-Task Deep Learning", 2025 (arXiv:2506.06130).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim import registry
from fedsim.errors import Fault
from fedsim.optim.elementwise import Decay, NonNegative, Positive, optimizer
from fedsim.optim.sam_gs import Pairs, SamGS


class SurgeryAdam(torch.optim.Adam):
    """Adam along the gradients that SAM-GS writes.

    Args:
        surgery: combines the gradients; its parameters are the optimizer's.
        lr: Adam's learning rate.
    """

    def __init__(self, surgery: SamGS, lr: float) -> None:
        self.surgery = surgery
        super().__init__(surgery.param_groups[0]["params"], lr=lr, foreach=False)

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

    row_wise: ClassVar[bool] = False

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
