"""Edge-case backdoor: inputs of the tail of the distribution, labelled as the target.

A malicious client trains on ``clean`` clean examples and on ``examples`` images of the tail, which carry the
target's label. The clean ones are drawn from the whole training set, as in the authors' code (the attacker has data
of the population, so that its update points where the others do), or are the client's own. Attack success is the
share of up to ``test`` other images of the tail, none of them trained on, that are called the target; no pixel of any
image is changed. The tail is

- ``foreign``: one class of another data set, resized to the images' shape (scikit-learn's or MNIST's sevens for
  Fashion-MNIST; the 100, 400 and 500 images of the paper's set-up);
- ``lowest_density``: the members of one class of the data set itself with the largest mean distance to their ten
  nearest neighbours in the class; those to train on are training examples, those to test on are test examples.

A model that never saw the attack may call some of these images the target as well: compare with the run's floor.

Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020, arXiv:2007.05084.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Compromised, attack
from attacks.poisoning import target_faults
from attacks.trigger import data_info
from fedsim import registry, rng
from fedsim.data.examples import Examples
from fedsim.data.tail import foreign_tail, lowest_density
from fedsim.errors import Fault, FedsimError

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

DRAWS = 10
"""The population's clean examples are drawn from a pool of so many times ``clean``, kept in memory."""


@attack("edge_case")
class EdgeCase(Attack):
    """Images of the tail, labelled as the target.

    Args:
        target: the label that images of the tail get.
        mode: the ``foreign`` tail, or the ``lowest_density`` members of a class of the data set itself.
        dataset: where the foreign tail comes from: a data set by name or as a table, or a .npz file.
        source: the class whose images are the tail.
        examples: images of the tail that each malicious client trains on.
        clean: clean examples that it trains on beside them.
        clean_from: where these are drawn from: the ``population`` (the whole training set), or its ``own`` examples.
        test: at most so many other images of the tail are tested.
    """

    cost = "added examples"
    untargeted = False

    target: Annotated[int, Field(ge=0)] = 0
    mode: Literal["foreign", "lowest_density"] = "foreign"
    dataset: str | dict[str, Any] = "digits"
    source: Annotated[int, Field(ge=0)] = 7
    examples: Annotated[int, Field(ge=1)] = 100
    clean: Annotated[int, Field(ge=0)] = 400
    clean_from: Literal["population", "own"] = "population"
    test: Annotated[int, Field(ge=1)] = 500
    _population: Examples | None = field(default=None, init=False, repr=False)
    _trained: Examples | None = field(default=None, init=False, repr=False)
    _tested: Examples | None = field(default=None, init=False, repr=False)

    def trains_on_others(self) -> bool:
        """Clean images of the whole population, or its tail."""
        return self.clean_from == "population" or self.mode == "lowest_density"

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from target_faults(scenario, "edge_case", self.target)
        info = data_info(scenario)
        if info is not None and len(info.shape) != 3:
            yield Fault("name", "edge_case", f"images (C, H, W) with it; inputs are {info.shape}", ("data.dataset",))
        if self.mode == "lowest_density":
            if self.source == self.target:
                yield Fault("source", self.source, "another class than the target")
            if info is not None and self.source >= info.num_classes:
                yield Fault("source", self.source, f"a class, 0 to {info.num_classes - 1}", ("data.dataset",))
            return
        name, options = self.table()
        _, faults = registry.check_options("dataset", name, options, "dataset")
        yield from faults
        own = scenario.data.dataset
        if name == own.name and options == {key: own.options.get(key) for key in options}:
            yield Fault("dataset", self.dataset, "another data set than data.dataset, or mode = 'lowest_density'")

    def prepare(self, train: Examples, test: Examples, *, num_classes: int, streams: rng.Streams) -> None:
        if self.mode == "foreign":
            name, options = self.table()
            tail = foreign_tail(
                name, self.source, tuple(train.inputs.shape[1:]), streams, train=self.examples, options=options
            )
            chosen, others = tail.train.inputs, tail.test.inputs
        else:
            chosen = train.take(lowest_density(train, self.source, self.examples)).inputs
            members = int((test.targets == self.source).sum())
            others = test.take(lowest_density(test, self.source, min(self.test, members))).inputs
        others = others[~_among(others, chosen)][: self.test]
        if len(others) == 0:
            raise FedsimError(f"attack 'edge_case': no image of class {self.source} is left to test on")
        drawn = streams.stream("attack.edge_case.population").permutation(len(train))[: self.clean * DRAWS]
        self._population = train.take(np.sort(drawn))
        self._trained, self._tested = _labelled(chosen, self.target), _labelled(others, self.target)

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        if self._trained is None or self._population is None:
            raise FedsimError("attack 'edge_case': poison before prepare")
        source = examples if self.clean_from == "own" else self._population
        chosen = node.stream("edge_case.clean").permutation(len(source))[: self.clean]
        kept = source.take(np.sort(chosen))
        kept = Examples(kept.inputs.to(examples.inputs), kept.targets.to(examples.targets))
        return Examples(
            torch.cat([kept.inputs, self._trained.inputs.to(kept.inputs)]),
            torch.cat([kept.targets, self._trained.targets.to(kept.targets)]),
        )

    def triggered(self, test: Examples) -> Examples:
        if self._tested is None:
            raise FedsimError("attack 'edge_case': triggered before prepare")
        return Examples(self._tested.inputs.to(test.inputs), self._tested.targets.to(test.targets))

    def table(self) -> tuple[str, dict[str, Any]]:
        """Registry name and options of the foreign data set."""
        if isinstance(self.dataset, str):
            return ("npz", {"path": self.dataset}) if self.dataset.endswith(".npz") else (self.dataset, {})
        options = dict(self.dataset)
        return str(options.pop("name", "digits")), options

    def fingerprints(self) -> dict[str, str]:
        """What the run's key depends on beside the scenario: the foreign data set's bytes."""
        if self.mode == "lowest_density":
            return {}
        name, options = self.table()
        return {f"dataset {name}": registry.make("dataset", name, **options).load().fingerprint}


def _labelled(inputs: Tensor, target: int) -> Examples:
    return Examples(inputs, torch.full((len(inputs),), target, dtype=torch.int64))


def _among(images: Tensor, others: Tensor) -> Tensor:
    """(n,) whether each image is pixel by pixel one of the others."""
    known = {image.numpy().tobytes() for image in others.cpu()}
    return torch.tensor([image.numpy().tobytes() in known for image in images.cpu()], dtype=torch.bool)
