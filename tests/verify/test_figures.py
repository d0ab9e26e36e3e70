"""Figures of five papers are drawn with the results that must be there, and with all of them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedsim.verify import sam_gs
from fedsim.verify.claim import Measured
from fedsim.verify.page import name_empty

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
        "fashion_central": Measured({}, curves("diffgrad", "adam")),
        "fashion_federated": Measured({}, curves("round", "diffgrad", "adam")),
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


@pytest.mark.parametrize("all_of_them", [False, True])
@pytest.mark.parametrize("paper", ALL)
def test_figures(paper: str, all_of_them: bool) -> None:
    module: Any = importlib.import_module(f"fedsim.verify.{paper}")
    found = {key: [each] for key, each in ALL[paper].items() if all_of_them or key in module.DRAWN}
    assert found.keys() >= set(module.DRAWN)
    figure = Figure(figsize=module.SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    module.draw(figure, found)
    lines = sum(len(axes.lines) + len(axes.patches) for axes in figure.get_axes())
    assert lines > 0
    figure.canvas.draw()


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
