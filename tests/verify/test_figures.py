"""Figures show what the table says: results of here and published ones, and why a panel is empty."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedsim.verify import PAPERS, fashion, sam_gs, verify
from fedsim.verify.claim import Claim, Expected, Measured, Row, claims_of
from fedsim.verify.page import Shown, name_empty, strays, write_page
from fedsim.verify.published import Published, load_published
from fedsim.verify.runner import load

TWO = [1.0, 2.0]


def curves(*names: str) -> dict[str, list[float]]:
    return {name: list(TWO) for name in names}


ALL: dict[str, dict[str, Measured]] = {
    "hessian_alignment": {
        "synthetic": Measured({"erm": 0.1, "hgp": 0.6, "diagonal": 0.6}),
        "synthetic_fedavg": Measured({"erm": 0.1, "hgp": 0.6, "diagonal": 0.6}),
        "cmnist_erm": Measured({}, curves("step", "central")),
        "cmnist_hgp": Measured({}, curves("step", "central")),
        "cmnist_fedsgd_hgp": Measured({}, curves("round", "fedsgd")),
        "cmnist_fedavg_hgp": Measured({}, curves("round", "fedavg")),
        "left_out": Measured({}, curves("angle", "erm", "hgp")),
    },
    "diffgrad": {
        "functions": Measured({}, curves(*(f"f{k} {name}" for k in (1, 2, 3) for name in ("diffGrad", "Adam")))),
        "network": Measured({"friction": 0.501}),
        "fashion_central": Measured({}, curves("diffgrad", "adam")),
        "fashion_federated": Measured({}, curves("round", "diffgrad", "adam")),
        "activations": Measured(
            {
                f"{name}_{method}": 0.8
                for name in fashion.ACTIVATIONS
                for method in ("diffgrad", "adam", "adam_half")
            }
        ),
    },
    "langevin": {
        "scaling": Measured(
            {"slope": 1.5},
            {"d": [20.0, 35.0], "needed": TWO}
            | curves(*(f"{what} {d}" for what in ("n", "average", "last") for d in (20, 35))),
        ),
        "online": Measured({"slope": 2.0}, curves("d", "needed")),
    },
    "sam_gs": {
        "toy": Measured({}, curves(*(f"{m} {k} {a}" for m in ("sam_gs", "adam") for k in range(7) for a in "xy"))),
        "label_skew": Measured({}, curves("round", *sam_gs.RULES)),
        "two_objectives": Measured({}, curves("sam_gs accuracy", "sam_gs error")),
    },
    "gns": {
        "instances": Measured({}, curves("rosenbrock", "lse_exact")),
        "rounds": Measured({"numbers_of_descent": 44.0}, curves("gns", "gradient_descent", "fedavg", "sent")),
    },
}  # fmt: skip


def drawn(paper: str, found: dict[str, list[Measured]]) -> Any:
    module: Any = importlib.import_module(f"fedsim.verify.{paper}")
    figure = Figure(figsize=getattr(module, "SIZE", (7, 3.2)), layout="constrained")
    FigureCanvasAgg(figure)
    module.draw(figure, found)
    return figure


@pytest.mark.parametrize("paper", ALL)
def test_figures(paper: str) -> None:
    figure = drawn(paper, {key: [each] for key, each in ALL[paper].items()})
    assert all(axes.has_data() for axes in figure.get_axes())
    figure.canvas.draw()


@pytest.mark.parametrize("paper", PAPERS)
def test_a_panel_whose_curves_were_not_kept_says_so(paper: str) -> None:
    """As an older version published them: means of every claim, no curve. And with no claim but one."""
    module = load(paper)
    old = {each.key: [Measured(dict.fromkeys(each.rows, 0.5))] for each in claims_of(paper)}
    figure = drawn(paper, old)
    named = {key for axes in figure.get_axes() for key in (axes.get_gid() or "").split()}
    assert named <= old.keys(), "a panel shows a claim that there is not"
    name_empty(figure, list(old))
    texts = [text.get_text() for axes in figure.get_axes() for text in axes.texts]
    if paper != "coherence":
        assert "not run" not in texts
        assert any("curves not kept" in text for text in texts)
    for key in () if hasattr(module, "DRAWN") else old:
        drawn(paper, {key: old[key]})


def test_lines_that_are_no_results_leave_a_panel_empty() -> None:
    figure = drawn("hessian_alignment", {"synthetic": [Measured({"erm": 0.1, "hgp": 0.6, "diagonal": 0.6})]})
    name_empty(figure)
    said = [[text.get_text() for text in axes.texts] for axes in figure.get_axes()]
    assert said == [[], ["not run"], ["not run"]]


def test_bars_are_means_over_seeds_as_in_the_table() -> None:
    seeds = [Measured({"erm": value, "hgp": 0.6, "diagonal": 0.6}) for value in (0.1, 0.3)]
    bars = drawn("hessian_alignment", {"synthetic": seeds}).get_axes()[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([0.2, 0.6, 0.6])


def test_each_seed_of_two_objectives_is_drawn() -> None:
    """On the labels it is another method that leads with each seed."""
    seeds = [Measured({}, {"sam_gs accuracy": [0.5, value], "sum accuracy": [0.4, 0.4]}) for value in (0.5, 0.3)]
    main = drawn("sam_gs", {"two_objectives": seeds}).get_axes()[3]
    lines = [(line.get_color(), line.get_ydata()[-1]) for line in main.lines]
    assert lines == [("C0", 0.5), ("C1", 0.4), ("C0", 0.3), ("C1", 0.4)]
    assert [text.get_text() for text in main.get_legend().get_texts()] == ["sam_gs", "sum"]


def test_seeds_that_alone_would_fail_are_named() -> None:
    made = Claim("gns", "k", Measured, {"x": Expected("c", "≤ 4 %", None, 0.04), "y": Expected("c", "–")}, "here")
    values = [{"x": 0.0398, "y": 1.0}, {"x": 0.0427, "y": 2.0}, {"x": 0.0358, "y": 3.0}]
    rows = [Row("gns", f"k.{name}", made.rows[name], "here", [each[name] for each in values]) for name in "xy"]
    published = Published("", 3, {}, {}, values=values)
    assert strays(Shown(made, rows, published)) == ["- `k.x`: accepted in the mean; alone seed 1 has 0.0427"]
    older = [replace(row, values=(), published=(0.0394, "as it was")) for row in rows]
    assert strays(Shown(made, older, published)) == ["- `k.x`: accepted in the mean; alone seed 1 has 0.0427"]
    failed = [replace(row, values=[0.05]) for row in rows]
    assert strays(Shown(made, failed, None)) == []


def test_what_is_published_is_drawn_as_where_it_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(seed: int) -> Measured:
        """Three points."""
        return Measured({"x": seed + 1 / 3}, {"curve": [seed, 1 / 3, math.inf]})

    def draw_curve(figure: Any, found: dict[str, list[Measured]]) -> None:
        axes = figure.subplots()
        axes.set_gid("kept")
        for each in found["kept"]:
            for curve in each.series.values():
                axes.plot(curve)

    made = Claim("gns", "kept", measure, {"x": Expected("c", "e")}, "here", seeds=2)
    for room in ("runner", "page"):
        monkeypatch.setattr(f"fedsim.verify.{room}.claims_of", lambda paper: [made] if paper == "gns" else [])
    monkeypatch.setattr("fedsim.verify.gns.draw", draw_curve)
    runs, out = tmp_path / "runs", tmp_path / "out"
    verify(["gns"], runs)
    write_page(runs, out)
    known = load_published(out / "verify")["gns.kept"]
    assert known.values == [{"x": 1 / 3}, {"x": 4 / 3}], "exactly, so that the table's mean is theirs"
    assert known.series[0]["curve"][:2] == [0, 0.33333]
    assert len(known.seconds) == len(known.processor) == 2
    picture = out / "verify" / "gns.png"
    first = picture.read_bytes()
    picture.write_bytes(b"of an older table")
    page = write_page(tmp_path / "clone", out).read_text()
    assert picture.read_bytes() == first, "a clone draws what is published"
    assert "Seconds a seed" in page
    old = {key: getattr(known, key) for key in ("fingerprint", "seeds", "means", "ours", "facts")}
    (out / "verify" / "gns.json").unlink()
    (out / "verify" / "rows.json").write_text(json.dumps({"gns.kept": old}))
    assert "2 seeds" in write_page(tmp_path / "clone", out).read_text(), "what an older version published is read"
    assert not (out / "verify" / "rows.json").exists()
    assert picture.read_bytes() != first
    (runs / "gns.kept.1.json").unlink()
    write_page(runs, out)
    again = load_published(out / "verify")["gns.kept"]
    assert (again.seeds, len(again.series)) == (2, 1), "curves of a seed that is here join the published means"


def test_a_panel_without_results_says_so() -> None:
    figure = Figure()
    above, below = figure.subfigures(2, 1)
    drawn, empty, hidden = above.subplots(), *below.subplots(1, 2)
    drawn.plot(TWO, TWO)
    hidden.set_axis_off()
    name_empty(figure)
    assert [[text.get_text() for text in axes.texts] for axes in (drawn, empty, hidden)] == [[], ["not run"], []]
    assert len(empty.get_xticks()) == 0
    assert len(drawn.get_xticks()) > 0


HALF_AN_HOUR = 1800.0
BY_SEED = ("synthetic", "synthetic_fedsgd", "synthetic_fedavg")
"""Three of Hessian alignment's take about ten minutes a seed, as CMNIST does, and are run by seed."""


def too_long(each: Published, default: int) -> bool:
    """Whether the claim's seeds take more than half an hour, by seed where one takes ten minutes: by the clock, which a
    busy machine stretches, and by the processor's seconds, in which two workers count twice."""
    known = [times[:default] for times in (each.seconds, each.processor) if times]
    return min(default * sum(times) / len(times) for times in known) > HALF_AN_HOUR


def untold(each: Published) -> bool:
    """Whether neither the processor's seconds nor the clock's are published."""
    return not (each.processor or each.seconds)


def test_every_claim_fits_half_an_hour_as_far_as_its_time_is_known() -> None:
    known = load_published(Path(__file__).parents[2] / "docs" / "results" / "verify")
    found = set()
    for paper in PAPERS:
        load(paper)
        for each in claims_of(paper):
            there = known.get(f"{paper}.{each.key}")
            seeds = 1 if each.key in BY_SEED else each.seeds
            if there is None or untold(there) or too_long(there, seeds):
                found.add(f"{paper}.{each.key}")
    assert not found
    slow = Published("", 3, {}, {}, processor=[700.0, 700.0, 700.0])
    assert [too_long(slow, seeds) for seeds in (1, 2, 3)] == [False, False, True]
    assert too_long(Published("", 1, {}, {}, seconds=[1900.0]), 1)
    assert too_long(Published("", 3, {}, {}, processor=[700.0]), 3), "as long as those that are known"
