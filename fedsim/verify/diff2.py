"""DIFF2 (arXiv 2302.03884)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedsim.errors import DataMissing
from fedsim.privacy import diff2_noise, diff2_releases, epsilon
from fedsim.scenario import Scenario, read
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim

PARTS = ("fedsim.privacy.calibration", "fedsim.privacy.accounting", "strategies.diff2", "fedsim.data.regression")
DRAWN = ("gradient_norm",)
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "diff2_filter.json"
SHOWN = {"kept": "malicious messages kept (a coin: .5)", "asr": "ASR", "bare_asr": "ASR without the filter",
         "accuracy": "main accuracy", "bare_accuracy": "main accuracy without the filter"}  # fmt: skip

CURVES = (("dp_gd", "#d55e00", "DP-GD"), ("diff2", "#0072b2", "DIFF2"))


def _near(text: str, value: float, share: float = 6e-4) -> tuple[str, float, float]:
    return text, value * (1 - share), value * (1 + share)


@claim(
    {
        "gd_sigma1": Expected("σ1 at T = 1", *_near("9.3834e-3", 9.3834e-3, 6e-6)),
        "gd_rdp": Expected("ε of it by RDP", *_near("2.541", 2.541)),
        "gd_pld": Expected("ε of it by PLD", *_near("2.341", 2.341)),
        "sigma1": Expected("σ1 at T = 6", *_near("4.2872e-3", 4.2872e-3, 1.2e-5)),
        "sigma2": Expected("σ2 at T = 6", *_near("2.0982e-2", 2.0982e-2, 2.5e-5)),
        "rdp": Expected("ε of it by RDP", *_near("2.494", 2.494)),
        "pld": Expected("ε of it by PLD", *_near("2.297", 2.297)),
    },
    source="the paper's calibration at ε = 3, δ = 1e-5, R = 2000, P = 10, n_min = 1651, ⌈R/T⌉ in place of R/T",
    exact=True,
)
def calibration(seed: int) -> Measured:
    """Noise by the paper's formulas, ε by the accountants: the calibration is about 22 % loose."""
    values: dict[str, float] = {}
    for prefix, restart in (("gd_", 1), ("", 6)):
        sigma1, sigma2 = diff2_noise(3.0, 1e-5, 2000, restart, 10, 1651, calibration="paper")
        releases = diff2_releases(sigma1, sigma2, 2000, restart, 10, 1651)
        values |= {f"{prefix}sigma1": sigma1, f"{prefix}sigma2": sigma2}
        for accountant in ("rdp", "pld"):
            values[prefix + accountant] = epsilon(releases, 1e-5, accountant=accountant)
    return Measured(values)


def _beside(name: str, seed: int) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """DP-GD beside DIFF2 at the points of a scenario's matrix: numbers of both, and the rounds that were evaluated."""
    tables = read(name)
    points = {point["name"]: point for point in tables.pop("matrix")["server.estimator"]}
    lines: dict[str, list[dict[str, Any]]] = {}
    for method, point in points.items():
        scenario = Scenario(**tables).changed(seed=seed, **{"server.estimator": point, "engine.workers": 1})
        lines[method] = [line for line in simulate(scenario).lines if line.get("gradient_norm") is not None]
    squares = {method: [line["gradient_norm"] ** 2 for line in found] for method, found in lines.items()}
    half = {
        method: [
            square for line, square in zip(found, squares[method], strict=True) if line["round"] > tables["rounds"] / 2
        ]
        for method, found in lines.items()
    }
    means = {method: sum(each) / len(each) for method, each in half.items()}
    values = {"ratio": means["dp_gd"] / means["diff2"], "last": squares["dp_gd"][-1] / squares["diff2"][-1]}
    for method, found in lines.items():
        values[f"{method}_square"] = squares[method][-1]
        values[f"{method}_loss"] = float(found[-1]["loss"])
    return values, lines


@claim(
    {
        "ratio": Expected(
            "squared gradient norm of DP-GD over that of DIFF2, means over rounds 501 to 1000", "5 to 12", 2.0
        ),
        "half": Expected("share of seeds on which DIFF2's is at most half of DP-GD's, the same means", "1", 1.0, 1.0),
        "last": Expected("the same ratio after the last round alone, which is one draw", "–"),
        "diff2_square": Expected("squared gradient norm of DIFF2 after the last round", "–"),
        "dp_gd_square": Expected("the same of DP-GD", "–"),
        "loss": Expected("test loss of DIFF2 less that of DP-GD", "not always lower"),
    },
    source="Section 6: the gradient's norm at ε = 3; synthetic regression, N = 16,512; tuned on seeds 100 and 101: "
    "tuning costs privacy that is not counted; the fourth task, chosen for its lead on other seeds "
    "(docs/papers/diff2.md)",
    seeds=5,
    quick=False,
)
def gradient_norm(seed: int) -> Measured:
    """What the theorem bounds, both methods at the points that `papers/diff2` was tuned to on other seeds."""
    values, lines = _beside("papers/diff2", seed)
    values |= {"half": float(values["ratio"] >= 2), "loss": values.pop("diff2_loss") - values.pop("dp_gd_loss")}
    series = {method: [float(line["gradient_norm"]) ** 2 for line in found] for method, found in lines.items()}
    return Measured(values, series | {"rounds": [float(line["round"]) for line in lines["diff2"]]})


@claim(
    {
        "ratio": Expected("squared gradient norm of DP-GD over that of DIFF2, means over rounds 501 to 1000", "–"),
        "last": Expected("the same after the last round", "–"),
        "diff2_square": Expected("squared gradient norm of DIFF2 after the last round", "–"),
        "dp_gd_square": Expected("the same of DP-GD", "–"),
        "diff2_loss": Expected("test loss of DIFF2", "–"),
        "dp_gd_loss": Expected("test loss of DP-GD", "–"),
    },
    source="papers/diff2_diabetes: 353 examples, ε = 3; tuned on seeds 100 and 101, which no ε counts",
    seeds=5,
    quick=False,
)
def diabetes(seed: int) -> Measured:
    """Both methods at the points that `papers/diff2_diabetes` names."""
    values, _ = _beside("papers/diff2_diabetes", seed)
    return Measured(values)


@claim(
    {
        "ratio": Expected("squared gradient norm of DP-GD over that of DIFF2, means over rounds 51 to 100", "–"),
        "last": Expected("the same after the last round", "–"),
        "diff2_square": Expected("squared gradient norm of DIFF2 after the last round", "–"),
        "dp_gd_square": Expected("the same of DP-GD", "–"),
        "diff2_loss": Expected("test loss of DIFF2", "–"),
        "dp_gd_loss": Expected("test loss of DP-GD", "–"),
        "diff2_accuracy": Expected("accuracy of DIFF2", "–"),
        "dp_gd_accuracy": Expected("accuracy of DP-GD", "–"),
    },
    source="papers/diff2_fashion_mnist: logistic, 60,000 examples, ε = 3; tuned on seeds 100 and 101, which no ε "
    "counts",
    seeds=5,
    quick=False,
)
def fashion_mnist(seed: int) -> Measured:
    """Both methods at the points that `papers/diff2_fashion_mnist` names."""
    values, lines = _beside("papers/diff2_fashion_mnist", seed)
    return Measured(values | {f"{method}_accuracy": float(found[-1]["accuracy"]) for method, found in lines.items()})


@claim(
    {
        f"eps_{level}_restart_{restart}_{name}": Expected(
            f"behind the filter at ε = {level}, T = {restart}: {words}", "–"
        )
        for restart in (1, 10)
        for level in ("inf", "128", "32", "8")
        for name, words in SHOWN.items()
    },
    source="papers/diff2_filter, 48 cells, three seeds, means over the last five rounds; read from docs/results",
    exact=True,
)
def behind_the_filter(seed: int) -> Measured:
    """DIFF2 with local noise behind the multi-metric filter: the grid that `fedsim bench` ran."""
    if not RESULTS.exists():
        made = "`fedsim bench papers/diff2_filter` and `fedsim results papers/diff2_filter --json --out FILE` make it"
        raise DataMissing(f"{RESULTS}: not there; {made}")
    cells: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in json.loads(RESULTS.read_text()):
        where = f"eps_{float(row['privacy.epsilon']):g}_restart_{row['server.estimator.restart']}_"
        cells.setdefault((where, row["defense"] != "fedavg"), []).append(row)
    values: dict[str, float] = {}
    for (where, filtered), rows in cells.items():
        success, accuracy = (sum(row[name] for row in rows) / len(rows) for name in ("asr", "accuracy"))
        if not filtered:
            values |= {f"{where}bare_asr": success, f"{where}bare_accuracy": accuracy}
            continue
        kept = sum(row["attacker_rows_kept"] for row in rows) / sum(row["attacker_rows"] for row in rows)
        values |= {f"{where}kept": kept, f"{where}asr": success, f"{where}accuracy": accuracy}
    return Measured(values)


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    """Squared gradient norms over the rounds, a thin line a seed."""
    axes = figure.subplots()
    axes.set_gid("gradient_norm")
    for number, measured in enumerate(found.get("gradient_norm", ())):
        for name, colour, words in CURVES if measured.series else ():
            label = words if number == 0 else None
            axes.semilogy(measured.series["rounds"], measured.series[name], color=colour, alpha=0.6, lw=1, label=label)
    axes.set(xlabel="round", ylabel="squared gradient norm")
    if axes.lines:
        axes.legend(frameon=False)
