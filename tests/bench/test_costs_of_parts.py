"""Every part of the papers has a measured cost: an entry in benchmarks/parts.py and its row in BENCHMARKS.md."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from fedsim import registry
from fedsim.losses.harmonic import Distance
from fedsim.scenario import Scenario
from tests.grids.test_papers_on_every_grid import OTHERS

PROJECT = Path(__file__).parents[2]
FILE = PROJECT / "benchmarks" / "parts.py"
KEYS = {
    "optimizer": "client.optimizer",
    "step_control": "client.step_control",
    "regularizer": "client.regularizers",
    "adapter": "client.adapter",
    "loss": "client.loss",
    "analysis": "server.analysis",
    "estimator": "server.estimator",
    "defense": "server.defenses",
    "server_optimizer": "server.optimizer",
}
ELSEWHERE = {"defense": {"multi_metrics"}}
"""Measured on its own, in benchmarks/server.py."""
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="needs benchmarks/ (not in an installed fedsim)")


@pytest.fixture(scope="module")
def parts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_parts", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pairs(parts: ModuleType) -> list[tuple[Scenario, Scenario]]:
    """(with it, without it) of every entry."""
    scenario = parts.scenario
    return [(scenario(tables, part), scenario(tables, without)) for tables, without, part in parts.PARTS.values()]


def named(scenario: Scenario, kind: str) -> dict[str, Any]:
    """The parts of a kind that a scenario has, by name."""
    section, field = KEYS[kind].split(".")
    found = getattr(getattr(scenario, section), field)
    listed = found if isinstance(found, list) else [found] if found is not None else []
    return {part.name: part.options for part in listed}


@pytest.mark.parametrize("kind", KEYS)
def test_every_part_of_a_paper_has_an_entry_that_adds_it(kind: str, pairs: list[tuple[Scenario, Scenario]]) -> None:
    added = {name for part, without in pairs for name in named(part, kind).keys() - named(without, kind).keys()}
    ours = ("fedsim.", "strategies.")  # other tests register parts of their own
    known = {name for name, part in registry.iterate(kind) if part.__module__.startswith(ours)}
    assert known - OTHERS.get(kind, set()) - ELSEWHERE.get(kind, set()) <= added


def test_every_distance_of_the_harmonic_loss_has_an_entry(pairs: list[tuple[Scenario, Scenario]]) -> None:
    heads = [named(part, "loss").get("harmonic") for part, _ in pairs]
    assert {head.get("distance", "euclidean") for head in heads if head is not None} == set(get_args(Distance))


def test_every_entry_has_its_row(parts: ModuleType) -> None:
    lines = parts.between(PROJECT / "BENCHMARKS.md").splitlines()
    rows = {line.split("|")[1].strip() for line in lines if line.startswith("| ") and line != parts.HEAD}
    assert rows == set(parts.PARTS)
