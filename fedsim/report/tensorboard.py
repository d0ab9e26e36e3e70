"""Measures of each round for TensorBoard.

TensorBoard, https://www.tensorflow.org/tensorboard.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.errors import FedsimError
from fedsim.registry import register
from fedsim.report.tracker import EXTRA, Tracker, measures

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@register("tracker", "tensorboard")
class TensorBoard(Tracker):
    """Writes event files: ``tensorboard --logdir runs`` shows them.

    Args:
        folder: of the event files, in a benchmark of a folder for each cell; by default ``tensorboard`` in the run's,
            which also comes back from the other machines of a cluster, while any other folder is one of theirs.
    """

    folder: str | None = None

    def ready(self) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise FedsimError(f"tracker 'tensorboard': is not installed: {EXTRA}") from error

    def settle(self, bench: Path) -> None:
        if self.folder is not None:
            self.folder = str(Path(self.folder).expanduser().absolute())

    def in_cell(self, cell: Path) -> None:
        if self.folder is not None:
            self.folder = str(Path(self.folder) / cell.name)

    def begin(self, scenario: Scenario, folder: Path | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self.folder is None and folder is None:
            raise FedsimError("tracker 'tensorboard': given no folder; accepted: folder = '…', or a run with a folder")
        place = Path(self.folder).expanduser() if self.folder is not None else Path(folder or "") / "tensorboard"
        self._writer: Any = SummaryWriter(str(place))
        self._writer.add_text("scenario", f"```toml\n{scenario.toml()}\n```")

    def round(self, line: Mapping[str, Any]) -> None:
        for name, value in measures(line):
            self._writer.add_scalar(name, value, int(line["round"]))
        self._writer.flush()

    def end(self, finished: bool, facts: Mapping[str, str]) -> None:
        self._writer.close()
