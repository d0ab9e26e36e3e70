"""What is shown while a matrix runs."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from fedsim.bench.runner import Cell
from fedsim.board import Board
from fedsim.scenario import Scenario


def test_the_board_tells_done_failed_running_left_and_the_table_so_far() -> None:
    text = io.StringIO()
    board = Board(Console(file=text, force_terminal=True, width=100, height=30))
    scenario = Scenario(rounds=7)
    cells = [Cell(i + 1, 4, {"server.defenses": ["krum"], "seed": i}, scenario, Path(f"{i}")) for i in range(4)]
    board.begin(cells)
    assert board.live is not None
    for cell, state in zip(cells, ("finished", "failed", "running"), strict=False):
        cell.state, cell.error = state, "a bad day" if state == "failed" else ""
        cell.row = {"accuracy": 0.875, "asr": None, "floor": None} if state == "finished" else {}
        board.show(cell, None)
    board.show(cells[2], {"round": 3})
    board.live.refresh()
    board.live.stop()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert "1 of 4 cells done, 1 failed, 1 running" in shown
    assert " left" in shown
    assert "round 3 of 7" in shown
    assert re.search(r"krum +1 of 4 +0\.875", shown)
    assert "seed 1: failed: a bad day" in shown


def test_what_waits_for_its_second_try_is_left_and_not_failed() -> None:
    text = io.StringIO()
    board = Board(Console(file=text))
    cells = [Cell(i + 1, 2, {"seed": i}, Scenario(), Path(f"{i}")) for i in range(2)]
    board.begin(cells)
    board.began -= 10
    cells[0].state, cells[0].error = "waiting", "failed once, is tried again in the end: a bad day"
    board.show(cells[0], None)
    assert board.status().startswith("0 of 2 cells done, 20 s left"), board.status()
    assert text.getvalue() == "[1/2] seed 0: failed once, is tried again in the end: a bad day\n"


def test_into_a_file_goes_a_line_a_cell() -> None:
    text = io.StringIO()
    board = Board(Console(file=text))
    cell = Cell(1, 1, {"adversary.attacks": [], "seed": 5}, Scenario(), Path("x"), "finished")
    board.begin([cell])
    board.show(cell, None)
    assert text.getvalue() == "[1/1] attacks none, seed 5: finished\n"
