"""The leaderboard's pages: what they say is what the runs say, and they can be made from their own results again."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import tomllib
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from fake_bench import ATTACKS, DEFENSES, fake_bench
from page_reader import Page

from fedsim import bench
from fedsim.errors import FedsimError
from fedsim.report.leaderboard import MARKS, MEASURES, slug, write_leaderboard
from fedsim.report.scatter import scatter
from fedsim.report.standings import Standings, interval
from fedsim.scenario import read

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "results" / "leaderboard"
SEEN = re.compile(r'data-measure="(\w+)"(?: hidden)?><b>([^<]*)(?:<sup>(\w+)</sup>)?</b><small>([^<]*)</small>')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def site(folder: Path) -> Path:
    return write_leaderboard(folder).parent


def test_what_the_seconds_a_round_are_of_is_said(site: Path) -> None:
    assert (
        "Seconds a round are of the machine as it was, other work on it included"
        in Page((site / "index.html").read_text("utf-8")).text
    )


def test_a_page_a_defense_and_an_attack(site: Path) -> None:
    pages = {file.name for file in site.glob("*.html")}
    assert len(pages) == 1 + len(DEFENSES) + len(ATTACKS)
    for name in pages:
        Page((site / name).read_text("utf-8"))


def test_every_link_leads_somewhere(site: Path) -> None:
    for file in site.glob("*.html"):
        page = Page(file.read_text("utf-8"))
        for link in page.attributes("a"):
            target = urlsplit(str(link["href"]))
            assert target.scheme == target.netloc == ""
            there = site / unquote(target.path) if target.path else file
            assert there.is_file(), link
            if target.fragment:
                assert f'id="{target.fragment}"' in there.read_text("utf-8"), link


def test_the_ranking_is_that_of_the_benchmark(folder: Path, site: Path) -> None:
    ranked = list(bench.ranking(bench.results(folder))["defense"])
    html = (site / "index.html").read_text("utf-8")
    table = html[html.index('id="ranking"') : html.index("</table>")]
    assert re.findall(r'<tr data-defense="([^"]+)"', table) == ranked


def test_a_place_says_how_many_are_surely_ahead(folder: Path, site: Path) -> None:
    ranked = bench.ranking(bench.results(folder))
    assert (
        "Place: 1 + the number of defenses that are surely ahead" in Page((site / "index.html").read_text("utf-8")).text
    )
    for place, defense in zip(ranked["place"], ranked["defense"], strict=True):
        page = Page((site / f"defense-{slug(defense)}.html").read_text("utf-8"))
        ahead = {1: "nobody is", 2: "one is"}.get(place, f"{place - 1} are")
        assert f"Place {place} of {len(ranked)}: {ahead} surely ahead of it." in page.text


def test_a_field_shows_the_mean_over_seeds(folder: Path, site: Path) -> None:
    frame = bench.results(folder, where="defense=multi_metrics")
    cells = frame[frame["attack"] == "dba"]
    html = (site / "index.html").read_text("utf-8")
    row = re.search(r'<tr data-defense="multi_metrics"><th.*?</tr>', html[html.index("Every attack") :], re.S)
    assert row is not None
    field = re.search(r'<td data-attack="dba".*?</td>', row[0], re.S)
    assert field is not None
    for name in ("accuracy", "asr"):
        assert f'data-{name}="{cells[name].mean():.6f}"' in field[0]
        assert f"<b>{100 * cells[name].mean():.1f}</b>" in field[0]
        shown = re.search(rf'data-measure="{name}".*?<small>(.*?)</small>', field[0])
        assert shown is not None
        seeds = interval(list(cells[name]))
        ends = [float(end.replace("−", "-")) for end in re.findall(r"−?[\d.]+", shown[1])]
        assert ends == pytest.approx([100 * seeds.low, 100 * seeds.high], abs=0.051)


def test_a_field_s_label_says_all_that_is_seen(tmp_path: Path) -> None:
    """It takes the place of the content for whoever hears the page: intervals, and what the marks mean."""
    attacks = {"dba": ATTACKS["dba"]}
    for seeds in ((0, 1, 2), (0,)):
        folder = fake_bench(tmp_path / str(len(seeds)), seeds=seeds, attacks=attacks)
        page = write_leaderboard(folder).read_text("utf-8")
        fields = re.findall(r'aria-label="([^"]+)">((?:<span data-measure=.*?</span>)+)</a></td>', page)
        assert len(fields) == len(DEFENSES)
        for label, seen in fields:
            for name, mean, marks, spread in SEEN.findall(seen):
                assert f"{MEASURES[name].lower()} {mean}" + (f" ({spread})" if spread else "") in label
                assert [meaning for meaning in MARKS.values() if meaning in label] == [MARKS[mark] for mark in marks]
                assert name != "harm" or bool(spread) == (len(seeds) > 1)
                assert ("1" in marks) == (len(seeds) == 1)


def test_attackers_kept_are_a_share_a_seed(folder: Path, site: Path) -> None:
    """Its mean over seeds with their interval; attackers of several seeds are never pooled."""
    frame = bench.results(folder, where="defense=multi_metrics")
    cells = frame[frame["attack"] == "dba"]
    shares = interval(list((cells["attacker_rows_kept"] / cells["attacker_rows"]).astype(float)))
    assert shares.low < shares.mean < shares.high
    told = [f"{100 * each:.1f}" for each in shares[:3]]
    page = (site / "defense-multi_metrics.html").read_text("utf-8")
    assert f'{told[0]}<span class="range">{told[1]} to {told[2]}</span>' in page
    html = (site / "index.html").read_text("utf-8")
    row = re.search(r'<tr data-defense="multi_metrics"><th.*?</tr>', html[html.index("Every attack") :], re.S)
    assert row is not None
    assert f"<b>{told[0]}</b><small>{told[1]} to {told[2]}</small>" in row[0]


def test_a_cell_s_page_draws_its_curves(site: Path) -> None:
    """Accuracy, attack success and its floor over the rounds, for each attack on a defense's page."""
    page = (site / "defense-median.html").read_text("utf-8")
    cells = page.split('<details class="cell">')[1:]
    assert len(cells) == len(ATTACKS)
    for cell in cells:
        drawn = dict(re.findall(r'<path class="(line [^"]+)" d="([^"]+)"', cell))
        for style in ("line main", "line attack"):
            points = re.findall(r"[ML ]?\s*-?[\d.]+[ ,]-?[\d.]+", drawn[style])
            assert len(points) >= 3, (style, drawn[style])
        assert "line floor" in drawn


def test_the_scenario_beside_a_cell_is_the_one_that_was_run(folder: Path, site: Path) -> None:
    page = (site / "defense-median.html").read_text("utf-8")
    commands = re.findall(r"fedsim run (scenarios/\S+) --seed (\d+) --floor", page)
    assert len(commands) == 3 * len(ATTACKS)
    ran = {(folder / name / "scenario.toml").read_text("utf-8") for name in bench.results(folder)["folder"]}
    tables = [tomllib.loads(text) for text in ran]
    for file, seed in commands:
        table = tomllib.loads((site / file).read_text("utf-8"))
        assert table | {"seed": int(seed)} in tables
        assert table["server"]["defenses"] == [{"name": "median"}]


def test_pages_come_out_of_the_published_numbers_again(site: Path, tmp_path: Path) -> None:
    write_leaderboard(site, tmp_path / "again")
    for file in site.rglob("*"):
        if file.is_file():
            first, again = (each.read_text("utf-8") for each in (file, tmp_path / "again" / file.relative_to(site)))
            assert first.replace(str(site), "") == again.replace(str(tmp_path / "again"), ""), file


def test_the_published_pages_are_what_their_numbers_give(tmp_path: Path) -> None:
    write_leaderboard(PUBLISHED, tmp_path)
    published, again = (
        {
            str(file.relative_to(place)): re.sub(r"(fedsim leaderboard) [^<\"]+", r"\1", file.read_text("utf-8"))
            for file in place.rglob("*")
            if file.is_file()
        }
        for place in (PUBLISHED, tmp_path)
    )
    assert set(published) == set(again)
    assert [name for name in published if published[name] != again[name]] == []


def test_the_published_pages_are_made_again_by_what_they_print() -> None:
    """In a checkout, from its root: the folder that the command reads is there."""
    (command,) = re.findall(r"<code>(fedsim leaderboard .*?)</code>", (PUBLISHED / "index.html").read_text("utf-8"))
    (source,) = shlex.split(unescape(command))[2:]
    assert Path(source) == PUBLISHED.relative_to(ROOT)
    assert json.loads((PUBLISHED / "results.json").read_text("utf-8"))["command"] == command


def test_the_runs_of_the_published_pages_are_those_of_their_folder() -> None:
    for page in PUBLISHED.glob("defense-*.html"):
        text = page.read_text("utf-8")
        blocks = re.findall(r"<p>In the folder of these pages:</p>\n<pre [^>]*><code>(.*?)</code>", text, re.S)
        files = re.findall(r"fedsim run (\S+)", "".join(blocks))
        assert len(files) == len(re.findall("fedsim run ", text)) > 0
        assert [file for file in files if not (PUBLISHED / file).is_file()] == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
@pytest.mark.parametrize("folder", ["leaderboard", "redteam"])
def test_what_the_kept_pages_commands_leave_is_no_part_of_the_repository(folder: str) -> None:
    """They are run in the folder of their pages, and write to ``runs`` there."""
    run = PUBLISHED.parent / folder / "runs" / "one" / "summary.json"
    assert subprocess.run(["git", "check-ignore", "-q", str(run)], cwd=ROOT, check=False).returncode == 0


def test_the_published_pages_bear_the_title_of_their_scenario() -> None:
    title = read("bench/published")["title"]
    told = Standings.read(PUBLISHED)
    assert {told.title, *(table["title"] for table in told.scenarios.values())} == {title}
    assert {tomllib.loads(file.read_text("utf-8"))["title"] for file in PUBLISHED.glob("scenarios/*")} == {title}
    assert title in Page((PUBLISHED / "index.html").read_text("utf-8")).text


def test_a_title_of_one_s_own_is_kept_by_the_command(site: Path, tmp_path: Path) -> None:
    text = write_leaderboard(site, tmp_path / "pages", "Ours").read_text("utf-8")
    assert f"fedsim leaderboard {tmp_path / 'pages'} --title Ours" in text


def test_a_single_seed_and_an_idle_defense_are_marked(tmp_path: Path) -> None:
    folder = fake_bench(tmp_path / "bench", seeds=[0], defenses={"median": '"median"'})
    for file in folder.glob("*/rounds.jsonl"):
        lines = [json.loads(line) | {"defense_acted": False} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "results.sqlite").unlink()
    from fedsim.bench.store import Store

    store = Store(folder)
    for run in folder.glob("median-*"):
        store.adopt(run, {})
    store.close()
    text = Page(write_leaderboard(folder).read_text("utf-8")).text
    assert "a single seed: no interval, and no order" in text
    assert "the defense never changed an aggregate" in text


def test_privacy_stands_where_it_is_claimed(site: Path, tmp_path: Path) -> None:
    """One defense's runs spend an ε: a column, its number in that row alone; without a claim no column."""
    from fedsim.bench.store import Store

    assert "ε claimed" not in (site / "index.html").read_text("utf-8")
    folder = fake_bench(tmp_path / "bench")
    for file in folder.glob("median-*/rounds.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        told = [line | {"epsilon": 3.25 * line["round"] / lines[-1]["round"]} for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in told))
    (folder / "results.sqlite").unlink()
    store = Store(folder)
    for run in sorted(folder.glob("*-*-*")):
        store.adopt(run, {})
    store.close()
    html = write_leaderboard(folder).read_text("utf-8")
    table = html[html.index('id="ranking"') : html.index("</table>")]
    heads = re.findall(r"<th scope=\"col\".*?</th>", table.partition("<tbody>")[0], re.S)
    (column,) = [number for number, head in enumerate(heads) if "ε claimed" in head]
    rows = dict(re.findall(r'<tr data-defense="([^"]+)">(.*?)</tr>', table, re.S))
    shown = {name: re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.S)[column] for name, row in rows.items()}
    assert set(shown) == set(DEFENSES)
    assert {name for name, text in shown.items() if "3.25" in text} == {"median"}
    assert all("–" in text for name, text in shown.items() if name != "median")


def test_no_interval_reaches_beyond_what_a_share_can_be() -> None:
    shares = interval([0.1, 0.9])
    assert (shares.low, shares.mean, shares.high) == (0.0, pytest.approx(0.5), 1.0)
    losses = interval([-0.4, 0.9], least=-1.0)
    assert (losses.low, losses.high) == (-1.0, 1.0)
    inside = interval([0.5, 0.51, 0.52])
    assert 0.0 < inside.low < 0.51 < inside.high < 1.0


def test_several_places_have_views_of_their_own(tmp_path: Path) -> None:
    folder = fake_bench(tmp_path / "bench", datasets=("digits", "fashion_mnist"), seeds=(0, 1))
    page = Page(write_leaderboard(folder).read_text("utf-8"))
    places = [div["data-place"] for div in page.attributes("div") if div.get("class") == "view"]
    assert places == ["", "digits", "fashion_mnist"]
    assert [each["data-place"] for each in page.attributes("section") if each.get("class") == "heat-of"] == places[1:]


def test_a_place_is_told_of_those_that_are_ranked_there(tmp_path: Path) -> None:
    """One of the attacks met the median on digits alone: it is ranked there, and nowhere else."""
    told = Standings.read(fake_bench(tmp_path / "bench", datasets=("digits", "fashion_mnist"), seeds=(0, 1)))
    gone = ("median", "fashion_mnist", told.attacks[-1])
    told.cells[:] = [cell for cell in told.cells if (cell["defense"], cell["dataset"], cell["attack"]) != gone]
    (tmp_path / "results.json").write_text(told.json(), "utf-8")
    site = write_leaderboard(tmp_path, tmp_path / "site").parent
    text = (site / "defense-fedavg.html").read_text("utf-8")
    assert re.findall(r"(\w+): place \d of (\d)", text) == [
        ("Everywhere", "2"),
        ("Digits", "3"),
        ("Fashion_mnist", "2"),
    ]


def test_no_level_of_headings_is_left_out(site: Path) -> None:
    for file in site.glob("*.html"):
        levels = [int(level) for level in re.findall(r"<h(\d)", file.read_text("utf-8"))]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), (file.name, levels)


def test_nothing_to_show_is_said(tmp_path: Path) -> None:
    with pytest.raises(FedsimError, match="holds no results"):
        write_leaderboard(tmp_path)


def test_a_store_without_a_cell_is_said(tmp_path: Path) -> None:
    from fedsim.bench.store import Store

    Store(tmp_path / "bench").close()
    with pytest.raises(FedsimError, match="no cell is finished yet"):
        write_leaderboard(tmp_path / "bench", tmp_path / "site")


def test_no_dot_hides_another() -> None:
    found = scatter([(number, f"d{number}", "", 0.9, 0.5) for number in range(1, 17)])
    assert found is not None
    spots = [(3.0 * dot.x, 3.0 * dot.y) for dot in found.dots]
    gaps = [((x - u) ** 2 + (y - v) ** 2) ** 0.5 for i, (x, y) in enumerate(spots) for u, v in spots[:i]]
    assert min(gaps) >= 24 - 1e-6
    assert (found.dots[0].x, found.dots[0].y) == (found.dots[0].true_x, found.dots[0].true_y)


SEVERE = {
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
"""Machado, Oliveira & Fernandes, IEEE TVCG 2009, severity 1, on linear RGB."""


def lab(colour: str, seen: list[list[float]] | None) -> np.ndarray:
    """CIE L*a*b* (D65) of ``#rrggbb`` as an eye with that deficiency sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if seen is not None:
        linear = np.clip(np.array(seen) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.array(to_xyz) @ linear / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def palettes(site: Path) -> list[dict[str, str]]:
    """Name → ``#rrggbb``, in the light and in the dark theme."""
    html = (site / "index.html").read_text("utf-8")
    found = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", html, re.S)
    ]
    return [found[0], found[0] | found[1]]


@pytest.mark.parametrize("eye", [None, *SEVERE])
@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_heat_maps_ends_are_told_apart_by_every_eye(site: Path, eye: str | None, theme: int) -> None:
    """The card, the colour mixed into it, and a half of that; and one measure's colour from the other's."""
    palette = palettes(site)[theme]
    share = re.search(
        r"\.heat td \{.*?calc\(var\(--v\) \* (\d+)%\), var\(--card\)", (site / "index.html").read_text("utf-8")
    )
    assert share is not None

    def field(colour: str, value: float) -> np.ndarray:
        mixed = int(share[1]) / 100 * value
        pairs = [(int(palette[colour][i : i + 2], 16), int(palette["card"][i : i + 2], 16)) for i in (1, 3, 5)]
        return lab("#" + "".join(f"{round(mixed * a + (1 - mixed) * b):02x}" for a, b in pairs), SEVERE.get(eye or ""))

    for colour in ("vermillion", "blue"):
        low, middle, high = (field(colour, value) for value in (0.0, 0.5, 1.0))
        apart = [float(np.linalg.norm(a - b)) for a, b in ((low, high), (low, middle), (middle, high))]
        assert apart[0] > 20, (colour, apart)
        assert min(apart[1:]) > 8, (colour, apart)
    assert float(np.linalg.norm(field("vermillion", 1.0) - field("blue", 1.0))) > 20


def test_the_scale_turns_with_the_heat_map(site: Path) -> None:
    """Whatever colour a measure gives the fields, it gives the scale too; the script tells both what is shown."""
    html = (site / "index.html").read_text("utf-8")
    colours = [
        dict(re.findall(rf"^\.{name}(?:\[data-shown=\"(\w+)\"\])? {kind} \{{[^}}]*--c: var\(--(\w+)\)", html, re.M))
        for name, kind in (("heat", "td"), ("scale", "i"))
    ]
    assert colours[0] == colours[1] == {"": "vermillion", "accuracy": "blue"}
    assert 'all(".scale")) each.dataset.shown = measure.value' in html


@pytest.mark.parametrize("eye", [None, *SEVERE])
@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_are_told_apart_by_every_eye(site: Path, eye: str | None, theme: int) -> None:
    """The eight colours of curves, from each other and from the card they lie on: CIE76 differences."""
    palette = palettes(site)[theme]
    names = ("blue", "vermillion", "orange", "sky", "green", "purple", "black", "eighth")
    spots = {name: lab(palette[name], SEVERE.get(eye or "")) for name in (*names, "card")}
    pairs = {(a, b): float(np.linalg.norm(spots[a] - spots[b])) for a, b in itertools.combinations(spots, 2)}
    assert min(pairs.values()) > 8, min(pairs, key=pairs.__getitem__)
    assert pairs["blue", "vermillion"] > 40


def test_ticks_of_whole_per_cents_have_no_decimals() -> None:
    """0.72 and its like are not whole once they are multiplied by 100."""
    found = scatter([(1, "a", "", 0.681, 0.5), (2, "b", "", 0.726, 0.5)])
    assert found is not None
    assert [tick.text for tick in found.x_ticks] == ["68\u202f%", "70\u202f%", "72\u202f%"]


def test_an_epsilon_stands_beside_none_of_another_relation_unit_or_trust(folder: Path, tmp_path: Path) -> None:
    told = Standings.read(folder)
    private = {"median": ("replace_one", "local", 4.0), "multi_metrics": ("add_or_remove", "central", 2.0)}
    for cell in told.cells:
        if cell["defense"] in private:
            neighbours, trust, epsilon = private[cell["defense"]]
            claim = {"neighbours": neighbours, "trust": trust, "unit": "client", "delta": 1e-4}
            told.scenarios[cell["setting"]]["privacy"] = claim
            cell["epsilon"] = epsilon + (1.0 if cell["attack"] == "dba" else 0.0)
    (tmp_path / "results.json").write_text(told.json(), "utf-8")
    html = write_leaderboard(tmp_path, tmp_path / "site").read_text("utf-8")
    table = html[html.index('id="ranking"') : html.index("</table>")]
    heads = re.findall(r"<button type=\"button\">(ε[^<]*)</button>", table)
    assert heads == [
        "ε claimed (add_or_remove, client, central, δ = 0.0001)",
        "ε claimed (replace_one, client, local, δ = 0.0001)",
    ]
    rows = {row[0]: row[1] for row in re.findall(r'<tr data-defense="([^"]+)">(.*?)</tr>', table)}
    shown = {name: re.findall(r'<td class="number"[^>]*>([^<]*)', row)[-3:-1] for name, row in rows.items()}
    assert shown == {"fedavg": ["–", "–"], "median": ["–", "5"], "multi_metrics": ["3", "–"]}
