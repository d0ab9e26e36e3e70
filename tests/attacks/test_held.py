"""Under ``own`` no hook sees, or remembers, what another of the adversary's clients holds."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from torch import Tensor

from attacks.adversary import Adversary
from attacks.attack import Attack, Compromised, LocalStep
from attacks.held import Held
from attacks.pgd import PGD
from fedsim import registry
from fedsim.client.app import FederatedClient
from fedsim.client.node import Node
from fedsim.data.examples import Examples
from fedsim.errors import FedsimError, ScenarioError
from fedsim.scenario import Scenario
from fedsim.testing import attacks as suite
from fedsim.testing.federation import deltas, initial, workload

SIZES = (10, 7, 0, 1, 12, 8, 3, 16)
MALICIOUS = [4, 7, 1]
PATHS = ["reference", "stacked", "vmap"]


class MeanOfAll(Attack):
    """Sets every client that it is shown to their mean."""

    def after_step(self, parameters: Tensor, step: LocalStep) -> None:
        assert len(step.clients) == len(step.last) == len(parameters)
        parameters[:] = parameters.mean(0)


class RemembersSteps(Attack):
    """Goes on from the parameters that it was shown last, whose ever they were."""

    kept: Tensor | None = None

    def after_step(self, parameters: Tensor, step: LocalStep) -> None:
        if self.kept is not None and step.step > 1:
            parameters[:] = (parameters + self.kept[-1]) / 2
        self.kept = parameters.clone()


class PulledTogether(Attack):
    """Minimises the distance between all clients that it is shown, too."""

    def objective(self, loss: Tensor, parameters: Tensor, step: LocalStep) -> Tensor:
        assert len(step.clients) == len(step.last) == len(parameters)
        return loss + (parameters - parameters.mean(0)).square().sum(1)


class FirstExamples(Attack):
    """Trains all clients on what the first one held."""

    kept: Examples | None = None

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        if self.kept is None:
            self.kept = examples
        return self.kept


class Tells(Attack):
    """Hands one client's examples to all."""

    def learn(self, examples: Examples, node: Compromised) -> dict[str, Tensor]:
        return {"tells.inputs": examples.inputs}


class Locked(Attack):
    """Cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def craft(self, rows: Tensor, ctx: Any) -> Tensor:
        return -rows


def trained(path: str, *parts: Attack, knowledge: str, malicious: Any = (), **options: Any) -> Tensor:
    load = workload(SIZES, path=path, precision="float64", **options)
    app = FederatedClient(load, parts, knowledge=knowledge)
    return deltas(app, initial(load), range(len(SIZES)), malicious=malicious)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("part", [MeanOfAll, PulledTogether, FirstExamples])
def test_own_hooks_are_given_one_client_at_a_time(path: str, part: type[Attack]) -> None:
    honest = trained(path, knowledge="own")
    alone = trained(path, part(), knowledge="own", malicious=MALICIOUS)
    torch.testing.assert_close(alone, honest, rtol=1e-9, atol=1e-12)
    if path != "reference" or part is FirstExamples:
        together = trained(path, part(), knowledge="colluding", malicious=MALICIOUS)
        assert not torch.allclose(together, honest, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_what_after_step_remembers_is_its_clients(path: str) -> None:
    found = trained(path, RemembersSteps(), knowledge="own", malicious=MALICIOUS)
    for client in MALICIOUS:
        single = trained(path, RemembersSteps(), knowledge="own", malicious=[client])
        torch.testing.assert_close(found[client], single[client], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", ["reference", "vmap"])
def test_an_objective_that_an_optimizer_searches_is_its_clients(path: str) -> None:
    options = {"optimizer": registry.make("optimizer", "gns", curvature="zero", gamma=0.1), "proximal": 0.1}
    honest = trained(path, knowledge="own", **options)
    alone = trained(path, PulledTogether(), knowledge="own", malicious=MALICIOUS, **options)
    torch.testing.assert_close(alone, honest, rtol=1e-6, atol=1e-6)


def test_what_a_handler_sees_of_a_clients_examples_is_its_clients() -> None:
    load = workload(SIZES)
    app = FederatedClient(load, [FirstExamples()], knowledge="own")
    who = [Compromised(client, rank, 3, 1, 0, 10) for rank, client in enumerate(MALICIOUS)]
    nodes = [Node(app, each.client, 1, initial(load), RecordDict(), each) for each in who]
    for node in nodes:
        assert torch.equal(node.examples().inputs, node.clean().inputs)


def test_what_one_client_learns_is_not_handed_to_all_under_own() -> None:
    said = r"knowledge: given 'own'; accepted: 'colluding', which the attack 'Tells' \(adversary\.attacks\[0\]\) needs"
    with pytest.raises(ScenarioError, match=said):
        Adversary([Tells()], 20, count=3, knowledge="own")
    Adversary([Tells()], 20, count=3, knowledge="colluding")
    named = {"count": 3, "attacks": [f"{__name__}:Tells"], "knowledge": "own"}
    with pytest.raises(ScenarioError, match=r"adversary\.knowledge: given 'own'; accepted: 'colluding'"):
        Scenario(adversary=named)
    with pytest.raises(AssertionError, match="it has learn; the class says knowledge = 'own'"):
        suite.learns_for_all(Tells)


def test_the_suite_finds_a_poison_that_remembers_another_client() -> None:
    with pytest.raises(AssertionError, match="another attacker's examples changed"):
        suite.keeps_to_its_knowledge(FirstExamples)


def test_an_attack_that_cannot_be_copied_is_named() -> None:
    said = r"the attack 'Locked' \(adversary\.attacks\[1\]\).*cannot pickle.*accepted: what copy\.deepcopy copies"
    with pytest.raises(FedsimError, match=said):
        Adversary([MeanOfAll(), Locked()], 20, count=3, knowledge="own")
    Adversary([MeanOfAll(), Locked()], 20, count=3, knowledge="colluding")


@pytest.mark.parametrize("name", registry.names("attack"))
def test_fedsims_own_attacks_keep_nothing_of_what_they_are_shown(name: str) -> None:
    """So all clients may share them."""
    part = suite.prepared(lambda: registry.make("attack", name))
    before = pickle.dumps(part)
    rows, honest = suite.federation()
    suite.play(part, rows, honest)
    train, test = suite.images()
    part.poison(train, suite.node())
    part.after_step(torch.ones(2, suite.DIMENSION), suite.local_step(2))
    part.objective(torch.ones(2), torch.ones(2, suite.DIMENSION, requires_grad=True), suite.local_step(2))
    part.shown(test, part.learn(train, suite.node()))
    assert pickle.dumps(part) == before


def test_who_derives_from_an_attack_of_fedsims_has_no_share_in_it() -> None:
    class Mine(PGD):
        pass

    pgd: Any = registry.make("attack", "pgd")
    assert Held([pgd, Mine(), MeanOfAll()], "own").apart == (False, True, True)
    assert Held([pgd, Mine(), MeanOfAll()], "omniscient").apart == (False, False, False)
