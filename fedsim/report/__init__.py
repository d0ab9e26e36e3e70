"""Reports: a run's folder as one HTML page, several runs compared, tables for the terminal.

>>> from fedsim.report import compare_report, write_report
>>> write_report("runs/demo")                                   # → runs/demo/report.html
>>> compare_report(["runs/a", "runs/b"], out="compare.html")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Raises:
        FedsimError: the folder holds no run.
        RecordError: the page cannot be written.
    """
    from fedsim.report.page import write_report as write

    return write(Path(folder))


def compare_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write one page that compares several runs.

    Raises:
        FedsimError: no folder, or one that holds no run.
        RecordError: the page cannot be written.
    """
    from fedsim.report.comparison import compare_report as compare

    return compare([Path(folder) for folder in folders], Path(out))


__all__ = ["compare_report", "write_report"]
