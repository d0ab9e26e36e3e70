"""One digest for every engine, worker count and interruption; one stream for each (seed, round, node, purpose)."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import rng
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from tests.simulation.test_runs import small


def small_net() -> torch.nn.Module:
    from torch import nn

    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))


EVERYTHING: dict[str, Any] = {
    "client.dropout": 0.2,
    "client.straggler": 0.3,
    "client.augmentation": ["flip", {"name": "crop", "pad": 1}],
    "client.lr_schedule": {"name": "exponential", "gamma": 0.9},
    "client.proximal": 0.1,
    "data.holdout": 0.2,
    "data.partition": {"name": "feature_shift", "shift": "noise"},
}
CASES: dict[str, dict[str, Any]] = {
    "mlp": {},
    "everything": {**EVERYTHING, "server": {"optimizer": {"name": "adam", "lr": 0.01}, "sampler": "by_size"}},
    "buffers": {"model": {"name": f"{__file__}:small_net"}, "server": {"defenses": ["multi_metrics", "median"]}},
    "second order": {
        "model": {"name": "logistic"},
        "client.optimizer": {"name": "gns"},
        "client.optimizer_state": "persist",
        "client.straggler": 0.3,
    },
    "vmap": {"engine.path": "vmap", "server": {"defenses": ["nnm", {"name": "centered_clipping"}]}},
    "reference": {
        "engine.path": "reference",
        "adversary": {"count": 3, "attacks": [{"name": "badnets", "target": 0}, {"name": "pgd", "epsilon": 0.5}]},
    },
    "omniscient": {
        "adversary": {"count": 3, "knowledge": "omniscient", "attacks": [{"name": "min_max"}, {"name": "gaussian"}]}
    },
    "guest": {"server": {"defenses": ["flwr:FedAdam"]}, "evaluate": {}},
}


def case(name: str, **changes: Any) -> Scenario:
    return small(**{"rounds": 3, **CASES[name], **changes})


def interrupted(scenario: Scenario, folder: Path) -> str:
    class Stop(Exception):
        pass

    def stop(line: dict[str, Any]) -> None:
        if line["round"] == 1:
            raise Stop

    with pytest.raises(Stop):
        simulate(scenario, folder, progress=stop)
    return simulate(scenario, folder, resume=True).digest


@pytest.mark.parametrize("name", CASES)
def test_workers_and_interruptions_change_no_bit(name: str, tmp_path: Path) -> None:
    digests = [simulate(case(name, **{"engine.workers": workers})).digest for workers in (1, 2, 3)]
    assert len({*digests, interrupted(case(name), tmp_path)}) == 1
    assert simulate(case(name, seed=1)).digest not in digests


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="fedsim-test-ray-", dir="/tmp")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=folder)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ray_gives_the_bits_of_threads(name: str, cluster: None, tmp_path: Path) -> None:
    expected = simulate(case(name)).digest
    for workers in (1, 2):
        engine = {"engine.name": "ray", "engine.workers": workers}
        assert simulate(case(name, **engine)).digest == expected
    assert interrupted(case(name, **{"engine.name": "ray", "engine.workers": 2}), tmp_path) == expected


KEPT_OVER_ROUNDS = ("partition", "model.init", "data.", "adversary.", "attack.", "client.holdout", "evaluate.", "view")
"""Purposes whose numbers are one draw for the whole run, however often it is asked for."""


@pytest.mark.parametrize("name", ["everything", "reference", "omniscient"])
def test_every_use_has_a_stream_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[tuple[Any, ...]] = Counter()
    seeds: dict[tuple[int, ...], tuple[Any, ...]] = {}
    true = rng.stream

    def noted(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> np.random.Generator:
        asked[(seed, purpose, round, client)] += 1
        generator = true(seed, purpose, round=round, client=client)
        first = tuple(int(x) for x in true(seed, purpose, round=round, client=client).integers(0, 2**62, 2))
        assert seeds.setdefault(first, (seed, purpose, round, client)) == (seed, purpose, round, client)
        return generator

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith(("fedsim", "strategies", "attacks")):
            for attribute, value in list(vars(module).items()):
                if value is true:
                    monkeypatch.setattr(module, attribute, noted)
    result = simulate(case(name, **{"engine.workers": 1}))
    twice = {key for key, count in asked.items() if count > 1 and not key[1].startswith(KEPT_OVER_ROUNDS)}
    assert not twice
    orders = {key for key in asked if key[1].startswith("client.") and key[2] > 0}
    cohorts = {(line["round"], client) for line in result.lines for client in line["cohort"]}
    assert {(key[2], key[3]) for key in orders} <= cohorts | {(r, c) for r in range(4) for c in range(12)}
    assert len({key[2:] for key in orders}) > 3
