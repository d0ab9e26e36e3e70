"""A result in a notebook: ``plot`` and ``_repr_html_``."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch

from fedsim.scenario import Scenario
from fedsim.simulation import Result

mpl.use("Agg")


def line(number: int, accuracy: float | None, asr: float | None) -> dict:
    bounds = {"asr_low": None, "asr_high": None} if asr is None else {"asr_low": asr / 2, "asr_high": asr}
    return {"round": number, "accuracy": accuracy, "asr": asr, **bounds, "worst10": None}


@pytest.fixture
def result() -> Result:
    lines = [line(0, 0.1, 0.0), line(1, None, None), line(2, 0.75, 0.5)]
    notes = ["krum <never> acted"]
    return Result(Scenario(title="A & B"), lines, [], {"w": torch.zeros(2)}, "0123456789abcdef", notes)


def test_plot_draws_the_rounds_that_were_measured(result: Result) -> None:
    import matplotlib.pyplot as plt

    _, mine = plt.subplots()
    assert result.plot(mine) is mine
    accuracy, asr = mine.get_lines()
    np.testing.assert_array_equal(accuracy.get_xydata(), [[0, 0.1], [2, 0.75]])
    np.testing.assert_array_equal(asr.get_xydata(), [[0, 0.0], [2, 0.5]])
    assert [text.get_text() for text in mine.get_legend().get_texts()] == ["main-task accuracy", "attack success rate"]
    assert mine.get_title() == "A & B"
    plt.close("all")


def test_html_is_well_formed_and_tells_the_measures(result: Result) -> None:
    import matplotlib.pyplot as plt

    plt.close("all")
    page = result._repr_html_()
    tree = ElementTree.fromstring(page)
    text = "".join(tree.itertext())
    for told in ("A & B", "75.0 %", "50.0 %", "0123456789ab…", "krum <never> acted"):
        assert told in text
    assert tree.find("{http://www.w3.org/2000/svg}svg") is not None
    assert plt.get_fignums() == [], "the notebook's own figures are left alone"


def test_a_result_without_measures_is_shown_as_well() -> None:
    empty = Result(Scenario(), [line(0, None, None)], [], {}, "d" * 64, finished=False)
    assert "interrupted" in empty._repr_html_()
