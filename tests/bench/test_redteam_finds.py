"""The red team finds what is known to break a defense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fedsim
from fedsim import registry
from fedsim.bench.redteam import redteam
from fedsim.errors import DataMissing

pytest.importorskip("optuna")
pytestmark = pytest.mark.slow

KRUM_KILLERS = ["alie", "min_max"]


def mute(text: str) -> None:
    """Says nothing."""


def test_krum_falls_to_small_steps_backwards(tmp_path: Path) -> None:
    """Xie et al., "Fall of Empires", UAI 2019: Krum keeps -ε·mean for small ε, which stands nearest to all."""
    (verdict,) = redteam("redteam/krum", [], 24, tmp_path / "out", tune=1, report=3, say=mute)
    (worst,) = (part for part in verdict.adaptive.attempt.attacks if part["name"] != "label_flip")
    assert worst["name"] in ("ipm", "sign_flip")
    assert worst.get("epsilon", worst.get("scale")) < 0.5
    assert sum(verdict.adaptive.lost) / 3 > 0.15
    assert verdict.gain.mean > 0
    assert json.loads((tmp_path / "out" / "redteam.json").read_text())["defenses"][0]["gain"][1] > 0


def test_krum_falls_to_min_max_and_to_alie_with_a_z_of_its_own(tmp_path: Path) -> None:
    """ALIE's own z, which is made for a majority, harms Krum not; a larger one does, and min-max does as it is."""
    found = redteam(
        "papers/krum_little_steps", [], 8, tmp_path / "out", tune=1, report=2, attacks=KRUM_KILLERS, say=mute
    )
    (verdict,) = found
    losses = {scored.attempt.attacks[0]["name"]: scored.lost[0] for scored in verdict.statics}
    assert losses["alie"] < 0
    tuned = [scored.lost[0] for scored in verdict.trials if scored.attempt.attacks[0]["name"] == "alie"]
    assert max(tuned) > losses["alie"] + 0.2
    assert max(scored.lost[0] for scored in verdict.trials) > losses["min_max"]
    assert min(verdict.adaptive.lost) > 0.3, "it holds on seeds that the search never saw"


def test_the_multi_metric_filter_falls_to_small_steps_in_every_round(tmp_path: Path) -> None:
    """Its scores are those of how an update stands out, and one on a small ball does not: it is kept, and stays."""
    try:
        registry.make("dataset", "mnist").load()
    except DataMissing as error:
        pytest.skip(str(error))
    trigger = 'adversary.attacks=[{ name = "edge_case", dataset = "mnist", source = 7, target = 5 }]'
    found = redteam(
        "papers/multi_metrics_small_norm",
        [{"name": "multi_metrics", "keep": 0.3}],
        4,
        tmp_path / "out",
        tune=1,
        report=2,
        attacks=["pgd"],
        sets=[trigger, "rounds=100", "evaluate.every=5"],
        say=mute,
    )
    (verdict,) = found
    names = [part["name"] for part in verdict.adaptive.attempt.attacks]
    assert names == ["edge_case", "pgd"]
    assert verdict.adaptive.attempt.attacks[1]["epsilon"] < 1
    assert not verdict.adaptive.attempt.schedule or verdict.adaptive.attempt.schedule["name"] == "every_round"
    assert min(verdict.adaptive.asr) >= 0.9
    assert sum(verdict.adaptive.lost) / 2 <= 0.02
    assert min(verdict.adaptive.asr) > max(verdict.static.asr)
    assert verdict.floor < 0.1
    clients = fedsim.run(fedsim.Scenario.load(tmp_path / "out" / "adaptive-multi_metrics.toml", {"rounds": 40})).clients
    attackers = clients[clients["malicious"]]
    assert attackers["kept"].mean() >= 0.25


def test_a_norm_bound_falls_to_small_steps_in_every_round(tmp_path: Path) -> None:
    """Wang et al., "Attack of the Tails", NeurIPS 2020: projected inside of the bound, nothing is left to clip."""
    trigger = 'adversary.attacks=[{ name = "badnets", target = 0 }]'
    found = redteam(
        "papers/norm_bound_small_norm",
        [],
        8,
        tmp_path / "out",
        tune=1,
        report=2,
        attacks=["pgd"],
        sets=[trigger],
        say=mute,
    )
    (verdict,) = found
    assert min(verdict.adaptive.asr) > 0.85
    # No better than what is not adapted: cut to the bound in every round, any step is a small one.
    assert min(verdict.adaptive.asr) >= min(verdict.static.asr)
    assert sum(verdict.adaptive.lost) / 2 <= 0.03
    assert verdict.floor < 0.05


def test_what_stays_inside_of_the_bound_is_not_clipped() -> None:
    table = fedsim.Scenario.load("papers/norm_bound_small_norm", {"rounds": 5}).table()
    del table["matrix"]
    clients = fedsim.run(table).clients
    attackers = clients[clients["malicious"]]
    assert len(attackers) >= 10
    assert attackers["norm"].max() <= 0.3
    assert clients[~clients["malicious"]]["norm"].max() > 0.3, "the bound does act, on honest clients"
