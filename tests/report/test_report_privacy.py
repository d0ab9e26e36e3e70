"""What a page says of privacy: a number with its relation, or NONE, and what no guarantee covers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_run import fake_run
from page_reader import Page

import fedsim
from fedsim.federation import build
from fedsim.privacy import proof
from fedsim.report import compare_report, write_report
from fedsim.report.words import sentences
from fedsim.scenario import Scenario

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


def test_the_floor_is_another_run_with_the_same_noise(tmp_path: Path) -> None:
    scenario = fedsim.Scenario(
        rounds=2,
        data={"clients": 4},
        model={"name": "logistic"},
        client={"per_round": 4},
        server={"estimator": {"name": "dp_gd", "c1": 1.0, "lr": 0.5}},
        privacy={"noise": [0.02]},
        adversary={"count": 1, "attacks": [{"name": "badnets", "target": 0}]},
    )
    fedsim.run(scenario, out=tmp_path / "run", floor=True)
    text = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "the floor (of a second run on the same data, with the same noise)" in text
    card = text[text.index("Its floor, without attack") :]
    assert "outside the guarantee" in card[: card.index("</div></div>") if "</div></div>" in card else 400]


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


def private_run(folder: Path, trust: str, **options: Any) -> Path:
    """A run in which few rounds kept an attacker, behind a filter of raw messages or of private ones."""
    estimator = {"name": "diff2", "restart": 2, "c1": 1.0, "c2": 1.0, "lr": 0.5}
    local = {"estimator": estimator, "defenses": ["multi_metrics"]}
    scenario = fedsim.Scenario(
        rounds=30,
        data={"clients": 40},
        client={"per_round": 40} if trust == "local" else {"per_round": 10, "optimizer": "sgd"},
        server=local if trust == "local" else {"defenses": ["multi_metrics", "reclip"]},
        privacy={"epsilon": 8.0, "trust": trust, "unit": "example"},
    )
    guarantee = build(scenario).guarantee
    assert guarantee is not None
    run = fake_run(folder, slip=0.2, **options)
    (run / "privacy.json").write_text(json.dumps(proof.record(scenario, guarantee)), "utf-8")
    return run


def test_whatever_tells_who_was_kept_is_marked_where_messages_were_raw(tmp_path: Path) -> None:
    note = "The defense (multi_metrics) never changed an aggregate: the result is that of plain averaging."
    folder = private_run(tmp_path / "raw", "central", notes=[note])
    html = write_report(folder).read_text("utf-8")
    told = re.search(r"An attacker was kept in \d+ of the \d+ rounds in which one took part, [^.]*\.", html)
    assert told is not None
    assert told[0].endswith("(outside the guarantee).")
    ticks = figure(html, "Main accuracy and attack success rate")
    assert "rounds in which an attacker was kept (outside the guarantee)." in ticks
    hints = re.findall(r"<title>(.*?)</title>", ticks)
    kept = [hint for hint in hints if "attackers kept" in hint]
    assert kept
    assert all(hint.endswith("(outside the guarantee)") for hint in kept)
    paragraph = html[html.index("<p>Attackers were kept") :]
    assert MARK in paragraph[: paragraph.index("</p>")]
    heads = re.findall(
        r'<th scope="col"[^>]*>(.*?)</th>', html[html.index('aria-label="The numbers, round by round"') :]
    )
    marked = {head.removesuffix(" †") for head in heads if head.endswith("†")}
    assert marked == {"malicious weight", "TPR", "FPR", "AUC", "attackers kept"}
    assert f"† {MARK}" in html
    assert "What notes tell of clients&#39; replies" in html or "What notes tell of clients' replies" in html
    faults = html[html.index("<h2>Faults</h2>") :]
    assert MARK in faults[: faults.index("</p>")]
    assert "whose reply was missing or refused" in html


def test_what_private_messages_tell_is_not_marked(tmp_path: Path) -> None:
    html = write_report(private_run(tmp_path / "local", "local", notes=["Something of replies."])).read_text("utf-8")
    text = Page(html).text
    assert re.search(
        r"An attacker was kept in \d+ of the \d+ rounds in which one took part, first in round \d+\.", text
    )
    assert "rounds in which an attacker was kept." in text
    assert "†" not in text
    assert "What notes tell" not in text


def test_a_comparison_marks_the_runs_whose_messages_were_raw(tmp_path: Path) -> None:
    runs = [private_run(tmp_path / trust, trust, title=trust) for trust in ("central", "local")]
    out = tmp_path / "both.html"
    html = compare_report(runs, out).read_text("utf-8")
    rows = {
        trust: next(row for row in html.split("</tr>") if f">{trust}" in row or f"{trust}\n" in row)
        for trust in ("central", "local")
    }
    assert rows["central"].count("†") == 3
    assert "†" not in rows["local"]
    assert f"† {MARK}" in html


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_who_was_asked_is_marked_where_the_guarantee_counts_on_nobody_knowing(tmp_path: Path, rate: float) -> None:
    text = page(
        tmp_path,
        client={"optimizer": "sgd"},
        server={"defenses": ["dp_fedavg"], "sampler": {"name": "poisson", "rate": rate}},
        privacy={"epsilon": 8.0, "unit": "client"},
    )
    hidden = rate < 1
    assert ("which counts on nobody seeing who was asked" in figure(text, "Who was kept")) == hidden
    assert ("who was asked in which round" in text) == hidden
    assert ("or tell the cohorts" in text) == hidden


def test_a_filter_that_dropped_nobody_is_marked_all_the_same(tmp_path: Path) -> None:
    folder = private_run(tmp_path / "raw", "central", weights=False)
    html = write_report(folder).read_text("utf-8")
    assert "No client was dropped in any round (outside the guarantee)" in html


def test_a_run_with_an_estimator_names_no_training() -> None:
    scenario = Scenario(
        data={"clients": 4},
        client={"per_round": 4},
        server={"estimator": {"name": "dp_gd", "c1": 1.0, "lr": 0.5}},
        privacy={"epsilon": 8.0},
    )
    told = dict(sentences(scenario.table()))
    assert told["Clients"] == "4 a round"
    assert "sgd" not in told["Server"]
    assert "estimator dp_gd" in told["Server"]


EPSILON = re.compile(r"ε(?: =| \(| at |</th>| †|:)[^<]{0,60}")
RELATIONS = ("replace_one", "add_or_remove")


@pytest.mark.parametrize("neighbours", RELATIONS)
def test_no_epsilon_stands_on_the_page_without_its_relation(tmp_path: Path, neighbours: str) -> None:
    watched = {"observers": [{"name": "gradient_inversion", "iterations": 8}]}
    text = page(
        tmp_path,
        client={"per_round": 4, "optimizer": "dp_sgd", "batch_size": 8, "steps": 2},
        server={},
        privacy={"noise": [2.0], "trust": "local", "neighbours": neighbours},
        observe=watched,
    )
    told = [found[0] for found in EPSILON.finditer(text)]
    assert any(each.startswith(f"ε ({neighbours})") for each in told)
    assert f" ({neighbours}) was spent against it" in text
    assert len(told) >= 4
    alone = [each for each in told if neighbours not in each]
    assert [each for each in alone if not re.match(r"ε = [\d.]+$", each)] == []
    cards = text[text.index("Privacy spent") :]
    assert len(alone) == 1  # the card's number, whose next line has the relation
    assert neighbours in cards[: cards.index("</div>")]


def test_training_loss_and_the_accuracy_of_single_clients_are_marked(tmp_path: Path) -> None:
    """A run that trains: its losses and its clients' accuracies are told without noise, where the server is trusted."""
    trained = {
        "client": {"per_round": 4, "optimizer": "sgd"},
        "server": {"defenses": ["dp_fedavg"]},
        "evaluate": {"clients": 4},
    }
    text = page(tmp_path, **trained, privacy={"noise": [1.0], "unit": "client", "claim": "none"})
    name = re.search(r"<h3>(Loss[^<]*)</h3>", text)
    assert name is not None
    assert MARK in figure(text, name[1])
    assert re.search(r"<th[^>]*>worst 10\u202f% †</th>", text)
    card = text[text.index("Worst 10\u202f% of clients") :]
    assert "accuracy; outside the guarantee" in card[: card.index("</div>")]
    told = text[text.index("Outside the guarantee, since") :]
    told = told[: told.index("</p>")]
    assert "the clients' training loss" in told.replace("&#39;", "'")
    assert "the accuracy of single clients" in told
    del trained["evaluate"]
    claimed = page(tmp_path / "claimed", **trained, privacy={"noise": [1.0], "unit": "client"})
    assert "the clients' training loss" in claimed.replace("&#39;", "'")
    assert "the accuracy of single clients" not in claimed
