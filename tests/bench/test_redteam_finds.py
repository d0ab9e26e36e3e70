"""The red team finds what is known to break a defense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsim.bench.redteam import redteam

pytest.importorskip("optuna")
pytestmark = pytest.mark.slow

KRUM = """
rounds = 30
[data]
partition = { name = "dirichlet", alpha = 100.0 }
clients = 40
[model]
name = "mlp"
hidden = [32]
[client]
per_round = 10
epochs = 1
optimizer = { name = "sgd", lr = 0.05, momentum = 0.9 }
[adversary]
fraction = 0.2
knowledge = "omniscient"
attacks = [{ name = "sign_flip" }]
[evaluate]
every = 5
[server]
defenses = [{ name = "krum", malicious = 2 }]
"""


def test_krum_falls_to_small_steps_backwards(tmp_path: Path) -> None:
    """Xie et al., "Fall of Empires", UAI 2019: Krum keeps -ε·mean for small ε, which stands nearest to all."""
    file = tmp_path / "krum.toml"
    file.write_text(KRUM)
    (verdict,) = redteam(file, [], 24, tmp_path / "out", tune=1, report=3, say=lambda text: None)
    (worst,) = (part for part in verdict.adaptive.attempt.attacks if part["name"] != "label_flip")
    assert worst["name"] in ("ipm", "sign_flip")
    assert worst.get("epsilon", worst.get("scale")) < 0.5
    assert sum(verdict.adaptive.lost) / 3 > 0.15
    assert verdict.gain.mean > 0
    assert json.loads((tmp_path / "out" / "redteam.json").read_text())["defenses"][0]["gain"][1] > 0
