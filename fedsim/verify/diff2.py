"""DIFF2 (arXiv 2302.03884)."""

from __future__ import annotations

from typing import Any

from fedsim.privacy import diff2_noise, diff2_releases, epsilon
from fedsim.scenario import Scenario, read
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim

PARTS = ("fedsim.privacy.calibration", "fedsim.privacy.accounting", "strategies.diff2", "fedsim.data.regression")


CURVES = (
    ("dp_gd", "#d55e00", "DP-GD"),
    ("same_rate", "#cc79a7", "DP-GD at DIFF2's rate"),
    ("diff2", "#0072b2", "DIFF2"),
)


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


@claim(
    {
        "ratio": Expected(
            "squared gradient norm of DP-GD over that of DIFF2, means over the second half of the rounds",
            "5 to 12",
            1.3,
            5.0,
            differs="ahead on every seed, but one of them carries the mean: 12, where the others have 1.3 to 4.3; the "
            "task is one of several, taken for DIFF2's lead on the seeds of the tuning (docs/papers/diff2.md)",
        ),
        "half": Expected(
            "share of seeds on which DIFF2's is at most half of DP-GD's",
            "1",
            0.6,
            0.6,
            differs="DIFF2 is ahead on every seed, by 2.2, 12, 1.3, 4.3 and 1.96 times, at most half on three of five: "
            "it arrives sooner, and by the last rounds DP-GD at half of its rate has come to the same floor. At one "
            "rate for both it is at most a sixth on every seed",
        ),
        "last": Expected("the same after the last round alone", "5 to 12"),
        "rate": Expected("the same, DP-GD at DIFF2's rate in place of its own, which is half of it", "5 to 12", 5.0),
        "loss": Expected("test loss of DIFF2 less that of DP-GD", "not always lower"),
    },
    source="Section 6: the gradient's norm at ε = 3; synthetic regression, N = 16,512",
    seeds=5,
    quick=False,
)
def gradient_norm(seed: int) -> Measured:
    """What the theorem bounds, both methods at the points that `papers/diff2` was tuned to on other seeds."""
    tables = read("papers/diff2")
    points = {point["name"]: point for point in tables.pop("matrix")["server.estimator"]}
    points["same_rate"] = points["dp_gd"] | {"lr": points["diff2"]["lr"]}
    found: dict[str, tuple[float, float, float]] = {}
    series: dict[str, list[float]] = {}
    for name, point in points.items():
        scenario = Scenario(**tables).changed(seed=seed, **{"server.estimator": point, "engine.workers": 1})
        lines = simulate(scenario).lines
        norms = {line["round"]: line["gradient_norm"] ** 2 for line in lines if line.get("gradient_norm") is not None}
        last = [norm for number, norm in norms.items() if number > 0.5 * scenario.rounds]
        found[name] = (sum(last) / len(last), last[-1], float(lines[-1]["loss"]))
        series["rounds"], series[name] = [float(number) for number in norms], list(norms.values())
    ours, theirs = found["diff2"], found["dp_gd"]
    ratio = theirs[0] / ours[0]
    values = {"ratio": ratio, "half": float(ratio >= 2), "last": theirs[1] / ours[1], "loss": ours[2] - theirs[2]}
    values["rate"] = found["same_rate"][0] / ours[0]
    return Measured(values, series)


def draw(figure: Any, found: dict[str, list[Measured]]) -> None:
    """Squared gradient norms over the rounds, a thin line a seed."""
    axes = figure.subplots()
    for number, measured in enumerate(found.get("gradient_norm", ())):
        for name, colour, words in CURVES:
            label = words if number == 0 else None
            axes.semilogy(measured.series["rounds"], measured.series[name], color=colour, alpha=0.6, lw=1, label=label)
    axes.set(xlabel="round", ylabel="squared gradient norm")
    axes.legend(frameon=False)
