"""What ``fedsim bench`` shows: how far it is, what failed, how long it takes, the table so far."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedsim.terminal import columns, short, value_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

    from fedsim.bench.runner import Cell

ENDED = ("finished", "skipped", "failed", "interrupted")
BESIDE = 6
"""Lines of the screen that are not the table's."""


class Board:
    """The progress of a matrix.

    Args:
        console: where it is drawn; None draws nothing.
    """

    def __init__(self, console: Console | None) -> None:
        self.console = console
        self.live: Live | None = None
        self.cells: list[Cell] = []
        self.running: dict[int, Mapping[str, Any]] = {}
        self.played = 0
        self.began = time.monotonic()

    def begin(self, cells: list[Cell]) -> None:
        """All cells are known; those that were finished before are marked so."""
        self.cells = cells
        self.began = time.monotonic()
        if self.console is not None and self.console.is_terminal:
            from rich.live import Live

            self.live = Live(console=self.console, get_renderable=self._draw, refresh_per_second=2, transient=True)
            self.live.start()

    def show(self, cell: Cell, line: dict[str, Any] | None) -> None:
        """A round has ended, or a cell's state has changed."""
        if line is not None:
            self.running[cell.number] = line
        elif cell.state == "running":
            self.running.setdefault(cell.number, {})
        else:
            self.running.pop(cell.number, None)
            # One that waits again has been played once.
            self.played += cell.state in ("finished", "failed", "waiting")
            self._say(cell)

    def _say(self, cell: Cell) -> None:
        """A line for what has ended, above the board or in a file; on a screen only where it went wrong."""
        if self.console is None or (self.live is not None and cell.state in ("finished", "skipped")):
            return
        said = cell.error if cell.state == "waiting" else ": ".join(filter(None, (cell.state, cell.error)))
        text = f"[{cell.number}/{cell.total}] {short(cell.values)}: {said}"
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def counts(self) -> dict[str, int]:
        """State → cells in it."""
        return {state: sum(cell.state == state for cell in self.cells) for state in (*ENDED, "running", "waiting")}

    def left(self) -> float | None:
        """Seconds that the rest takes, judged by what has been played; None before the first."""
        rest = sum(cell.state not in ENDED for cell in self.cells)
        return (time.monotonic() - self.began) / self.played * rest if self.played else None

    def status(self) -> str:
        """``31 of 288 cells done, 2 failed, 2 running, 7 min left``."""
        counts = self.counts()
        done = counts["finished"] + counts["skipped"]
        parts = [f"{done} of {len(self.cells)} cells done"]
        parts += [f"{counts['failed']} failed"] if counts["failed"] else []
        parts += [f"{counts['running']} running"] if counts["running"] else []
        left = self.left()
        if left is not None and done + counts["failed"] < len(self.cells):
            from fedsim.report.words import duration

            parts.append(f"{duration(left if left < 10 else round(left))} left")
        return ", ".join(parts)

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        assert self.console is not None
        room = max(3, self.console.height - BESIDE - len(self.running))
        ended = sum(cell.state in ENDED for cell in self.cells)
        lines = [
            Text(f"  {short(cell.values)}: round {line.get('round', 0)} of {cell.scenario.rounds}", overflow="ellipsis")
            for cell in self.cells
            if (line := self.running.get(cell.number)) is not None
        ]
        for each in lines:
            each.no_wrap = True
        bar = ProgressBar(total=max(1, len(self.cells)), completed=ended)
        return Group(so_far(self.cells, room), *lines, Text(self.status()), bar)


def so_far(cells: Sequence[Cell], most: int) -> Table:
    """A row a setting, means over the seeds that are there; the settings that changed last, where not all have room."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(short({key: value for key, value in cell.values.items() if key != "seed"}), []).append(cell)
    known = [(name, group) for name, group in groups.items() if any("accuracy" in cell.row for cell in group)]
    keys = [key for key in dict.fromkeys(key for cell in cells for key in cell.values) if key != "seed"]
    rows = []
    for _, group in known[-most:]:
        done = [cell.row for cell in group if "accuracy" in cell.row]
        means = [_mean([row[name] for row in done if row[name] is not None]) for name in ("accuracy", "asr", "floor")]
        values = group[0].values
        rows.append((*(value_of(values.get(key)) for key in keys), f"{len(done)} of {len(group)}", *means))
    return columns(rows, (*keys, "cells", "accuracy", "ASR", "floor"), range(len(keys)))


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else "–"


@contextmanager
def board(quiet: bool) -> Iterator[Board]:
    """A board on standard error, so that standard output holds results alone."""
    if quiet:
        yield Board(None)
        return
    from rich.console import Console

    found = Board(Console(stderr=True))
    try:
        yield found
    finally:
        if found.live is not None:
            found.live.stop()


__all__ = ["Board", "board", "so_far"]
