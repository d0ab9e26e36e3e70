"""A personal adapter: each client maps its own inputs to where a reference sample lies, by the cheapest way.

The server holds a reference sample ν (its root data). A client learns T_k(x) = x + MLP_k(x) once, without labels, with
the Sinkhorn divergence to ν and λ times the Monge gap, keeps it, and trains and evaluates the shared model on T_k(x).
The map never leaves it. A plain network, T_k = MLP_k from a random start, is what the divergence alone (λ = 0) cannot
lead. Limits: comparable shares of the classes, and no rotation, which is no cheapest way.

Uscidda & Cuturi, "The Monge gap: a regularizer to learn all transport maps", ICML 2023, arXiv 2302.04953.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.errors import Fault
from fedsim.losses.monge_map import MongeMap, fit_monge_map
from fedsim.losses.monge_maps import Learner, fit_monge_maps
from fedsim.losses.sinkhorn import CostName
from fedsim.registry import register
from fedsim.scenario_privacy import claims

adapter = partial(register, "adapter")

Count = Annotated[int, Field(ge=1)]
Start = tuple[nn.Module, Tensor, Tensor, int]
"""What a client's fit is given: its map at the start, its inputs, the reference, the seed of its batches."""


@adapter("monge_gap")
class MongeAdapter:
    """Each client's own transport map from its inputs to the server's reference sample.

    Args:
        gap_weight: λ, weight of the Monge gap; 0 leaves it out.
        cost: of the transport.
        method: how the gap is computed.
        epsilon: of the Sinkhorn divergence and of an entropic gap; None: 0.05 · std of the costs.
        hidden: widths of the map's hidden layers.
        residual: T(x) = x + MLP(x), the identity at the start; without it T = MLP, from a random start.
        steps: of Adam.
        batch_size: points of either sample in a step.
        lr: first learning rate of Adam.
        sample: most examples of the server's root data that are sent.
    """

    takes: ClassVar[str] = "numbers"

    gap_weight: Annotated[float, Field(ge=0)] = 1.0
    cost: CostName = "squared_euclidean"
    method: Literal["exact", "entropic"] = "exact"
    epsilon: Annotated[float, Field(gt=0)] | None = None
    hidden: tuple[Count, ...] = (64, 64)
    residual: bool = True
    steps: Count = 400
    batch_size: Annotated[int, Field(ge=2, le=256)] = 128
    lr: Annotated[float, Field(gt=0)] = 0.01
    sample: Annotated[int, Field(ge=2)] = 1024

    def check(self, scenario: Any) -> Iterable[Fault]:
        """It needs a reference, a strategy that sends it, and clients that train."""
        name = self.name  # type: ignore[attr-defined]
        if scenario.data.root < 2:
            accepted = f"2 or more with client.adapter = '{name}', whose reference they are"
            yield Fault("/data.root", scenario.data.root, accepted, ("client.adapter",))
        if scenario.guest:
            accepted = f"none behind '{scenario.server.defenses[0].name}': a stock Flower strategy sends no reference"
            yield Fault("", name, accepted, ("server.defenses",))
        if claims(scenario) or scenario.client.optimizer.name == "dp_sgd":
            accepted = "none where privacy is claimed: every example of a client is in the map that moves the others"
            yield Fault("", name, accepted, ("privacy.epsilon", "privacy.noise", "client.optimizer"))

    def first(self, inputs: Tensor) -> nn.Module:
        """A map of (n, …) inputs at its start; its weights come from torch's global generator."""
        flat = inputs.flatten(1)
        return self._network(flat.shape[1]).to(flat)

    def _network(self, features: int) -> nn.Module:
        if self.residual:
            return MongeMap(features, self.hidden)
        widths = [features, *self.hidden]
        layers: list[nn.Module] = []
        for inward, outward in pairwise(widths):
            layers += [nn.Linear(inward, outward), nn.GELU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], features))

    def fit(self, model: nn.Module, inputs: Tensor, reference: Tensor, seed: int) -> dict[str, Tensor]:
        """A client's map, by the names of its parameters.

        Args:
            model: the map at its start.
            inputs: (n, …) of the client.
            reference: (m, …) of the server.
            seed: of the batches.
        """
        source, target = inputs.flatten(1), reference.flatten(1)
        size = min(self.batch_size, len(source), len(target))
        generator = torch.Generator().manual_seed(seed)
        fit_monge_map(model, source, target, batch_size=size, generator=generator, **self._options())
        return _learned(model)

    def fit_together(self, starts: Sequence[Start]) -> list[dict[str, Tensor]]:
        """The maps of many clients, each from what :meth:`fit` is given, to rounding as by it."""
        learners = [
            Learner(model, inputs.flatten(1), reference.flatten(1), torch.Generator().manual_seed(seed))
            for model, inputs, reference, seed in starts
        ]
        fit_monge_maps(learners, batch_size=self.batch_size, **self._options())
        return [_learned(each.model) for each in learners]

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("gap_weight", "cost", "method", "epsilon", "steps", "lr")}

    def apply(self, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """T(x), in the shape of x (n, …)."""
        flat = inputs.flatten(1)
        with torch.device("meta"):
            model = self._network(flat.shape[1])
        with torch.no_grad():
            mapped: Tensor = torch.func.functional_call(model, {k: v.to(flat) for k, v in state.items()}, (flat,))
        return mapped.view(inputs.shape)


def _learned(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.detach() for name, each in model.named_parameters()}
