"""What a run's page says about privacy: the proof, epsilon over rounds, and which figures no guarantee covers."""

from __future__ import annotations

from fedsim.report.figures import Axis, Chart, Series, curves
from fedsim.report.folder import RunFolder

MARK = "Diagnostic outside the guarantee: computed from private data without noise."
FIGURES = {
    "train_loss": "the clients' training loss",
    "worst10": "the accuracy of single clients",
    "gradient_norm": "the gradient norm on all training data",
    "clipped": "the share of clipped examples",
    "nonfinite": "the number of gradients that were not finite",
}
"""Measures of private data, as rounds.jsonl names them."""
ROWS = {
    "norm_honest": "the norms of the updates",
    "scores": "the scores of the updates",
    "kept": "who was kept, with which weight",
}
"""What is told of single messages, private only where the noise comes after them."""


def outside(run: RunFolder) -> dict[str, str]:
    """Measure → name, of what the page shows though no guarantee covers it; nothing where no part adds noise."""
    if not run.privacy:
        return {}
    found = {key: name for key, name in FIGURES.items() if run.series(key)[0]}
    if run.privacy.get("none") or run.privacy.get("trust") != "local":
        shown = {
            "norm_honest": bool(run.series("norm_honest")[0]),
            "scores": bool(run.clients.scores),
            "kept": any(0 < len(line.get("kept") or ()) < len(line.get("cohort") or ()) for line in run.rounds),
        }
        found |= {key: name for key, name in ROWS.items() if shown[key]}
    if run.partition.get("counts"):
        found["partition"] = "who holds how many examples of which label"
    return found


def marked(chart: Chart | None, outside: bool) -> Chart | None:
    """The chart, its note saying that no guarantee covers it."""
    if chart is not None and outside:
        chart.note = f"{chart.note} {MARK}".strip()
    return chart


def spent(run: RunFolder) -> Chart | None:
    """Epsilon spent after each round."""
    rounds, values = run.series("epsilon")
    if not rounds or not run.privacy or run.privacy.get("none"):
        return None
    name = f"ε at δ = {run.privacy['delta']:g} ({run.privacy['neighbours']}), against {run.privacy['against']}"
    return curves(
        "Privacy spent",
        [Series(name, "main", rounds, values, form="line" if len(rounds) <= 40 else "level")],
        run.last_round,
        y=Axis(0.0, max(values) * 1.05 or 1.0),
        note="ε of everything released up to the round, all rounds together.",
    )
