"""Quantity skew: clients hold very different numbers of examples, each a uniform draw.

Sizes follow a power law, n_i ∝ r_i^(-exponent) with the ranks r drawn by lot, or a Dirichlet distribution.

Li, Diao, Chen & He, "Federated learning on non-IID data silos: an experimental study", ICDE 2022, 2102.02079.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedsim import rng
from fedsim.data.dirichlet import proportional, proportions
from fedsim.data.examples import Dataset, Shares
from fedsim.data.partition import Partition, by_sizes
from fedsim.errors import Fault
from fedsim.registry import register


@register("partition", "quantity")
class Quantity(Partition):
    """Clients hold very different numbers of examples.

    Args:
        law: how the sizes are distributed.
        exponent: of the power law, by default 1; 0 gives equal sizes.
        alpha: concentration of the Dirichlet distribution, by default .5; the smaller, the more unequal.
        min_examples: examples that each client has at the least; the law divides the others.
    """

    law: Literal["power", "dirichlet"] = "power"
    exponent: Annotated[float, Field(ge=0)] | None = None
    alpha: Annotated[float, Field(gt=0)] | None = None
    min_examples: Annotated[int, Field(ge=0)] = 1
    skew = "quantities"

    def check(self, scenario: Any) -> Iterable[Fault]:
        """Whether the law reads what is given."""
        yield from super().check(scenario)
        if self.law == "power" and self.alpha is not None:
            yield Fault("alpha", self.alpha, "none with law = 'power', which reads exponent; law = 'dirichlet' reads it")
        if self.law == "dirichlet" and self.exponent is not None:
            yield Fault("exponent", self.exponent, "none with law = 'dirichlet', which reads alpha")

    def least(self) -> int:
        return self.min_examples

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        self.refuse(dataset, clients)
        generator = rng.stream(seed, "partition.quantity")
        total = len(dataset.train)
        order = generator.permutation(total)
        if self.law == "power":
            exponent = 1.0 if self.exponent is None else self.exponent
            weights = generator.permutation(np.arange(1, clients + 1, dtype=np.float64) ** -exponent)
        else:
            weights = proportions(generator, self.alpha or 0.5, clients)
        return by_sizes(order, self.min_examples + proportional(weights, total - clients * self.min_examples))
