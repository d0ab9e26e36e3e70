"""Statistics over rounds and seeds, and diagnostics of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.rooms import furnish

if TYPE_CHECKING:
    from fedsim.analysis import generalization as generalization
    from fedsim.analysis.coherence import Coherence as Coherence
    from fedsim.analysis.coherence import coherence as coherence

furnish(
    __name__,
    {
        "Coherence": "fedsim.analysis.coherence",
        "coherence": "fedsim.analysis.coherence",
        "generalization": "fedsim.analysis.generalization",
    },
)
