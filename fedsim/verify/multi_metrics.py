"""Multi-metrics against backdoors (arXiv 2303.06601)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import DataMissing
from fedsim.scenario import Scenario, read
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim, curves_of

PARTS = ("strategies.multi_metrics", "strategies.multi_krum", "attacks.edge_case", "attacks.pgd")
RESULTS = Path(__file__).parents[2] / "docs" / "results"
DEFENSES: dict[str, list[Any]] = {
    "fedavg": ["fedavg"],
    "multi_krum": [{"name": "multi_krum", "malicious": 1}],
    "multi_krum_3": [{"name": "multi_krum", "malicious": 1, "keep": 3}],
    "filter": [{"name": "multi_metrics", "keep": 0.3}],
    "filter_median": [{"name": "multi_metrics", "keep": 0.3}, "median"],
}


def _cells(file: str, schedule: str | None, defense: str) -> list[dict[str, Any]]:
    """The rows of a grid's published results, by seed."""
    path = RESULTS / file
    if not path.exists():
        raise DataMissing(f"{path}: not there; `fedsim bench papers/{path.stem}` and `fedsim results` make it")
    found = [
        row
        for row in json.loads(path.read_text())
        if row["values"]["server.defenses"] == DEFENSES[defense]
        and (schedule is None or row["values"]["adversary.schedule"]["name"] == schedule)
    ]
    return sorted(found, key=lambda row: int(row["values"]["seed"]))


def _kept(rows: list[dict[str, Any]]) -> float:
    kept = float(sum(row["attacker_rows_kept"] for row in rows))
    return kept / float(sum(row["attacker_rows"] for row in rows))


@claim(
    {
        "fedavg_kept": Expected("attacker's updates that FedAvg kept (chance 1)", "1", 1, 1),
        "multi_krum_kept": Expected("kept by Multi-Krum, m = n − f (chance .9)", "≥ .9", 0.9),
        "multi_krum_3_kept": Expected("kept by Multi-Krum, m = 3 (chance .3)", "–"),
        "filter_kept": Expected("kept by the filter, p = .3 (chance .3)", "≤ .02", None, 0.02),
        "fedavg_asr": Expected("backdoor's success against FedAvg, least of five seeds", "≥ .90", 0.9),
        "filter_asr_low": Expected(
            "success against the filter, least of five seeds",
            ".06",
            0.25,
            0.45,
            differs="as a mean over the last five rounds. How much of the backdoor the few slips leave hangs on the "
            "rounds in which they fall, so that seeds lie between .35 and .86; why none of ours is as low is not known",
        ),
        "filter_asr_high": Expected("success against the filter, largest of five seeds", ".86", 0.8, 0.92),
        "median_seeds": Expected(
            "seeds of five on which the median behind the filter ends within .10 of its floor",
            "≥ 4",
            3,
            None,
            differs="three seeds of five as a mean of the last five rounds, and a fourth at .108; at the last "
            "round alone four of five. One seed ends .40 above its floor: nine slips are more than the median outvotes",
        ),
        "price": Expected("main accuracy of FedAvg less that of filter and median", ".03 to .14", 0.0, 0.15),
        "tenth_filter_kept": Expected("an attacker in every tenth round: kept by the filter", "–", None, 0.15),
        "tenth_median_excess": Expected("the same: success less floor behind filter and median, mean", "–", None, 0.1),
        "small_filter_kept": Expected(
            "radius .5 in every round: kept by the filter, where it fails",
            ".26",
            0.6,
            0.85,
            differs="kept nearly three times as often, .66 to .82 by seed. How far honest updates spread beside a "
            "radius of .5 is the setting's; which part of it makes the difference was not measured. That the filter "
            "does not see small steps is the plainer for it",
        ),
        "small_filter_asr": Expected("radius .5: success against the filter", "≥ .9 (.95)", 0.9),
    },
    source="papers/multi_metrics and papers/multi_metrics_small_norm, 70 cells; read from docs/results",
    exact=True,
)
def published(seed: int) -> Measured:
    """The two grids that `fedsim bench` ran: five seeds, means over the last five rounds."""
    every = {name: _cells("multi_metrics.json", "every_round", name) for name in DEFENSES}
    tenth = {name: _cells("multi_metrics.json", "fixed_frequency", name) for name in DEFENSES}
    small = _cells("multi_metrics_small_norm.json", None, "filter")
    values = {f"{name}_kept": _kept(every[name]) for name in ("fedavg", "multi_krum", "multi_krum_3", "filter")}
    success = {name: [float(row["asr"]) for row in rows] for name, rows in every.items()}
    over = [row["asr"] - row["floor"] for row in every["filter_median"]]
    accuracy = {name: float(np.mean([row["accuracy"] for row in rows])) for name, rows in every.items()}
    values |= {
        "fedavg_asr": min(success["fedavg"]),
        "filter_asr_low": min(success["filter"]),
        "filter_asr_high": max(success["filter"]),
        "median_seeds": float(sum(each <= 0.1 for each in over)),
        "price": accuracy["fedavg"] - accuracy["filter_median"],
        "tenth_filter_kept": _kept(tenth["filter"]),
        "tenth_median_excess": float(np.mean([row["asr"] - row["floor"] for row in tenth["filter_median"]])),
        "small_filter_kept": _kept(small),
        "small_filter_asr": float(np.mean([row["asr"] for row in small])),
    }
    floors = {f"{name} floor": [float(row["floor"]) for row in rows] for name, rows in every.items()}
    return Measured(values, success | floors)


@claim(
    {
        "kept": Expected("attacker's updates that the filter kept, of 200", "0 to 4", None, 4),
        "asr": Expected("backdoor's success at the end, one seed", ".06 to .86", 0.06, 0.86),
        "same": Expected(
            "digests equal to the published one's",
            "1 on the machine that published it",
            differs="a digest is equal under the same code on the same processor: sums in another order, or a round's "
            "line that has gained a measure since, change it; the two rows above hold all the same",
        ),
    },
    source="papers/multi_metrics, an attacker in every round, the filter: run again",
    seeds=1,
    quick=False,
)
def again(seed: int) -> Measured:
    """One cell of the published grid, once more."""
    table = {key: value for key, value in read("papers/multi_metrics").items() if key != "matrix"}
    scenario = Scenario(**{**table, "seed": seed})
    result = simulate(scenario)
    kept = sum(len(line["kept_malicious"]) for line in result.lines)
    rows = _cells("multi_metrics.json", "every_round", "filter")
    digests = [row["digest"] for row in rows if row["values"]["seed"] == seed]
    success = float(np.mean([line["asr"] for line in result.lines if line["asr"] is not None][-5:]))
    return Measured({"kept": float(kept), "asr": success, "same": float(result.digest in digests)})


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    axes, series = figure.subplots(), curves_of(found, "published")
    axes.set_gid("published")
    for at, name in enumerate(DEFENSES if series else ()):
        success, floors = series[name], series[f"{name} floor"]
        axes.plot(success, [at + 0.08] * len(success), "o", color="C3", label=None if at else "success, five seeds")
        axes.plot(floors, [at - 0.08] * len(floors), "|", color="0.4", label=None if at else "without the attack")
    labels = ("FedAvg", "Multi-Krum, m = 9", "Multi-Krum, m = 3", "multi-metrics", "multi-metrics, median")
    axes.set_yticks(range(len(DEFENSES)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="backdoor's success, an attacker in every round", xlim=(0, 1))
    if series:
        axes.legend(fontsize=7, loc="lower right")
