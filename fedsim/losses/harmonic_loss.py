"""The harmonic loss as clients train it: the model's last linear layer becomes a harmonic head.

Every client and the server have the same head, with the same distance and exponent; what leaves a client are the
prototypes, as parameters of the model. See :mod:`fedsim.losses.harmonic`.

Baek, Liu, Tyagi & Tegmark, "Harmonic loss trains interpretable AI models", 2025, arXiv 2502.01628; non-Euclidean
distances: Miller-Golub et al., 2026, arXiv 2603.10225.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from fedsim.errors import Fault, FedsimError
from fedsim.losses.harmonic import Distance, HarmonicHead
from fedsim.losses.loss import NO_CLASSES, Loss, last_linear, loss, softmax_losses


@loss("harmonic")
class HarmonicLoss(Loss):
    """Cross-entropy on -n·log(distance to a class's prototype): the last linear layer becomes the prototypes.

    Args:
        distance: between features and prototypes.
        exponent: n; None: the root of the number of features.
        eps: added to the distance inside the logarithm.
        p: order of the Minkowski distance.
        temperature: of the soft Hamming distance.
        mask_absent: leave the classes that a client does not hold out of its softmax.
    """

    reads: ClassVar[str] = "example"

    distance: Distance = "euclidean"
    exponent: Annotated[float, Field(gt=0)] | None = None
    eps: Annotated[float, Field(gt=0)] = 1e-8
    p: Annotated[float, Field(ge=1)] = 3.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    mask_absent: bool = False

    def head(self, model: nn.Module) -> nn.Module:
        name, old = last_linear(model)
        assert isinstance(old, nn.Linear)
        new = HarmonicHead(
            old.in_features,
            old.out_features,
            self.exponent,
            self.distance,
            self.eps,
            p=self.p,
            temperature=self.temperature,
        )
        if not name:
            return new
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], new)
        return model

    def check(self, scenario: Any) -> Iterable[Fault]:
        yield from super().check(scenario)
        for name, distance in (("p", "minkowski"), ("temperature", "hamming")):
            given, default = getattr(self, name), getattr(type(self), name)
            if given != default and self.distance != distance:
                yield Fault(name, given, f"none without distance = '{distance}'")

    def fit(self, num_classes: int) -> None:
        if num_classes < 2:
            raise FedsimError(NO_CLASSES)

    def example_losses(
        self, outputs: Tensor, targets: Tensor, num_classes: int, present: Tensor | None = None
    ) -> Tensor:
        return softmax_losses(outputs, targets, present)
