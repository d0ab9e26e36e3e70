"""The published benchmark can be run again: the same bits on the same kind of machine, else inside its intervals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedsim import runtime
from fedsim.launch import run
from fedsim.report.standings import NAME, Setting, Standings, interval
from fedsim.rerun import BOUND
from fedsim.scenario import Scenario

PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "leaderboard"
LAST = 5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PUBLISHED / NAME).is_file(), reason="needs docs/results/leaderboard (make results)"),
]


def _three() -> list[Setting]:
    found = [setting for setting in Standings.read(PUBLISHED).settings if setting.cells]
    return [found[len(found) * part // 3] for part in range(3)]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_published_cell_runs_again(number: int) -> None:
    standings, setting = Standings.read(PUBLISHED), _three()[number]
    cell = setting.cells[0]
    result = run(Scenario(**standings.scenarios[setting.key] | {"seed": cell["seed"]}))
    then, now = standings.versions[cell["versions"]]["runtime"], runtime.describe()
    if all(then.get(name) == now.get(name) for name in BOUND):
        assert result.digest == cell["digest"]
        return
    for name in ("accuracy", "asr"):
        values = [line[name] for line in result.lines if line["round"] > 0 and line[name] is not None][-LAST:]
        published = interval([each[name] for each in setting.cells])
        if values and not math.isnan(published.low):
            assert published.low <= sum(values) / len(values) <= published.high, name
