"""The report in a real browser: nothing in the console, nothing asked of a network, no sideways scrolling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from fake_run import fake_run

from fedsim.report import compare_report, write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs a Chromium (Debian: apt-get install chromium)"),
]
OVERLAP = """[...document.querySelectorAll('.plot .x')].flatMap(axis => {
  const boxes = [...axis.children].map(label => label.getBoundingClientRect());
  return boxes.slice(1).filter((box, i) => box.left < boxes[i].right).map(box => box.left);
}).length"""
CUT = """[...document.querySelectorAll('h1, h2, h3, .card, .facts dd, .legend li, .plot .x span')].filter(
  each => each.getBoundingClientRect().right > innerWidth + 0.5 && !each.closest('[tabindex]')).length"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    long = "a client whose reason is one_very_long_word_" + "x" * 200
    folders = {
        "full": fake_run(root / "full", notes=["The attack never changed a row."], reason=long),
        "long": fake_run(root / "long", rounds=1000, clients=2000, per_round=30, every=10, faults=30, title="w" * 120),
        "guest": fake_run(
            root / "guest", weights=False, defenses='"flwr:FedMedian"', labels=["Ankle boot", "Sandal"] * 5
        ),
    }
    found = {name: write_report(folder) for name, folder in folders.items()}
    found["compare"] = compare_report(list(folders.values()), root / "compare.html")
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["full", "long", "guest", "compare"])
def test_page_in_chromium(browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    browser.open(pages[name], width, dark=dark)
    assert browser.value("innerWidth") == width
    browser.value("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.body.scrollWidth") <= width
    assert browser.value(OVERLAP) == 0
    assert browser.value(CUT) == 0
    assert browser.value("document.querySelectorAll('svg.canvas').length") >= 2
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == dark


def test_print_is_light_and_opens_what_is_folded(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"], 800, dark=True, media="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value("document.querySelector('details pre').getBoundingClientRect().height") > 100
    assert browser.complaints == []
