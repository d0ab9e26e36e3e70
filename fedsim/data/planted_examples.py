"""Examples of a single-index model, in which a direction is planted, for clients to find.

    y = h_k(⟨θ*, x⟩) + noise · N(0, 1),    x ~ N(0, I),    |θ*| = 1,    h_k = He_k / sqrt(k!)

The rounds tell the overlap of the model's direction with θ*, see :mod:`fedsim.data.planted`.

Wei, Damian & Lee, ICLR 2026 (arXiv:2603.06028).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsim import rng
from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.planted import overlap, single_index, unit_vectors
from fedsim.data.reading import dataset_of, read_once
from fedsim.registry import register

Count = Annotated[int, Field(ge=1)]


@register("dataset", "planted")
class Planted:
    """A planted direction behind the targets: single-index examples of an information exponent.

    Args:
        exponent: information exponent k; the target is the k-th Hermite polynomial of ⟨θ*, x⟩.
        dimensions: d, numbers of an input.
        examples: training examples n.
        test: test examples.
        noise: standard deviation of the noise on a target, whose own is 1.
        data_seed: other seeds give other tasks; independent of the scenario's seed.
    """

    measures: ClassVar[tuple[str, ...]] = ("overlap",)

    exponent: Count = 3
    dimensions: Annotated[int, Field(ge=2)] = 50
    examples: Count = 25_000
    test: Count = 2000
    noise: Annotated[float, Field(ge=0)] = 0.0
    data_seed: Annotated[int, Field(ge=0)] = 0

    def info(self) -> DataInfo:
        return DataInfo((self.dimensions,), 0, self.examples, self.test)

    def load(self) -> Dataset:
        options = (self.exponent, self.dimensions, self.examples, self.test, self.noise, self.data_seed)
        return read_once(("planted", *options), self._make)

    def direction(self) -> Tensor:
        """(d,) θ*, which no client knows."""
        stream = rng.torch_stream(self.data_seed, "data.planted.direction")
        return unit_vectors(1, self.dimensions, stream, torch.float64)[0]

    def measure(self, parameters: Mapping[str, Tensor]) -> dict[str, float | None]:
        """⟨θ, θ*⟩ / |θ| of a model that is one direction; |⟨θ, θ*⟩| / |θ| for an even k, which hides the sign.

        Args:
            parameters: of the model, by name; nothing is measured where they are not d numbers in all.
        """
        theta = torch.cat([each.detach().reshape(-1) for each in parameters.values()]).cpu().double()
        if len(theta) != self.dimensions:
            return {"overlap": None}
        found = float(overlap(theta, self.direction()))
        return {"overlap": found if self.exponent % 2 else abs(found)}

    def _make(self) -> Dataset:
        stream = rng.torch_stream(self.data_seed, "data.planted.examples")
        options = {"direction": self.direction(), "noise": self.noise, "dtype": torch.float64}
        drawn = single_index(self.examples + self.test, self.dimensions, self.exponent, stream, **options)  # type: ignore[arg-type]
        x, y, n = drawn.inputs.float().numpy(), drawn.targets.float().numpy(), self.examples
        return dataset_of(x[:n], y[:n], x[n:], y[n:], where="planted")
