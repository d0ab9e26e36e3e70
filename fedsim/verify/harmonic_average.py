"""Harmonic heads under label skew: the prototypes averaged plainly, and by the examples of their class."""

from __future__ import annotations

from fedsim.scenario import Scenario, read
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim

SCENARIO = "papers/harmonic_average"
LAST = 5


@claim(
    {
        "plain": Expected("plain average: test accuracy, mean over the last five rounds", "–"),
        "by_class": Expected("`prototype_average`: the same", "–"),
        "gap": Expected(
            "`prototype_average` less the plain average, paired by seed",
            "no lower",
            -0.08,
            0.0,
            differs="the push that an absent class's prototype gets from clients without it seems to be needed where a "
            "client has so few classes: masked, as much is lost",
        ),
        "masked_gap": Expected("the same with absent classes masked in the loss", "no lower", -0.05, 0.05),
    },
    source=f"two labels a client, the cells of {SCENARIO}; ours",
    quick=False,
    paper="harmonic",
)
def prototypes(seed: int) -> Measured:
    """The four cells of the scenario's matrix."""
    tables = read(SCENARIO)
    matrix = tables.pop("matrix")
    found = {}
    for loss in matrix["client.loss"]:
        for defenses in matrix["server.defenses"]:
            changes = {"seed": seed, "client.loss": loss, "server.defenses": defenses}
            lines = simulate(Scenario(**tables).changed(**changes)).lines
            last = [line["accuracy"] for line in lines if line["accuracy"] is not None][-LAST:]
            found[bool(loss.get("mask_absent")), defenses[0]] = sum(last) / len(last)
    values = {"plain": found[False, "fedavg"], "by_class": found[False, "prototype_average"]}
    values["gap"] = values["by_class"] - values["plain"]
    values["masked_gap"] = found[True, "prototype_average"] - found[True, "fedavg"]
    return Measured(values)
