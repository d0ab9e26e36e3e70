"""Regularizers between clients: each keeps close to what all of them have in common, in what its head sees.

With client = domain, domain k adds λ·penalty(s_k, s̄) to its loss: s_k are statistics of its features, logits and
targets, s̄ the mean of all clients', which the server sends and which is held fixed. Nothing is lost by that where the
penalty is a squared distance and all clients count alike: Σ_k (s_k - s̄) = 0, no gradient flows through s̄.

``form = "sum"`` multiplies by the number of clients, for the sum over domains against the mean of their losses, as in
the experiments on coloured digits. ``rescale`` divides the whole loss by λ once λ > 1, the L2 penalty that the client's
optimizer adds to the gradient (``weight_decay``) with it; then only optimizers that do not mind the gradient's scale
still move, the client's or the server's.

Arjovsky et al., "Invariant risk minimization", 2019, arXiv 1907.02893, whose annealing of λ this is; Gulrajani &
Lopez-Paz, "In search of lost domain generalization", ICLR 2021, arXiv 2007.01434.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import Fault, FedsimError
from fedsim.registry import register
from fedsim.scenario_privacy import claims

regularizer = partial(register, "regularizer")

WEIGHT, DOMAINS, DRAWS = "weight", "domains", "draws"
"""What the server tells beside s̄: λ, how many clients' statistics s̄ is the mean of, a seed for those that draw."""
Told = Mapping[str, Tensor]
"""What the server told, by name."""
BY_SIZE = ("sgd", "rm3", "m3", "ra3", "winsorized", "langevin")
"""Optimizers whose steps are as large as the gradient."""
NORMALIZING = ("adagrad", "adam", "diffgrad", "yogi")
"""Server optimizers whose steps do not mind how large the clients' are, once they have all shrunk alike."""


class Regularizer:
    """Base of all regularizers, which have these options."""

    weight: float
    warmup: int
    form: Literal["mean", "sum"]
    rescale: bool
    references: Literal["fresh", "lagged"]
    average: Literal["equal", "examples"]

    @property
    def second(self) -> bool:
        """Whether the means take a second exchange, see :meth:`again`."""
        return False

    def fit(self, num_classes: int) -> None:
        """Called when the data are known.

        Raises:
            FedsimError: targets without classes.
        """
        if num_classes < 2:
            accepted = "none for targets that are numbers: there is no softmax"
            raise FedsimError(f"client.regularizers: given '{self.name}'; accepted: {accepted}")  # type: ignore[attr-defined]

    def statistics(
        self, features: Tensor, logits: Tensor, targets: Tensor, loss: Tensor, told: Told
    ) -> dict[str, Tensor]:
        """s_k of examples; nothing where a client needs nothing of the others. ``told`` holds the round's draws."""
        return {}

    def draws(self, generator: np.random.Generator) -> dict[str, Tensor]:
        """What the server draws anew with each s̄, for statistics that are estimates; all clients are told the same."""
        return {}

    def again(self, features: Tensor, logits: Tensor, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a client answers in a second exchange, given the means of the first; its mean replaces theirs."""
        return {}

    def penalty(
        self, features: Tensor, logits: Tensor, targets: Tensor, loss: Tensor, reference: Mapping[str, Tensor]
    ) -> Tensor:
        """The penalty of a batch, a scalar.

        Args:
            features: (B, m) inputs of the head.
            logits: (B, C).
            targets: (B,).
            loss: mean loss of the batch.
            reference: s̄ by name, and ``domains``.
        """
        raise NotImplementedError

    def combine(
        self,
        total: Tensor,
        features: Tensor,
        logits: Tensor,
        targets: Tensor,
        reference: Mapping[str, Tensor],
        loss: Tensor,
    ) -> Tensor:
        """The batch's objective with the penalty; as it was where the server told nothing yet."""
        if not reference:
            return total
        features, logits = (each.float() if each.dtype == torch.bfloat16 else each for each in (features, logits))
        weight = reference[WEIGHT]
        times = weight * reference[DOMAINS] if self.form == "sum" else weight
        total = total + times * self.penalty(features, logits, targets, loss, reference)
        return total / weight.clamp(min=1.0) if self.rescale else total

    def divisor(self, reference: Mapping[str, Tensor]) -> float:
        """What :meth:`combine` divides the whole objective by."""
        return max(1.0, float(reference[WEIGHT])) if self.rescale and reference else 1.0

    def weight_in(self, round: int) -> float:
        """λ of a round; at most 1 in the first ``warmup`` ones."""
        return min(1.0, self.weight) if round <= self.warmup else self.weight

    def check(self, scenario: Any) -> Iterable[Fault]:
        """What clients tell of their data leaves them as it is; who aggregates must ask for it."""
        name, client = self.name, scenario.client  # type: ignore[attr-defined]
        if scenario.guest:
            accepted = f"none behind '{scenario.server.defenses[0].name}': a stock Flower strategy asks no statistics"
            yield Fault("", name, accepted, ("server.defenses",))
        if claims(scenario) or client.optimizer.name == "dp_sgd":
            accepted = "none where privacy is claimed: statistics of the clients' data leave them without noise"
            yield Fault("", name, accepted, ("privacy.epsilon", "privacy.noise", "client.optimizer"))
        if client.loss is not None and client.loss.name == "squared_error":
            accepted = "none with client.loss = 'squared_error': it looks at the softmax"
            yield Fault("", name, accepted, ("client.loss",))
        normalized = scenario.server.optimizer.name in NORMALIZING
        if self.rescale and client.optimizer.name in BY_SIZE and not normalized:
            accepted = (
                f"false with client.optimizer = '{client.optimizer.name}', whose steps shrink alike, unless "
                f"server.optimizer is one of: {', '.join(NORMALIZING)}"
            )
            yield Fault("rescale", True, accepted, ("client.optimizer", "server.optimizer"))
