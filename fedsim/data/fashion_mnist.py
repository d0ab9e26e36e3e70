"""Fashion-MNIST: 70,000 grey images of clothes, 28 × 28, ten classes.

Xiao, Rasul & Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms", 2017,
1708.07747.
"""

from __future__ import annotations

from pathlib import Path

from fedsim.data import idx
from fedsim.data.examples import DataInfo, Dataset
from fedsim.data.hub import Hub
from fedsim.data.reading import home
from fedsim.registry import register

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
HUB = Hub("zalando-datasets/fashion_mnist", input="image", label="label")


@register("dataset", "fashion_mnist")
class FashionMnist:
    """70,000 grey images of clothes, 28 × 28 pixels, ten classes.

    Args:
        folder: where its four idx files lie; by default Debian's package, then fedsim's own folder, then the hub.
    """

    folder: str | None = None

    def info(self) -> DataInfo:
        files = idx.find(Path(self.folder).expanduser()) if self.folder else None
        return idx.info_of(files, 10) if files else DataInfo((1, 28, 28), 10, train=60000, test=10000)

    def load(self) -> Dataset:
        places = [Path(self.folder).expanduser()] if self.folder else [DEBIAN, home("fashion_mnist")]
        hub = None if self.folder else HUB
        return idx.load_or_hub("fashion_mnist", places, hub, "Debian's package dataset-fashion-mnist")
