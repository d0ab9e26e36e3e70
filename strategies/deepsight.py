"""DeepSight: clients are clustered by what their output layers learnt, and clusters of suspects are dropped.

From a client's update of the output layer (bias b_c, weights W_c of class c):

    energy of class c:   e_c = |Δb_c| + Σ_h |ΔW_ch|,   NEUP_c = e_c² / Σ_c e_c²
    threshold exceedings: how many classes have NEUP_c > max(0.01, 1/C) · max_c NEUP_c

Clients with at most half of the median number of exceedings are suspects (few classes in the data, as a poisoned set
has). Three clusterings by HDBSCAN, of the cosines of the output biases' updates, of the NEUPs, and of the DDifs (what
the model answers on random inputs, divided by the received model's answer), are averaged into a distance, 0 where two
clients share a cluster and 1 where not, which HDBSCAN clusters once more. A cluster stays with fewer than a third of
suspects, an outlier if it is none; those that stay are clipped to the median norm of all and averaged, all alike. A
median of an even number is the lower of the middle two.

The DDifs need the model and the shape of its inputs, from root data or ``shape``; without them the other two
clusterings decide. Without a layout every parameter counts as a class.

Rieger, Nguyen, Miettinen & Sadeghi, "DeepSight: Mitigating Backdoor Attacks in Federated Learning Through Deep Model
Inspection", NDSS 2022, arXiv 2201.00763.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsim.blocks import exact
from fedsim.data.partition import known_info
from fedsim.errors import Fault, FedsimError, UpdatesError
from fedsim.updates import Aggregate, Selection, Updates
from strategies.clusters import density
from strategies.defense import Defense, Round, defense, require
from strategies.foolsgold import angles
from strategies.norm_bound import shortened
from strategies.output_layer import output_classes, output_columns, output_weight

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

FEWEST = 3
SUSPECTS = 1 / 3


@defense("deepsight")
class DeepSight(Defense):
    """Clusters of clients with suspicious output layers are dropped.

    Args:
        samples: random inputs for the DDifs of each of ``seeds`` draws.
        seeds: draws of random inputs.
        shape: shape of an input, e.g. [1, 8, 8], where the server holds no root data to read it from.
    """

    cost = "n·d + n²; n forward passes on random inputs"
    sees = "updates, their layout; the model and an input's shape for the DDifs"
    takes = "numbers"

    samples: Annotated[int, Field(ge=1)] = 1000
    seeds: Annotated[int, Field(ge=1)] = 3
    shape: list[int] | None = None

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        n = scenario.cohort
        if n < FEWEST:
            yield Fault("name", "deepsight", f"at least {FEWEST} clients a round, here {n}", ("client.per_round",))
        info = known_info(scenario)
        if info is not None and self.shape is not None and self.shape != list(info.shape):
            accepted = f"{list(info.shape)}, the shape of the data set's inputs"
            yield Fault("shape", self.shape, accepted, ("data.dataset",))

    def fit(self, num_classes: int) -> None:
        if num_classes < 2:
            accepted = "none for targets that are numbers: it compares what the outputs of classes learnt"
            raise FedsimError(f"server.defenses: given 'deepsight'; accepted: {accepted}")

    def select(self, updates: Updates, ctx: Round) -> Selection:
        n = len(updates)
        require(n >= FEWEST, "deepsight", f"{n} clients", f"at least {FEWEST}")
        shares = energy_shares(updates)
        limit = max(0.01, 1 / shares.shape[1]) * shares.amax(dim=1, keepdim=True)
        exceedings = (shares > limit).double().sum(dim=1)
        suspects = exceedings <= exceedings.median() / 2
        biases = exact(updates.values[:, _biases(updates)]).cpu()
        apart = [_apart(density(angles(biases), updates, 2))]
        apart.append(_apart(density(torch.cdist(shares, shares), updates, 2)))
        answers = self._differences(updates, ctx)
        if answers:
            apart.append(torch.stack([_apart(density(torch.cdist(a, a), updates, 2)) for a in answers]).mean(dim=0))
        labels = density(torch.stack(apart).mean(dim=0), updates, 2)
        kept = ~suspects & (labels < 0)
        for label in labels[labels >= 0].unique().tolist():  # type: ignore[no-untyped-call]
            members = labels == label
            if float(suspects[members].double().mean()) < SUSPECTS:
                kept |= members
        ctx.state["clip"] = float(updates.norms.median())
        return Selection.equal(kept.nonzero().flatten(), updates, -exceedings)

    def combine(self, updates: Updates, ctx: Round) -> Aggregate:
        return super().combine(shortened(updates, max(float(ctx.state["clip"]), 1e-300)), ctx)

    def _differences(self, updates: Updates, ctx: Round) -> list[Tensor]:
        """For each draw of inputs, (n, classes) mean ratio of a client's answers to the received model's."""
        shape = self.shape if ctx.root is None else list(ctx.root.inputs.shape[1:])
        if ctx.predict is None or shape is None:
            return []
        found = []
        for seed in range(self.seeds):
            inputs = torch.rand((self.samples, *shape), generator=ctx.torch_stream(f"inputs.{seed}"))
            try:
                before = exact(ctx.predict(updates.reference, inputs)).softmax(1).clamp(min=1e-12)
            except RuntimeError as error:
                text = f"deepsight: given inputs of shape {shape}; accepted: those that the model takes"
                raise UpdatesError(text) from error
            ratios = []
            for row in updates.values:
                after = exact(ctx.predict(updates.reference + row, inputs)).nan_to_num().softmax(1)
                ratios.append((after / before).mean(dim=0).cpu())
            found.append(torch.stack(ratios))
        return found


def energy_shares(updates: Updates) -> Tensor:
    """(n, C) NEUPs: each class's share of the squared energies of the output layer's update."""
    weight, classes = output_weight(updates), output_classes(updates)
    energy = exact(updates.values[:, _biases(updates)]).abs().cpu()
    if classes:
        size = exact(updates.values[:, weight]).abs().cpu().reshape(len(updates), classes, -1).sum(dim=2)
        energy = size + energy if _biases(updates) != weight else size
    energy = energy / energy.amax(dim=1, keepdim=True).clamp(min=1e-300)
    squares = energy.square()
    return squares / squares.sum(dim=1, keepdim=True).clamp(min=1e-300)


def _biases(updates: Updates) -> slice:
    """Columns of the output layer's bias; its weight's where it has none, all where the layout is not known."""
    layer, weight, classes = output_columns(updates), output_weight(updates), output_classes(updates)
    if not classes:
        return layer
    return slice(weight.stop, layer.stop) if layer.stop - weight.stop == classes else weight


def _apart(labels: Tensor) -> Tensor:
    """(n, n) 0 where two clients are in one cluster, else 1; an outlier is alone."""
    together = (labels[:, None] == labels[None, :]) & (labels >= 0)[:, None]
    return (~(together | torch.eye(len(labels), dtype=torch.bool))).double()
