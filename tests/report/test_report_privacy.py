"""What a page says of privacy: a number with its relation, or NONE, and what no guarantee covers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import fedsim

MARK = "Diagnostic outside the guarantee"


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


def figure(text: str, name: str) -> str:
    """The figure of this name, from its caption to its end."""
    start = text.index(f"<h3>{name}</h3>")
    return text[start : text.index("</figure>", start)]


def test_epsilon_over_the_rounds_is_a_picture(tmp_path: Path) -> None:
    found = figure(page(tmp_path), "Privacy spent")
    assert "against the public from 0 to" in found
    assert found.count('class="line main" d="M0 1000L') == 1  # from round 0, at nothing spent


def test_none_is_red(tmp_path: Path) -> None:
    text = page(tmp_path, privacy={"noise": [0.02, 0.08], "claim": "none"})
    style = text[text.index("<style>") : text.index("</style>")]
    colours = re.findall(r"--red: (#\w+);", style)
    assert colours
    assert all(int(c[1:3], 16) > 2 * int(c[3:5], 16) for c in colours)
    assert re.search(r"\.card\.none \.value, \.none { color: var\(--red\);", style)


@pytest.mark.parametrize("attackers", [0, 1])
def test_what_a_filter_made_of_raw_messages_is_marked(tmp_path: Path, attackers: int) -> None:
    text = page(
        tmp_path,
        client={"per_round": 4, "optimizer": {"name": "sgd", "lr": 0.1}},
        server={"defenses": [{"name": "multi_metrics", "keep": 0.5}, {"name": "reclip", "radius": 1.0}]},
        adversary={"count": attackers, "attacks": ["sign_flip"]} if attackers else {},
        privacy={"epsilon": 8.0, "unit": "client"},
    )
    for name in ("Norms of the updates", "Who was kept", "multi_metrics"):
        assert MARK in figure(text, name)
    detection = text[text.index("How well it tells them apart") : text.index("<h2>Scores</h2>")]
    assert MARK in detection
    if attackers:
        assert MARK in figure(text, "Weight that the malicious got")
    for name in ("the scores of the updates", "who was kept, with which weight"):
        assert name in text
    assert MARK not in figure(text, "Main accuracy and attack success rate")


def test_what_a_filter_made_of_private_messages_is_covered_and_the_kept_sets_turnover_is_told(tmp_path: Path) -> None:
    text = page(
        tmp_path,
        data={"clients": 8},
        client={"per_round": 8},
        adversary={"count": 4, "attacks": [{"name": "badnets", "target": 0}]},
        defense={"name": "multi_metrics", "keep": 0.5},
        privacy={"epsilon": 2.0, "trust": "local"},
    )
    assert MARK not in figure(text, "Who was kept")
    assert MARK not in figure(text, "multi_metrics")
    assert "of the kept set changed" in text
    assert "A malicious row slipped through in" in text
    assert "rounds on average" in text


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
