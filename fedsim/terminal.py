"""What the command line shows: progress, tables. rich is imported at the first use."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

UNFOLDED = 400


class Bar:
    """A progress bar of rounds with what the last evaluated one measured; silent without a display."""

    def __init__(self, display: Progress | None) -> None:
        self.display = display
        self.task: TaskID | None = None
        self.said = ""

    def start(self, title: str) -> None:
        """A new run begins."""
        if self.display is not None:
            if self.task is not None:
                self.display.remove_task(self.task)
            self.display.start()
            self.said = ""
            self.task = self.display.add_task("", total=None, title=title, measured="")

    def show(self, line: Mapping[str, Any], rounds: int) -> None:
        """A round has ended."""
        if self.display is None:
            return
        if self.task is None:
            self.start("round")
        assert self.task is not None
        measured = [(word, line.get(key)) for word, key in (("accuracy", "accuracy"), ("ASR", "asr"))]
        self.said = "  ".join(f"{word} {value:.3f}" for word, value in measured if value is not None) or self.said
        self.display.update(self.task, completed=int(line["round"]), total=rounds, measured=self.said)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.display is not None:
            self.display.console.print(text, markup=False, highlight=False)


@contextmanager
def progress(quiet: bool) -> Iterator[Bar]:
    """A bar on standard error, so that standard output holds results alone."""
    if quiet:
        yield Bar(None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[title]}", markup=False),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[measured]}"),
    )
    bar = Bar(Progress(*columns, console=Console(stderr=True)))
    try:
        yield bar
    finally:
        # What was never started has nothing to end: stopping it would print an empty line before an error.
        if bar.task is not None and bar.display is not None:
            bar.display.stop()


def show(content: object) -> None:
    """Print a table on standard output; into a file or a pipe nothing is folded."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = UNFOLDED
    console.print(content)


def columns(rows: Sequence[tuple[str, ...]], heads: tuple[str, ...], folding: Collection[int] = (-1,)) -> Table:
    """Rows under heads, each cell as it stands: brackets in types and defaults are no markup.

    Args:
        rows: one tuple of texts a row.
        heads: names of the columns.
        folding: columns that take several lines where the terminal is narrow, by default the last.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    folds = {position % len(heads) for position in folding}
    for position, head in enumerate(heads):
        table.add_column(Text(head), overflow="fold", no_wrap=position not in folds)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def short(values: Mapping[str, Any]) -> str:
    """The values of a cell on one line."""
    return ", ".join(f"{key.rpartition('.')[2]} {value_of(value)}" for key, value in values.items()) or "the only cell"


def value_of(value: Any) -> str:
    """A value of a matrix in short: parts by their names."""
    if isinstance(value, Mapping):
        options = ", ".join(f"{key} {value_of(each)}" for key, each in value.items() if key != "name")
        return f"{value['name']} ({options})" if "name" in value and options else str(value.get("name", options))
    if isinstance(value, list):
        return " + ".join(map(value_of, value)) or "none"
    return str(value)


def partition_table(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> Table:
    """A row a client: its examples in all and of each label."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("client", "examples", *labels):
        table.add_column(head, justify="right")
    for client, row in enumerate(counts):
        table.add_row(str(client), str(sum(row)), *(str(count) if count else "·" for count in row))
    return table
