"""Local optimizers and learning-rate schedules, each usable alone in a plain PyTorch loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.rooms import furnish

if TYPE_CHECKING:
    from fedsim.optim import gns as gns
    from fedsim.optim.softmax_radius import RadiusControl as RadiusControl
    from fedsim.optim.softmax_radius import softmax_radius as softmax_radius

furnish(
    __name__,
    {
        "RadiusControl": "fedsim.optim.softmax_radius",
        "gns": "fedsim.optim.gns",
        "softmax_radius": "fedsim.optim.softmax_radius",
    },
)
