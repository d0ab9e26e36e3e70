"""What a page says of privacy: a number with its relation, or NONE, and what no guarantee covers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedsim


def page(tmp_path: Path, **changes: Any) -> str:
    estimator = {"name": "diff2", "restart": 2, "c1": 1.0, "c2": 1.0, "lr": 0.5}
    base: dict[str, Any] = {
        "rounds": 3,
        "data": {"clients": 4},
        "model": {"name": "logistic"},
        "client": {"per_round": 4},
        "server": {"estimator": estimator, "defenses": [changes.pop("defense", "fedavg")]},
        "privacy": {"noise": [0.02, 0.08]},
    }
    fedsim.run(fedsim.Scenario(**{**base, **changes}), out=tmp_path / "run")
    return (tmp_path / "run" / "report.html").read_text("utf-8")


def test_a_private_run_shows_its_epsilon_the_proof_and_what_lies_outside(tmp_path: Path) -> None:
    text = page(tmp_path)
    for words in (
        "Privacy spent",
        "replace_one, against the public",
        "The proof, stage by stage",
        "noise on clipped gradients",
        "Diagnostic outside the guarantee",
        "Outside the guarantee",
        "the norms of the updates",
        "who holds how many examples of which label",
    ):
        assert words in text
    assert 'class="value">NONE' not in text


def test_norms_of_private_messages_are_covered(tmp_path: Path) -> None:
    text = page(tmp_path, privacy={"noise": [0.02, 0.08], "trust": "local"})
    assert "the norms of the updates" not in text


@pytest.mark.parametrize("privacy", [{"noise": [0.02, 0.08], "claim": "none"}, {"epsilon": "inf"}])
def test_a_run_that_claims_nothing_says_none_and_never_a_number(tmp_path: Path, privacy: dict[str, Any]) -> None:
    text = page(tmp_path, privacy=privacy, defense="median", evaluate={"clients": 2})
    assert '<strong class="none">NONE</strong>' in text
    assert 'class="card none"' in text
    assert "outside the guarantee" in text
    assert "ε = " not in text
    assert "Privacy spent" not in text


def test_a_run_without_noise_says_nothing_of_privacy(tmp_path: Path) -> None:
    text = page(tmp_path, privacy={}, server={})
    assert 'id="privacy"' not in text
