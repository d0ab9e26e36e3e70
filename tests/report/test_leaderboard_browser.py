"""The leaderboard in a real browser: it sorts, filters and chooses, by keyboard and on a phone, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, chromium
from fake_bench import ATTACKS, DEFENSES, fake_bench

from fedsim.report.leaderboard import write_leaderboard

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs a Chromium (Debian: apt-get install chromium)"),
]
PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "leaderboard"
MANY = {f"badnets + pgd {number}": ATTACKS["badnets + pgd"] for number in range(12)}
VISIBLE = "each => each.getClientRects().length > 0"
PLACES = f"[...document.querySelectorAll('.view, .heat-of')].filter({VISIBLE}).map(each => each.dataset.place)"
MEASURES = (
    f"[...new Set([...document.querySelectorAll('[data-measure]')].filter({VISIBLE}).map(e => e.dataset.measure))]"
)
NAMES = "[...document.querySelectorAll('.view:not([hidden]) tbody tr')].filter(%s).map(row => row.dataset.defense)"
OVERLAP = """(() => { const boxes = [...document.querySelectorAll('.view:not([hidden]) .dots a')].map(
  dot => dot.getBoundingClientRect());
  return boxes.filter((a, i) => boxes.some((b, j) => j < i
    && Math.hypot(a.x - b.x, a.y - b.y) < 18)).length; })()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    fake_bench(folder, datasets=("digits", "fashion_mnist"), seeds=(0, 1), attacks=ATTACKS | MANY, rounds=4)
    return write_leaderboard(folder).parent


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["index", "defense-multi_metrics", "attack-badnets-pgd"])
def test_page_in_chromium(browser: Browser, site: Path, name: str, width: int, dark: bool) -> None:
    browser.open(site / f"{name}.html", width, dark=dark)
    browser.value("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.body.scrollWidth") <= width
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
    assert browser.value(OVERLAP) == 0


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", sorted(file.name for file in PUBLISHED.glob("*.html")))
def test_published_page_in_chromium(browser: Browser, name: str, width: int) -> None:
    browser.open(PUBLISHED / name, width)
    browser.value("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.body.scrollWidth") <= width
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
    assert browser.value(OVERLAP) == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_the_published_ranking_is_sorted_and_filtered_by_the_keyboard_alone(browser: Browser, width: int) -> None:
    """From the top of the page by Tab; each stop is shown by an outline, and no script sets the focus."""
    browser.open(PUBLISHED / "index.html", width)
    ranked = _names(browser)
    _tab_to(browser, "document.activeElement.id === 'filter-defense'")
    browser.call("Input.insertText", text="krum")
    assert _names(browser) == [name for name in ranked if "krum" in name] != []
    for _ in "krum":
        _key(browser, "Backspace", 8)
    assert _names(browser) == ranked
    _tab_to(browser, "document.activeElement.id === 'measure'")
    assert browser.value(MEASURES) == ["harm"]
    _key(browser, "ArrowDown", 40)
    assert browser.value(MEASURES) == ["asr"]
    _tab_to(browser, "document.activeElement.closest('.view thead th')?.cellIndex === 2")
    for order in (1, -1):
        _key(browser, "Enter", 13, "\r")
        values = _column(browser, 2)
        assert values == sorted(values)[::order]
        assert sorted(_names(browser)) == sorted(ranked)
    _tab_to(browser, "document.activeElement.closest('.heat td')")
    _follow(browser)


def test_a_place_is_chosen_and_a_dot_is_followed_by_the_keyboard_alone(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html", 1280)
    _tab_to(browser, "document.activeElement.id === 'place'")
    _key(browser, "ArrowDown", 40)
    assert browser.value(PLACES) == ["digits", "digits"]
    _tab_to(browser, "document.activeElement.closest('.view .dots a')")
    _follow(browser)


def test_a_press_sorts_and_a_second_press_turns_it(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html", 1280)
    before = _names(browser)
    _press(browser, ".view:not([hidden]) thead button", 2, "Enter")
    values = _column(browser, 2)
    assert values == sorted(values)
    _press(browser, ".view:not([hidden]) thead button", 2, "Space")
    assert _column(browser, 2) == sorted(values, reverse=True)
    assert sorted(_names(browser)) == sorted(before)
    heads = browser.value("[...document.querySelectorAll('.view:not([hidden]) th[aria-sort]')].map(h => h.cellIndex)")
    assert heads == [2]


def test_filters_hide_rows_and_columns(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html", 1280)
    _type(browser, "filter-defense", "med")
    assert _names(browser) == ["median"]
    assert browser.value("document.getElementById('found').textContent") == "1 of the ranked defenses shown"
    _type(browser, "filter-defense", "")
    _type(browser, "filter-attack", "dba")
    heads = (
        f"[...document.querySelectorAll('.heat-of thead th[data-attack]')].filter({VISIBLE}).map(h => h.dataset.attack)"
    )
    assert browser.value(heads) == ["dba", "dba"]
    assert len(_names(browser)) == len(DEFENSES)


def test_the_place_and_the_measure_are_chosen(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html", 390)
    _choose(browser, "place", "fashion_mnist")
    assert browser.value(PLACES) == ["fashion_mnist", "fashion_mnist"]
    _choose(browser, "measure", "accuracy")
    assert browser.value(MEASURES) == ["accuracy"]
    field = "document.querySelector('.heat-of:not([hidden]) td')"
    low = browser.value(f"getComputedStyle({field}).backgroundColor")
    _choose(browser, "measure", "harm")
    assert browser.value(f"getComputedStyle({field}).backgroundColor") != low


def test_the_scale_has_the_colour_of_the_measure_that_is_shown(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html", 1280)
    full, end = (
        "(() => { const field = document.querySelector('.heat td');"
        f" field.style.setProperty('--{name}', 1); return getComputedStyle(field).backgroundColor; }})()"
        for name in ("harm", "accuracy")
    )
    colours = []
    for measure, field in (("harm", full), ("accuracy", end)):
        _choose(browser, "measure", measure)
        colours.append(browser.value(field))
        assert colours[-1] in browser.value("getComputedStyle(document.querySelector('.scale i')).backgroundImage")
    assert colours[0] != colours[1]


def test_fields_are_readable_whatever_their_colour(browser: Browser, site: Path) -> None:
    for dark in (False, True):
        browser.open(site / "index.html", 1280, dark=dark)
        browser.value("document.querySelectorAll('.heat td').forEach(each => each.style.setProperty('--harm', 1))")
        contrast = browser.value(
            """(() => {
              const canvas = new OffscreenCanvas(1, 1).getContext('2d');
              const light = colour => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(
                  v => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
              const cell = document.querySelector('.heat td');
              const two = [getComputedStyle(cell).backgroundColor, getComputedStyle(cell.firstChild).color].map(light);
              return (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05); })()"""
        )
        assert contrast >= 4.5


def test_everything_is_reached_by_tab(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html", 1280)
    unreached = """[...document.querySelectorAll('a, button, input, select, .scroll')].filter(
      each => each.getClientRects().length && each.tabIndex < 0).length"""
    assert browser.value(unreached) == 0
    nameless = """[...document.querySelectorAll('a, button, input, select')].filter(
      each => !(each.getAttribute('aria-label') || each.textContent.trim() || each.closest('label'))).length"""
    assert browser.value(nameless) == 0


def test_a_field_leads_to_its_runs(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html", 1280)
    link = browser.value("document.querySelector('.heat td a').getAttribute('href')")
    page, _, cell = link.partition("#")
    browser.open(site / page, 1280)
    browser.value(f"location.hash = '{cell}'")
    browser.value("new Promise(done => setTimeout(done))")
    assert browser.value(f"document.querySelector('#{cell} details').open")


def test_without_a_script_everything_is_there(browser: Browser, site: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(site / "index.html", 390)
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        for selector, count in ((".view[hidden]", 0), (".heat-of[hidden]", 0), (".tools[hidden]", 1)):
            found = browser.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"]
            assert len(found) == count, selector
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def _names(browser: Browser) -> Any:
    return browser.value(NAMES % VISIBLE)


def _column(browser: Browser, number: int) -> Any:
    return browser.value(
        f"[...document.querySelectorAll('.view:not([hidden]) tbody tr')].map(row => +row.cells[{number}].dataset.value)"
    )


def _tab_to(browser: Browser, there: str) -> None:
    """Press Tab until the focus is where the expression is true."""
    seen: list[Any] = []
    while not browser.value(f"document.activeElement !== document.body && !!({there})"):
        _key(browser, "Tab", 9)
        assert browser.value(
            "document.activeElement === document.body || document.activeElement.matches(':focus-visible')"
        )
        seen.append(browser.value("document.activeElement.outerHTML.slice(0, 80)"))
        assert len(seen) < 200, seen
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") != "none"


def _follow(browser: Browser) -> None:
    """Press Enter on a link: the page that it names is there, at the place that it names."""
    before, link = browser.value("[location.href, document.activeElement.href]")
    browser.loaded = False
    _key(browser, "Enter", 13, "\r")
    browser.arrive()
    assert browser.value("location.href") == link != before
    assert browser.value("!location.hash || !!document.getElementById(decodeURIComponent(location.hash.slice(1)))")
    assert browser.complaints == []


def _key(browser: Browser, key: str, number: int, text: str = "") -> None:
    for kind in ("keyDown", "keyUp"):
        told = {"key": key, "code": key, "windowsVirtualKeyCode": number}
        browser.call(
            "Input.dispatchKeyEvent", type=kind, **told, **({"text": text} if text and kind == "keyDown" else {})
        )


def _press(browser: Browser, selector: str, number: int, key: str) -> None:
    """Focus a button and press a key, as a reader without a mouse does."""
    browser.value(f"document.querySelectorAll(`{selector}`)[{number}].focus()")
    code, text = ("Enter", "\r") if key == "Enter" else ("Space", " ")
    number_of = 13 if key == "Enter" else 32
    for kind in ("keyDown", "keyUp"):
        told = {"code": code, "key": "Enter" if key == "Enter" else " ", "windowsVirtualKeyCode": number_of}
        browser.call("Input.dispatchKeyEvent", type=kind, **told, **({"text": text} if kind == "keyDown" else {}))


def _type(browser: Browser, field: str, text: str) -> None:
    browser.value(
        f"(f => {{ f.value = '{text}'; f.dispatchEvent(new Event('input')); }})(document.getElementById('{field}'))"
    )


def _choose(browser: Browser, field: str, value: str) -> None:
    browser.value(
        f"(f => {{ f.value = '{value}'; f.dispatchEvent(new Event('change')); }})(document.getElementById('{field}'))"
    )
