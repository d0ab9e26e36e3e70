"""The published benchmark can be run again: the same bits on the same kind of machine, else inside its intervals."""

from __future__ import annotations

import html
import json
import math
import re
import shlex
import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import ttest_rel
from typer.testing import CliRunner

from fedsim import runtime
from fedsim.analysis.statistics import t_interval
from fedsim.bench import differences, ranking
from fedsim.bench.cell import Cell
from fedsim.cli import app
from fedsim.errors import DataMissing
from fedsim.federation import make
from fedsim.report.standings import NAME, Setting, Standings, interval
from fedsim.rerun import BOUND
from fedsim.scenario import Scenario, cells, read

PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "leaderboard"
LAST = 5
COMMAND = re.compile(r"(fedsim run (scenarios/\S+) --seed (\d+)[^<\n]*)")

pytestmark = pytest.mark.skipif(
    not (PUBLISHED / NAME).is_file(), reason="needs docs/results/leaderboard (make results)"
)


def _three() -> list[Setting]:
    found = [setting for setting in Standings.read(PUBLISHED).settings if setting.cells]
    return [found[len(found) * part // 3] for part in range(3)]


def _printed(scenario: Scenario, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command leaves that the pages print for this scenario: its digest, and its rounds' lines."""
    printed = {line for page in PUBLISHED.glob("*.html") for line in COMMAND.findall(html.unescape(page.read_text()))}
    monkeypatch.chdir(PUBLISHED)
    (command,) = [
        command
        for command, file, seed in printed
        if int(seed) == scenario.seed and Scenario.load(file, {"seed": int(seed)}) == scenario
    ]
    _, *words = shlex.split(command)
    out = place / "run"
    words[words.index("--out") + 1] = str(out)
    done = CliRunner().invoke(app, [*words, "--quiet"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    return {"digest": json.loads((out / "summary.json").read_text())["digest"], "lines": lines}


def _worst(frame: pd.DataFrame) -> pd.DataFrame:
    """A column a defense: its harm by seed under the attack that hurts it most."""
    attacked = frame[frame["attacked"]]
    harm = attacked.assign(harm=attacked[["utility_lost", "asr_gain"]].max(axis=1))
    cells = harm.pivot_table(index="seed", columns=["defense", "attack"], values="harm")
    return pd.DataFrame({name: cells[name][cells[name].mean().idxmax()] for name in cells.columns.unique("defense")})


def test_the_page_s_ranking_is_that_of_the_published_numbers() -> None:
    """docs/results/benchmark.md against results.json: places, harm with its interval, accuracy without attack."""
    page = (PUBLISHED.parent / "benchmark.md").read_text("utf-8").replace("−", "-")
    told = re.findall(r"^\| (\d+) \| (.+?) \| (\S+) \((\S+) to (\S+)\) \| (.+?) \| (\S+) \|$", page, re.M)
    frame = Standings.read(PUBLISHED).frame
    ranked = ranking(frame)
    calm = frame.groupby("defense")["calm_accuracy"].mean()
    assert len(told) == len(ranked) == 8
    for (place, defense, *numbers, under, accuracy), (_, row) in zip(told, ranked.iterrows(), strict=True):
        assert int(place) == row["place"]
        # Options are left out on the page.
        names = re.sub(r" \([^)]*\)", "", row["defense"]).split(" + ")
        assert set(re.findall(r"`(\w+)`", defense)) == set(names)
        assert set(re.findall(r"`(\w+)`", under)) <= set(re.findall(r"\w+", row["under"]))
        shown = [*numbers, accuracy]
        ours = [100 * each for each in (row["worst"], row["low"], row["high"], calm[row["defense"]])]
        assert [float(each) for each in shown] == pytest.approx(ours, abs=0.0501)


def test_the_page_s_counts_are_those_of_the_published_numbers() -> None:
    page = " ".join((PUBLISHED.parent / "benchmark.md").read_text("utf-8").split())
    frame = Standings.read(PUBLISHED).frame
    kept = frame.groupby(["defense", "attack"])[["attacker_rows_kept", "attacker_rows"]].sum().astype(int)
    boosted = "badnets (target 0) + model_replacement"
    for defense, attack in (
        ("multi_metrics (keep 0.3)", boosted),
        ("multi_metrics (keep 0.3)", "alie"),
        ("multi_metrics (keep 0.3)", "min_max"),
        ("fedid", boosted),
    ):
        passed, rows = kept.loc[(defense, attack)]
        assert f"{passed} of {rows}" in page


def test_the_page_s_numbers_on_min_max_are_those_of_the_published_cells() -> None:
    page = " ".join((PUBLISHED.parent / "benchmark.md").read_text("utf-8").replace("−", "-").split())
    frame = Standings.read(PUBLISHED).frame
    lost = 100 * frame[frame["attack"] == "min_max"].pivot_table(index="seed", columns="defense", values="utility_lost")
    plain = lost["fedavg"]
    assert f"no defense at all loses {plain.mean():.1f}." in page
    losses = differences(frame, measure="utility_lost")
    (ours,) = losses[(losses["defense"] == "multi_metrics (keep 0.3)") & (losses["attack"] == "min_max")].to_dict(
        "records"
    )
    assert f"p = {ours['p']:.3f} by itself; but it is one of {len(losses)} differences".replace("0.", ".", 1) in page
    assert f"adjusted (Holm) its p is {ours['p_holm']:.2f}".replace("0.", ".", 1) in page
    assert losses["p_holm"].min() > 0.05, "none of them is sure, median's neither"
    for defense in ("multi_metrics (keep 0.3)", "median"):
        more = t_interval(lost[defense] - plain)
        assert f"{lost[defense].mean():.1f}" in page
        assert f"{more.mean:.1f} ({more.low:.1f} to {more.high:.1f})" in page


def test_the_page_s_other_figures_are_those_of_the_published_numbers() -> None:
    """Its bullets on the filter without attack, on bounded norms, neurotoxin and alie, and on who is surely behind."""
    page = " ".join((PUBLISHED.parent / "benchmark.md").read_text("utf-8").split())
    frame = Standings.read(PUBLISHED).frame
    frame = frame.assign(defense=frame["defense"].str.replace(r" \([^)]*\)", "", regex=True))
    calm = 100 * frame.groupby("defense")["calm_accuracy"].mean()
    assert f"costs {calm['fedavg'] - calm['multi_metrics']:.1f} points with no attack" in page
    means = 100 * frame.groupby(["attack", "defense"])[["asr", "asr_gain", "floor", "utility_lost"]].mean()
    assert f"within {means.xs('norm_bound', level='defense')['asr_gain'].max():.1f} points of its floor" in page
    planted = means.loc["badnets (target 0) + neurotoxin"]
    shown = (planted["asr"].min(), planted["asr"].max(), planted["floor"].min(), planted["floor"].max())
    assert "(ASR {:.1f} to {:.1f} %, floors of {:.1f} to {:.1f})".format(*shown) in page
    lost = means.loc["alie", "utility_lost"]
    most, ours = lost.drop("multi_metrics").max(), lost["multi_metrics"]
    assert f"`alie` costs {most:.1f} points at most, our filter apart ({ours:.1f})" in page
    worst = {name.split()[0]: 100 * value for name, value in _worst(Standings.read(PUBLISHED).frame).mean().items()}
    more = {name: f"{worst['norm_bound'] - worst[name]:.1f}" for name in ("multi_krum", "nnm")}
    assert f"{more['multi_krum']} points more than that of `multi_krum`, {more['nnm']} more than that of `nnm`" in page


def test_the_page_tells_that_nobody_is_surely_behind_and_how_near_it_is() -> None:
    page = " ".join((PUBLISHED.parent / "benchmark.md").read_text("utf-8").split())
    frame = Standings.read(PUBLISHED).frame
    ranked = ranking(frame)
    assert set(ranked["place"]) == {1}
    assert "All eight share the first place" in page
    assert f"`{ranked['defense'].iloc[0]}` has the least worst harm" in page
    rows = _worst(frame)
    pairs = list(combinations(rows, 2))
    least, (one, other) = min((float(ttest_rel(rows[a], rows[b]).pvalue), (a, b)) for a, b in pairs)
    # Holm's adjusted p of the smallest is Bonferroni's.
    shown = (f"{least:.4f}".lstrip("0"), f"{len(pairs) * least:.2f}".lstrip("0"))
    assert f"`{one}` and `{other.split()[0]}` differ most clearly, by a p of {shown[0]}, which is {shown[1]}" in page
    assert f"of the {len(pairs)} pairs of defenses" in page


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_published_cell_runs_again(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standings, setting = Standings.read(PUBLISHED), _three()[number]
    cell = setting.cells[0]
    result = _printed(Scenario(**standings.scenarios[setting.key] | {"seed": cell["seed"]}), tmp_path, monkeypatch)
    then, now = standings.versions[cell["versions"]]["runtime"], runtime.describe()
    if all(then.get(name) == now.get(name) for name in BOUND):
        assert result["digest"] == cell["digest"]
        return
    unlike = [name for name in BOUND if then.get(name) != now.get(name)]
    if unlike == ["processor"] and "family" not in then["processor"]:
        warnings.warn(
            f"published on '{then['processor']}', without family and model: whether the bits must be equal on "
            f"'{now['processor']}' cannot be told, the intervals alone are held (make results records both)",
            stacklevel=1,
        )
    for name in ("accuracy", "asr"):
        values = [line[name] for line in result["lines"] if line["round"] > 0 and line[name] is not None][-LAST:]
        published = interval([each[name] for each in setting.cells])
        if values and not math.isnan(published.low):
            assert published.low <= sum(values) / len(values) <= published.high, name


def test_the_page_s_sentence_on_the_quick_benchmark_is_that_of_its_cells() -> None:
    """docs/results/quick.csv is what ``fedsim results runs/quick --csv`` said of the run of which the page speaks."""
    page = " ".join((PUBLISHED.parent / "benchmark.md").read_text("utf-8").split())
    frame = pd.read_csv(PUBLISHED.parent / "quick.csv").astype({"marks": object}).fillna({"marks": ""})
    assert len(frame) == 6 * 8 * 3 * 2
    assert set(frame["state"]) == {"finished"}
    ranked = ranking(frame)
    (said,) = re.findall(
        r"The quick benchmark .*? no two defenses surely either. The least worst harm has (.*?), which", page
    )
    assert set(ranked["place"]) == {1}
    assert re.findall(r"`(\w+)`", said) == [re.sub(r" \([^)]*\)", "", each) for each in ranked["defense"][:3]]


@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist"])
def test_the_quick_benchmark_s_cells_are_those_of_the_scenario(dataset: str) -> None:
    frame = pd.read_csv(PUBLISHED.parent / "quick.csv")
    found = [each for each in cells(read("bench/quick"), "bench/quick") if each[1].data.dataset.name == dataset]
    try:
        make("dataset", found[0][1].data.dataset).load()
    except DataMissing:
        pytest.skip(f"needs {dataset}, whose content is in the keys (make data)")
    made = {Cell.of(0, 0, values, each, Path()).key for values, each in found}
    kept = set(frame[frame["dataset"] == dataset]["key"])
    assert kept
    assert kept <= made, "the scenario is another one now: run it again"
