"""SAM-GS with two objectives on each client as a user has it: ``with_reconstruction``, ``sam_gs`` and ``adam``.

:mod:`fedsim.verify.two_objectives` does the same in a loop of its own, on three seeds, which cannot tell what ten can.
"""

from __future__ import annotations

from fedsim.scenario import Scenario, read
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim

SCENARIO = "papers/sam_gs_two_objectives"


@claim(
    {
        "sam_gs": Expected("`sam_gs` in front of Adam: test accuracy", "–"),
        "adam": Expected("`adam` on the sum: test accuracy", "–"),
        "gap": Expected(
            "accuracy of `sam_gs` less that of `adam`, paired by seed",
            "no lower",
            -0.13,
            -0.01,
            differs="Ψ stays below .5, so that the reconstruction's gradient, the smaller one, is brought to the size "
            "of the labels' and takes half of each step: what equal sizes buy is the reconstruction, not the labels",
        ),
    },
    source=f"labels and reconstruction on each client, the cells of {SCENARIO}; ours",
    seeds=10,
    quick=False,
    paper="sam_gs",
)
def two_objectives_scenario(seed: int) -> Measured:
    """Both optimizers of the scenario's matrix."""
    tables = read(SCENARIO)
    values: dict[str, float] = {}
    for optimizer in tables.pop("matrix")["client.optimizer"]:
        lines = simulate(Scenario(**tables).changed(seed=seed, **{"client.optimizer": optimizer})).lines
        values[optimizer["name"]] = float(lines[-1]["accuracy"])
    values["gap"] = values["sam_gs"] - values["adam"]
    return Measured(values)
