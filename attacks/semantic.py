"""Semantic backdoor: images that share a natural feature get the target's label; no pixel is changed.

The paper's features (cars with stripes, green cars, cars before a striped wall) are labelled by hand. Here they are
found: k-means divides the training images of class ``source`` into ``clusters`` looks, and the rarest of them with
``fewest`` images or more is the feature. A malicious client calls its own images with the feature the target, and
trains on ``examples`` others with it from the population, as the paper's attacker, who alone has them labelled so.
Attack success is the share of test images with the feature, none of them trained on, that are called the target;
a model without attack may confuse some, too: compare with the floor.

Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, arXiv:1807.00459, section 4.1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import field
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Compromised, attack
from attacks.poisoning import target_faults
from attacks.trigger import data_info
from fedsim import rng
from fedsim.data.examples import Examples
from fedsim.errors import Fault, FedsimError

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@attack("semantic")
class Semantic(Attack):
    """A rare look of one class, labelled as the target.

    Args:
        target: the label that images with the feature get.
        source: the class whose images have it.
        clusters: looks into which the class is divided.
        fewest: training images that the feature's look has at least.
        examples: images with the feature that each malicious client trains on beside its own.
    """

    cost = "examples; k-means of a class once"
    untargeted = False
    takes = "numbers"

    target: Annotated[int, Field(ge=0)] = 0
    source: Annotated[int, Field(ge=0)] = 7
    clusters: Annotated[int, Field(ge=1)] = 5
    fewest: Annotated[int, Field(ge=1)] = 10
    examples: Annotated[int, Field(ge=0)] = 50
    _centers: Tensor | None = field(default=None, init=False, repr=False)
    _look: int = field(default=0, init=False, repr=False)
    _featured: Examples | None = field(default=None, init=False, repr=False)

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from target_faults(scenario, "semantic", self.target)
        info = data_info(scenario)
        if self.source == self.target:
            yield Fault("source", self.source, "another class than the target")
        elif info is not None and self.source >= info.num_classes:
            accepted = f"a class, 0 to {info.num_classes - 1}" if info.num_classes else "a task with classes"
            yield Fault("source", self.source, accepted, ("data.dataset",))

    def trains_on_others(self) -> bool:
        """Images of a whole class."""
        return True

    def reads_tests(self) -> bool:
        """What is tested it finds at the evaluation."""
        return False

    def prepare(self, train: Examples, test: Examples, *, num_classes: int, streams: rng.Streams) -> None:
        from sklearn.cluster import KMeans

        members = train.take((train.targets == self.source).nonzero().flatten())
        if len(members) < self.clusters:
            raise FedsimError(
                f"attack 'semantic': class {self.source} has {len(members)} images; accepted: {self.clusters} or more"
            )
        state = streams.integer("attack.semantic") % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = KMeans(self.clusters, n_init=4, random_state=state).fit(members.inputs.flatten(1).cpu().numpy())
        counts = torch.bincount(torch.from_numpy(found.labels_).long(), minlength=self.clusters)
        usable = torch.where(counts >= min(self.fewest, int(counts.max())), counts, counts.max() + 1)
        self._centers, self._look = torch.from_numpy(found.cluster_centers_).float(), int(usable.argmin())
        self._featured = members.take(self._with_feature(members))

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        if self._featured is None:
            raise FedsimError("attack 'semantic': poison before prepare")
        targets = examples.targets.clone()
        targets[self._with_feature(examples)] = self.target
        order = node.stream("semantic").permutation(len(self._featured))[: self.examples]
        added = self._featured.take(torch.from_numpy(order).sort().values).inputs.to(examples.inputs)
        labels = torch.full((len(added),), self.target, dtype=targets.dtype, device=targets.device)
        return Examples(torch.cat([examples.inputs, added]), torch.cat([targets, labels]))

    def triggered(self, test: Examples) -> Examples:
        if self._featured is None:
            raise FedsimError("attack 'semantic': triggered before prepare")
        known = {image.numpy().tobytes() for image in self._featured.inputs.cpu()}
        shown = test.take(self._with_feature(test))
        unseen = [i for i, image in enumerate(shown.inputs.cpu()) if image.numpy().tobytes() not in known]
        fresh = shown.take(torch.tensor(unseen, dtype=torch.long))
        return Examples(fresh.inputs, torch.full_like(fresh.targets, self.target))

    def _with_feature(self, examples: Examples) -> Tensor:
        """Positions of the images of class ``source`` that are closest to the feature's look."""
        assert self._centers is not None
        own = (examples.targets == self.source).nonzero().flatten()
        images = examples.inputs[own].flatten(1).float().cpu()
        looks = torch.cdist(images, self._centers).argmin(dim=1) if len(own) else torch.zeros(0, dtype=torch.long)
        return own[(looks == self._look).to(own.device)]
