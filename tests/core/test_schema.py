"""The JSON Schema takes what fedsim takes, and refuses unknown keys."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from fedsim import registry
from fedsim.scenario import Scenario, json_schema

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", registry.shipped_scenarios())
def test_shipped_scenarios_are_valid(validator: Any, name: str) -> None:
    validator.validate(tomllib.loads(registry.shipped_scenarios()[name].read_text("utf-8")))


def test_resolved_scenarios_are_valid(validator: Any) -> None:
    validator.validate(tomllib.loads(Scenario().toml()))
    validator.validate(tomllib.loads(Scenario.load("quickstart").toml()))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model = 'mlp'\nengine = 'local'",
        "[server]\ndefenses = ['flwr:FedMedian']",
        "[server]\ndefenses = [{ name = 'flwr:FedTrimmedAvg', beta = 0.2 }]",
        "[adversary]\ncount = 1\nattacks = [{ name = 'my.py:Mine', strength = 3 }]",
        "[client.optimizer]\nlr = 0.1",
        "[client.optimizer]\nname = 'adam'\nbetas = [0.9, 0.99]",
        "[client]\nper_round = 0.5",
        "[model]\nhidden = [8]",
        "[matrix]\nseed = [0, 1]\nserver.limit = [1.0]\n'server.defenses' = [['krum']]",
    ],
)
def test_what_fedsim_takes_is_valid(validator: Any, text: str) -> None:
    validator.validate(tomllib.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        "roundz = 3",
        "rounds = 0",
        "rounds = 'x'",
        "server = 3",
        "[server]\nlimits = 1",
        "[server]\ndefenses = []",
        "[server]\ndefenses = 'krum'",
        "[server]\ndefenses = ['krumm']",
        "[server]\ndefenses = [{ malicious = 1 }]",
        "[server]\ndefenses = [{ name = 'krum', malicius = 1 }]",
        "[server]\ndefenses = [{ name = 'krum', malicious = -1 }]",
        "[data]\ndataset = 'idx'\nclients = 0",
        "[data]\ndataset = { name = 'idx' }",
        "[model]\nhiden = [3]",
        "[model]\nname = 'mlp'\nhidden = ['a']",
        "model = 'mpl'",
        "[engine]\nname = 'local'\ndevise = 'cpu'",
        "[engine]\nprecision = 'float16'",
        "[client.optimizer]\nmomentun = 0.1",
        "[client.optimizer]\nname = 'adam'\nbetas = [0.9, 2]",
        "[client]\nper_round = 1.5",
        "[matrix]\nseed = 3",
        "[matrix]\nseed = []",
    ],
)
def test_what_fedsim_refuses_is_invalid(validator: Any, text: str) -> None:
    assert not validator.is_valid(tomllib.loads(text))


def test_every_option_is_described_and_every_name_offered() -> None:
    text = json.dumps(json_schema(), ensure_ascii=False)
    for kind in ("attack", "defense", "model", "optimizer", "dataset", "partition", "sampler", "engine"):
        for name, part in registry.iterate(kind):
            assert f'"{name}"' in text
            for option in registry.options(part):
                assert json.dumps(option.meaning, ensure_ascii=False) in text
