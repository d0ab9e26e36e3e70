"""Regularizers by name: Hessian alignment, and the ones that it is compared with.

``hessian_alignment``  α·|h_k - h̄|² + β·|g_k - ḡ|² of the head's gradient g and h = H g (``hgp``) or diag H
                       (``diagonal``, exact or by Hutchinson's draws)
``coral``              means and covariances of the features      ``fishr``  variances of the head's gradients
``vrex``               the mean losses                            ``irm``    (∂/∂s L_k(s·logits))², needs no one else

The head's gradient and Hessian are those of a linear layer; of a harmonic head, those of a linear layer whose outputs
are added to its logits, at zero. For ``hgp`` with ``reference = "exact"`` h̄ is H̄ ḡ, which takes a second exchange; else
the mean of the h_k.

Hemati et al., "Understanding Hessian alignment for domain generalization", ICCV 2023, arXiv 2308.11778; sources of the
others in their modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.errors import Fault
from fedsim.losses.fishr import gradient_variance
from fedsim.losses.hessian_alignment import (
    alignment_penalty,
    head_gradient,
    hessian_diagonal,
    hessian_vector_product,
)
from fedsim.losses.irm import irm_penalty
from fedsim.losses.regularizer import DOMAINS, DRAWS, Regularizer, Told, regularizer

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@regularizer("hessian_alignment")
class HessianAlignment(Regularizer):
    """The head's gradient and Hessian agree over clients.

    Args:
        method: what stands for the Hessian: its product with the gradient, or its diagonal.
        alpha: α, weight of the Hessians' distance.
        beta: β, weight of the gradients' distance.
        reference: for ``hgp``, h̄ = H̄ ḡ by a second exchange, or the mean of the h_k.
        hutchinson_samples: for ``diagonal``, draws of Hutchinson's estimate (the paper: 300); without it, exact. All
            clients of a round share the draws: by these their estimates do not differ.
        weight: λ.
        warmup: rounds in which λ is at most 1.
        form: mean over clients, or sum against the mean of their losses.
        rescale: divide the whole loss by λ once it is above 1.
        references: of the round's own parameters, by an exchange before the training; or of an earlier round's.
        average: whether all clients count alike in the mean of their statistics, or by their examples.
    """

    method: Literal["hgp", "diagonal"] = "hgp"
    alpha: NonNegative = 1e-4
    beta: NonNegative = 0.005
    reference: Literal["mean", "exact"] = "mean"
    hutchinson_samples: Annotated[int, Field(ge=1)] | None = None
    weight: NonNegative = 1.0
    warmup: Annotated[int, Field(ge=0)] = 0
    form: Literal["mean", "sum"] = "mean"
    rescale: bool = False
    references: Literal["fresh", "lagged"] = "fresh"
    average: Literal["equal", "examples"] = "equal"

    @property
    def second(self) -> bool:
        return self.method == "hgp" and self.reference == "exact"

    def check(self, scenario: Any) -> Iterable[Fault]:
        yield from super().check(scenario)
        if self.method == "diagonal" and self.reference == "exact":
            yield Fault("reference", "exact", "'mean' with method = 'diagonal', for which it is exact")
        if self.method != "diagonal" and self.hutchinson_samples is not None:
            yield Fault("hutchinson_samples", self.hutchinson_samples, "none without method = 'diagonal'")

    def statistics(
        self, features: Tensor, logits: Tensor, targets: Tensor, loss: Tensor, told: Told
    ) -> dict[str, Tensor]:
        gradient = head_gradient(features, logits, targets)
        if self.method == "hgp":
            return {"gradient": gradient, "hessian": hessian_vector_product(features, logits, gradient)}
        seed = told.get(DRAWS)
        samples = None if seed is None else self.hutchinson_samples
        return {
            "gradient": gradient,
            "hessian": hessian_diagonal(features, logits, hutchinson_samples=samples, seed=seed),
        }

    def draws(self, generator: np.random.Generator) -> dict[str, Tensor]:
        return {} if self.hutchinson_samples is None else {DRAWS: torch.tensor(int(generator.integers(2**32)))}

    def again(self, features: Tensor, logits: Tensor, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"hessian": hessian_vector_product(features, logits, means["gradient"])}

    def penalty(
        self, features: Tensor, logits: Tensor, targets: Tensor, loss: Tensor, reference: Mapping[str, Tensor]
    ) -> Tensor:
        own = self.statistics(features, logits, targets, loss, reference)
        means = reference["gradient"], reference["hessian"]
        return alignment_penalty(own["gradient"], own["hessian"], *means, alpha=self.alpha, beta=self.beta)


@regularizer("coral")
class Coral(Regularizer):
    """Means and covariances of the features agree over clients.

    Args:
        weight: λ.
        warmup: rounds in which λ is at most 1.
        form: mean over clients, or sum against the mean of their losses.
        rescale: divide the whole loss by λ once it is above 1.
        references: of the round's own parameters, by an exchange before the training; or of an earlier round's.
        average: whether all clients count alike in the mean of their statistics, or by their examples.
    """

    weight: NonNegative = 1.0
    warmup: Annotated[int, Field(ge=0)] = 0
    form: Literal["mean", "sum"] = "mean"
    rescale: bool = False
    references: Literal["fresh", "lagged"] = "fresh"
    average: Literal["equal", "examples"] = "equal"

    def statistics(
        self, features: Tensor, logits: Tensor, targets: Tensor, loss: Tensor, told: Told
    ) -> dict[str, Tensor]:
        mean = features.mean(0)
        centred = features - mean
        return {"mean": mean, "covariance": centred.T @ centred / max(len(features) - 1, 1)}

    def penalty(
        self, features: Tensor, logits: Tensor, targets: Tensor, loss: Tensor, reference: Mapping[str, Tensor]
    ) -> Tensor:
        """Its share of the mean over pairs of clients: 2E/(E - 1) times its distance from the mean."""
        if len(features) < 2:
            return features.sum() * 0
        own, domains = self.statistics(features, logits, targets, loss, reference), reference[DOMAINS]
        distance = torch.stack([(own[name] - reference[name]).square().mean() for name in own]).sum()
        return distance * 2 * domains / (domains - 1).clamp(min=1)


@regularizer("fishr")
class Fishr(Regularizer):
    """Variances of the head's gradients over examples agree over clients.

    Args:
        weight: λ.
        warmup: rounds in which λ is at most 1.
        form: mean over clients, or sum against the mean of their losses.
        rescale: divide the whole loss by λ once it is above 1.
        references: of the round's own parameters, by an exchange before the training; or of an earlier round's.
        average: whether all clients count alike in the mean of their statistics, or by their examples.
    """

    weight: NonNegative = 1000.0
    warmup: Annotated[int, Field(ge=0)] = 0
    form: Literal["mean", "sum"] = "mean"
    rescale: bool = False
    references: Literal["fresh", "lagged"] = "fresh"
    average: Literal["equal", "examples"] = "equal"

    def statistics(
        self, features: Tensor, logits: Tensor, targets: Tensor, loss: Tensor, told: Told
    ) -> dict[str, Tensor]:
        return {"variance": gradient_variance(features, logits, targets)}

    def penalty(
        self, features: Tensor, logits: Tensor, targets: Tensor, loss: Tensor, reference: Mapping[str, Tensor]
    ) -> Tensor:
        return (gradient_variance(features, logits, targets) - reference["variance"]).square().mean()


@regularizer("vrex")
class Vrex(Regularizer):
    """The clients' mean losses agree.

    Args:
        weight: λ.
        warmup: rounds in which λ is at most 1.
        form: mean over clients, or sum against the mean of their losses.
        rescale: divide the whole loss by λ once it is above 1.
        references: of the round's own parameters, by an exchange before the training; or of an earlier round's.
        average: whether all clients count alike in the mean of their statistics, or by their examples.
    """

    weight: NonNegative = 10.0
    warmup: Annotated[int, Field(ge=0)] = 0
    form: Literal["mean", "sum"] = "mean"
    rescale: bool = False
    references: Literal["fresh", "lagged"] = "fresh"
    average: Literal["equal", "examples"] = "equal"

    def statistics(
        self, features: Tensor, logits: Tensor, targets: Tensor, loss: Tensor, told: Told
    ) -> dict[str, Tensor]:
        return {"loss": loss.reshape(1)}

    def penalty(
        self, features: Tensor, logits: Tensor, targets: Tensor, loss: Tensor, reference: Mapping[str, Tensor]
    ) -> Tensor:
        return (loss - reference["loss"]).square().sum()


@regularizer("irm")
class Irm(Regularizer):
    """No client would rescale the logits.

    Args:
        weight: λ.
        warmup: rounds in which λ is at most 1.
        form: mean over clients, or sum against the mean of their losses.
        rescale: divide the whole loss by λ once it is above 1.
        references: of the round's own parameters, by an exchange before the training; or of an earlier round's.
        average: whether all clients count alike in the mean of their statistics, or by their examples.
    """

    weight: NonNegative = 100.0
    warmup: Annotated[int, Field(ge=0)] = 0
    form: Literal["mean", "sum"] = "mean"
    rescale: bool = False
    references: Literal["fresh", "lagged"] = "fresh"
    average: Literal["equal", "examples"] = "equal"

    def penalty(
        self, features: Tensor, logits: Tensor, targets: Tensor, loss: Tensor, reference: Mapping[str, Tensor]
    ) -> Tensor:
        return irm_penalty(logits, targets)
