"""The report of one run, read as its users read it: text, tables, pictures, and nothing from outside."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from fake_run import fake_run
from page_reader import Page
from PIL import Image

from fedsim.errors import FedsimError, RecordError
from fedsim.report import write_report


def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text("utf-8"))


def edit(folder: Path, change: dict[int, dict[str, object]]) -> None:
    file = folder / "rounds.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for number, values in change.items():
        lines[number] |= values
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_tells_what_was_run_and_how_it_ended(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", notes=["The defense never changed an aggregate."])
    edit(folder, {30: {"accuracy": 0.8768, "asr": 0.25, "asr_low": 0.2058, "asr_high": 0.3}})
    shown = page(folder)
    for words in (
        "A backdoor against the multi-metric filter",
        "digits, split dirichlet (alpha 0.5, minimum 1) over 40 clients",
        "10 a round, 2 local epochs, batches of 32, sgd (lr 0.05, momentum 0.9)",
        "mlp (hidden [64])",
        "badnets (target 0, ratio 0.5), then model_replacement",
        "multi_metrics (keep 0.3, variant code)",
        "87.7 %",
        "25.0 %",
        "20.6 % to 30.0 %",
        "324 images",
        "the attack is 21.9 points above it",
        "The defense never changed an aggregate.",
        "An Ordinary Processor",
        "fedsim run scenario.toml --out",
        "missing or refused",
        "the update is not finite",
    ):
        assert words in shown.text, words
    assert "[client.optimizer]" in shown.text


def test_says_how_long_an_attack_was_felt_after_it_ended(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", rounds=6, faults=0)
    calm = {"malicious": [], "kept_malicious": []}
    accuracies, asrs = [0.1, 0.7, 0.8, 0.3, 0.5, 0.79, 0.8], [0.0, 0.1, 0.1, 0.9, 0.7, 0.3, 0.1]
    lines = {n: {"accuracy": accuracies[n], "asr": asrs[n]} | ({} if n == 3 else calm) for n in range(1, 7)}
    lines[3] |= {"cohort": [0, 3], "malicious": [3], "kept": [0, 3], "kept_malicious": [3]}
    edit(folder, lines)
    (folder / "summary.json").unlink()
    assert "Recovery" not in page(folder).text, "attackers in every round may come again"
    scenario = folder / "scenario.toml"
    scenario.write_text(scenario.read_text().replace('name = "every_round"', 'name = "single_shot"\nround = 3'))
    shown = page(folder).text
    assert "Recovery 2 rounds from the last attack, round 3, to an accuracy within 2 points of before it" in shown
    assert "Backdoor survived 2 rounds after the last attack, round 3" in shown
    edit(folder, {n: {"accuracy": 0.3, "asr": 0.9} for n in range(4, 7)})
    shown = page(folder).text
    assert "Recovery not in 3 rounds" in shown
    assert "Backdoor survived all 3 rounds" in shown


def test_counts_the_attackers_that_were_kept_beside_chance(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", rounds=4, faults=0)
    base = {"cohort": [0, 1, 3, 4], "malicious": [3, 4], "kept": [0], "kept_malicious": [], "malicious_weight": 0.0}
    edit(
        folder,
        {
            1: base,
            2: base | {"kept": [0, 3], "kept_malicious": [3], "malicious_weight": 0.6},
            3: base
            | {"cohort": [0, 1, 2, 3], "malicious": [3], "kept": [3], "kept_malicious": [3], "malicious_weight": 1.0},
            4: base | {"malicious": [], "cohort": [0, 1]},
        },
    )
    shown = page(folder)
    assert "An attacker was kept in 2 of the 3 rounds in which one took part, first in round 2." in shown.text
    assert "2 of 5; by chance (kept / n) 35.0 %" in shown.text  # (2·1/4 + 2·2/4 + 1·1/4) / 5
    assert "53.3 %" in shown.text  # (0 + 0.6 + 1) / 3
    assert "their share of the cohort: 41.7 %" in shown.text  # (1/2 + 1/2 + 1/4) / 3


def test_is_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    html = write_report(fake_run(tmp_path / "run")).read_text("utf-8")
    shown = Page(html)
    assert not shown.attributes("script")
    sources = [a.get(key) or "" for _, a in shown.tags for key in ("src", "href", "srcset", "data") if key in a]
    assert all(source.startswith("data:") for source in sources)
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert "width=device-width" in html


def test_every_chart_is_valid_svg_with_a_description(tmp_path: Path) -> None:
    html = write_report(fake_run(tmp_path / "run")).read_text("utf-8")
    charts = re.findall(r"<svg class=\"canvas\".*?</svg>", html, re.DOTALL)
    assert len(charts) == 7
    for chart in charts:
        element = ElementTree.fromstring(chart)
        assert element.get("role") == "img"
        assert len(element.get("aria-label") or "") > 20
        assert element.findall("path")
        numbers = re.findall(r"-?[\d.]+(?:e-?\d+)?", " ".join(path.get("d") or "" for path in element.findall("path")))
        assert np.isfinite([float(number) for number in numbers]).all()
    assert all(image.get("alt") for image in Page(html).attributes("img"))
    assert all("scope" in head for head in Page(html).attributes("th"))


def test_headings_go_down_one_level_at_a_time(tmp_path: Path) -> None:
    levels = [int(tag[1]) for tag, _ in page(fake_run(tmp_path / "run")).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_example_images_keep_their_pixels(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run")
    clean = np.zeros((1, 1, 4, 5), dtype=np.float32)
    clean[0, 0, 1, 2] = 1.0
    triggered = clean.copy()
    triggered[0, 0, 3, 4] = 0.5
    np.savez(folder / "samples.npz", clean=clean, triggered=triggered, labels=np.array([7]), target=np.array(2))
    shown = page(folder)
    images = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode((a["src"] or "").split(",")[1]))))
        for a in shown.attributes("img")
    ]
    assert np.array_equal(images[0], (clean[0, 0] * 255).astype(np.uint8))
    assert images[1].shape == (4, 5)
    assert images[1][3, 4] == 128
    assert "7 → 2" in shown.text


@pytest.mark.parametrize("shape", [(3, 3, 6, 6), (2, 1, 6, 6), (2, 12)])
def test_samples_of_any_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    folder = fake_run(tmp_path / "run")
    draw = np.random.default_rng(0).normal(size=shape)
    np.savez(folder / "samples.npz", clean=draw, triggered=draw, labels=np.zeros(shape[0]), target=np.array(1))
    assert len(page(folder).attributes("img")) == (2 * shape[0] if len(shape) == 4 else 0)


def test_says_unknown_where_a_stock_strategy_hides_its_weights(tmp_path: Path) -> None:
    shown = page(fake_run(tmp_path / "run", weights=False, defenses='"flwr:FedMedian"', floor=None))
    assert "Attackers kept unknown" in shown.text
    assert "Weight they got unknown" in shown.text
    assert "not measured" in shown.text
    assert "Who was kept, and with how much weight, is unknown" in shown.text


def test_a_rule_that_does_not_select_is_not_called_broken(tmp_path: Path) -> None:
    shown = page(fake_run(tmp_path / "run", weights=False, defenses='"median"', faults=0))
    assert "No client was dropped in any round: this defense does not select." in shown.text
    assert "this rule gives no linear weights" in shown.text


def test_the_floor_is_a_curve_where_the_twin_was_recorded(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", rounds=10)
    edit(folder, {10: {"asr": 0.5}})
    summary = json.loads((folder / "summary.json").read_text())
    rounds = {str(number): number / 50 for number in range(11)}
    (folder / "summary.json").write_text(json.dumps(summary | {"floor": {"asr": 0.2, "rounds": rounds}}))
    html = write_report(folder).read_text("utf-8")
    assert "the attack is 30.0 points above it; floor in round 10; mean of the last 5: 16.0" in Page(html).text
    lines = re.findall(r'class="line floor" d="M([^"]+L[^"]+)"', html)
    assert len(lines) == 1
    points = [point.split(" ") for point in lines[0].split("L")]
    assert [(float(x), float(y)) for x, y in points] == [(100.0 * n, 1000 - 20.0 * n) for n in range(11)]


def test_scores_stand_beside_the_median_of_their_round(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", rounds=2, faults=0)
    scores = [(1, 0, 1.0), (1, 1, 2.0), (1, 2, 3.0), (1, 3, 4.0), (1, 4, 400.0), (2, 0, 100.0), (2, 1, 300.0)]
    rows = [
        {"round": r, "client": c, "malicious": c == 4, "kept": True, "weight": 0.1, "norm": 1.0, "scores": {"part": s}}
        for r, c, s in scores
    ]
    (folder / "clients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = page(folder).text
    assert "honest (6 values, median 0.833)" in shown  # of 1/3, 2/3, 1, 4/3, 1/2, 3/2
    assert "malicious, downwards (1, median 133)" in shown


def test_nobody_attacks(tmp_path: Path) -> None:
    shown = page(fake_run(tmp_path / "run", attack=False, faults=0))
    assert "Nobody attacked." in shown.text
    assert "Adversary none" in shown.text
    assert "Attack success rate" not in shown.text
    assert "Faults" not in shown.text


def test_an_unfinished_run_with_a_half_written_line(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", rounds=6, finished=False)
    for name in ("rounds.jsonl", "clients.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"round": 7, "acc')
    assert "Unfinished: 6 of 12 rounds." in page(folder).text


def test_the_least_that_a_folder_can_hold(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"round": 0, "accuracy": 0.1, "loss": null}\n')
    assert "10.0 %" in page(tmp_path).text


def test_no_run_no_report(tmp_path: Path) -> None:
    with pytest.raises(FedsimError, match=r"there is no rounds\.jsonl"):
        write_report(tmp_path)
    folder = fake_run(tmp_path / "run", rounds=3)
    (folder / "rounds.jsonl").write_text('{"round": 0}\nrubbish\n{"round": 1}\n')
    with pytest.raises(FedsimError, match="line 2"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", rounds=3)
    (folder / "report.html").mkdir()
    with pytest.raises(RecordError, match=r"report\.html cannot be written"):
        write_report(folder)


def test_what_a_hostile_client_says_is_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    folder = fake_run(
        tmp_path / "run", reason=evil, title='\\"</title><b>bold</b>', labels=[f"{evil}{i}" for i in range(10)]
    )
    shown = page(folder)
    assert not shown.attributes("script")
    assert not shown.attributes("b")
    assert all("onerror" not in attributes for _, attributes in shown.tags)
    assert evil in shown.text


def test_long_lists_of_faults_are_folded(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", rounds=3)
    faults = [{"client": 1, "reason": f"dropped out, attempt {i}"} for i in range(600)]
    edit(folder, {1: {"faults": faults}, 2: {"faults": []}, 3: {"faults": []}})
    shown = page(folder)
    assert "600 replies were missing or refused" in shown.text
    assert "(the first 500)" in shown.text
    assert not any("open" in attributes for attributes in shown.attributes("details"))


@pytest.mark.parametrize(
    ("rounds", "clients", "per_round"), [(1, 4, 4), (30, 40, 10), (200, 200, 10), (1000, 3000, 30)]
)
def test_the_map_shows_every_reply_once(tmp_path: Path, rounds: int, clients: int, per_round: int) -> None:
    folder = fake_run(tmp_path / "run", rounds=rounds, clients=clients, per_round=per_round, slip=0.3, every=10)
    html = write_report(folder).read_text("utf-8")
    chart = next(c for c in re.findall(r"<svg class=\"canvas\".*?</svg>", html, re.DOTALL) if "Who was kept" in c)
    area = {}
    for path in ElementTree.fromstring(chart).findall("path"):
        style = path.get("class") or ""
        if style.startswith("cell"):
            drawn = path.get("d") or ""
            flat = re.findall(r"M(\d+) (\d+)H(\d+)v1H\1z", drawn)
            tall = re.findall(r"M(\d+) (\d+)h1V(\d+)h-1z", drawn)
            area[style] = sum(int(c) - int(a) for a, _, c in flat) + sum(int(c) - int(b) for _, b, c in tall)
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    kept = sum(len(line["kept_malicious"]) for line in lines)
    seen = sum(len(line["malicious"]) for line in lines)
    assert sum(area.values()) == rounds * per_round
    assert area.get("cell malicious-kept", 0) == kept
    assert area.get("cell malicious-dropped", 0) == seen - kept
    assert len(html) < 1_500_000


def test_the_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", rounds=5)
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()
    assert not list(folder.glob("*.part"))
