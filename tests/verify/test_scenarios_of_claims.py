"""A paper's scenario and the claim that builds one like it in Python are the same, but for keys named here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from fedsim.scenario import Scenario, cells, read
from fedsim.verify import in_a_federation
from fedsim.verify.claim import claims_of
from fedsim.verify.runner import load

PAID = {"title", "engine.workers", "evaluate.every"}
"""What changes no bit of a model."""


class Pair(NamedTuple):
    """A file and the claims whose rows are about its cells.

    Args:
        module: of ``fedsim.verify``.
        claims: functions of a seed.
        differ: keys in which a cell is not its claim's scenario.
        more: whether the claims run further scenarios, of no cell.
        where: module whose ``simulate`` they call.
    """

    module: str
    claims: tuple[str, ...]
    differ: frozenset[str] = frozenset()
    more: bool = False
    where: str = ""


PAIRS = {
    "cmnist": Pair("cmnist", tuple(f"cmnist_fedsgd_{name}" for name in ("erm", "hgp", "diagonal")), where="coloured"),
    "cmnist_fedavg": Pair(
        "cmnist", tuple(f"cmnist_fedavg_{name}" for name in ("erm", "hgp", "diagonal")), where="coloured"
    ),
    "diffgrad": Pair("fashion", ("fashion_federated",)),
    "langevin": Pair("langevin", ("networks",)),
    "sam_gs": Pair("sam_gs", ("label_skew",)),
    "softmax_radius": Pair("softmax_radius", ("server_cap",)),
    "harmonic": Pair("harmonic_training", ("label_skew",)),
    # To 1e-10 by the eighth round; beside it one client that holds everything, and the same without penalty.
    "gns": Pair("gns", ("federated",), frozenset({"rounds"}), more=True),
    # The file has the penalty of its method's; the claim goes on to a gradient that these do not reach.
    "gns_controls": Pair("gns", ("rounds",), frozenset({"rounds", "client.optimizer.weight_decay"}), more=True),
    # As many local steps in all: fewer rounds where a round has more.
    "generalization": Pair("generalization", ("course",), frozenset({"rounds"})),
}


class Line(dict[str, float]):
    """A round's line that has every number."""

    def __missing__(self, key: str) -> float:
        return 0.5

    def get(self, key: str, default: Any = None) -> Any:
        return self[key]


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from flat(each, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def differences(one: Scenario, other: Scenario) -> set[str]:
    """Keys in which two scenarios differ."""
    a, b = dict(flat(one.table())), dict(flat(other.table()))
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)} - PAID


def run_by(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> list[Scenario]:
    """What the claims simulate with seed 0."""
    found: list[Scenario] = []

    def simulate(scenario: Scenario) -> SimpleNamespace:
        found.append(scenario)
        lines = [Line() for _ in range(scenario.rounds + 1)]
        return SimpleNamespace(lines=lines, parameters={"weight": torch.zeros(1)})

    monkeypatch.setattr(f"fedsim.verify.{pair.where or pair.module}.simulate", simulate)
    for name in pair.claims:
        getattr(importlib.import_module(f"fedsim.verify.{pair.module}"), name)(0)
    return found


@pytest.mark.parametrize("file", PAIRS)
def test_a_papers_scenario_is_what_its_claim_runs(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = PAIRS[file]
    run = run_by(pair, monkeypatch)
    written = [cell for _, cell in cells(read(f"papers/{file}"), file) if cell.seed == 0]
    off = [[found for each in run if (found := differences(cell, each)) <= pair.differ] for cell in written]
    assert all(off), f"{[cell.table() for cell, found in zip(written, off, strict=True) if not found]}: no claim's"
    assert set().union(*(min(found, key=len) for found in off)) == pair.differ
    assert pair.more or all(any(differences(cell, each) <= pair.differ for cell in written) for each in run)


def test_an_average_that_points_away_from_an_odd_direction_is_no_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    overlaps = {"normalized_sgd": -0.97, "spherical_langevin": 0.95, "spherical_sgd": -0.2}

    def simulate(scenario: Scenario) -> SimpleNamespace:
        return SimpleNamespace(lines=[{"overlap": overlaps[scenario.client.optimizer.name]}])

    monkeypatch.setattr(in_a_federation, "simulate", simulate)
    assert in_a_federation.planted(0).values == {"average": -0.97, "langevin": 0.95, "last": 0.2}


def test_what_the_gap_adds_is_told_from_maps_with_it_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def simulate(scenario: Scenario) -> SimpleNamespace:
        options = getattr(scenario.client.adapter, "options", {})
        worst = 0.25 if options["steps"] == 1 else 0.5 * options["residual"] + 0.125 * options["gap_weight"]
        return SimpleNamespace(lines=[{"worst10": worst, "accuracy": 2 * worst}])

    monkeypatch.setattr(in_a_federation, "simulate", simulate)
    assert in_a_federation.personal_maps(0).values == {
        "identity": 0.5,
        "adapted": 0.75,
        "worst": 0.375,
        "gap": 0.125,
        "plain": -0.125,
        "plain_gap": 0.125,
        "plain_shared": 0.25,
    }


def test_every_regularizer_of_the_rotated_domains_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def simulate(scenario: Scenario) -> SimpleNamespace:
        ran.append(scenario.client.regularizers)
        return SimpleNamespace(lines=[{"accuracy": 0.5 + 0.125 * bool(ran[-1])}])

    monkeypatch.setattr(in_a_federation, "simulate", simulate)
    found = in_a_federation.rotated_domains(0).values
    load("hessian_alignment")
    rows = next(each.rows for each in claims_of("hessian_alignment") if each.key == "rotated_domains")
    assert found == {"erm": 0.5} | dict.fromkeys(list(rows)[1:], 0.125)
    assert len(ran) == len(rows) == 8
