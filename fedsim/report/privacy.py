"""What a run's page says about privacy: the proof, epsilon over rounds, and which figures no guarantee covers."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.report.figures import Axis, Chart, Series, curves
from fedsim.report.folder import RunFolder
from fedsim.tables import Privacy

MARK = "Diagnostic outside the guarantee: computed from private data without noise."
COHORT_MARK = "Diagnostic outside the guarantee, which counts on nobody seeing who was asked."
ASIDE = "outside the guarantee"
DAGGER = "†"
FIGURES = {
    "train_loss": "the clients' training loss",
    "worst10": "the accuracy of single clients",
    "gradient_norm": "the gradient norm on all training data",
    "friction": "the mean friction of the clients' steps",
    "clipped": "the share of clipped examples",
    "nonfinite": "the number of gradients that were not finite",
}
"""Measures of private data, as rounds.jsonl names them."""
ROWS = {
    "norm_honest": "the norms of the updates",
    "scores": "the scores of the updates",
    "kept": "who was kept, with which weight",
}
"""What is told of single messages, private only where the noise comes before them."""
KEPT_COLUMNS = ("malicious_weight", "true_positive_rate", "false_positive_rate", "auc")
"""Measures of who was kept, as rounds.jsonl names them."""


def outside(run: RunFolder) -> dict[str, str]:
    """Measure → name, of what the page shows though no guarantee covers it; nothing where no part adds noise."""
    if not run.privacy:
        return {}
    found = {key: name for key, name in FIGURES.items() if run.series(key)[0]}
    if run.privacy.get("none") or run.privacy.get("trust") != "local":
        shown = {
            "norm_honest": bool(run.series("norm_honest")[0]),
            "scores": bool(run.clients.scores),
            "kept": _chosen(run),
        }
        found |= {key: name for key, name in ROWS.items() if shown[key]}
    if run.privacy.get("hidden_cohorts"):
        found["cohort"] = "who was asked in which round"
    if run.floor[0]:
        found["floor"] = "the floor (of a second run on the same data, with the same noise)"
    if run.partition.get("counts"):
        found["partition"] = "who holds how many examples of which label"
    if any(line.get("faults") for line in run.rounds):
        found["faults"] = "whose reply was missing or refused"
    return found


def relation(run: RunFolder) -> str:
    """The neighbours that a run's epsilon is about, without which it says nothing."""
    return str(run.scenario.get("privacy", {}).get("neighbours", Privacy().neighbours))


def _chosen(run: RunFolder) -> bool:
    """Whether who was kept may depend on raw messages: somebody was not, or the proof has a part without a bound."""
    if run.guest:
        return False
    unbounded = any(str(cell).startswith("unbounded") for row in run.privacy.get("stages") or () for cell in row[2:3])
    return unbounded or any(len(line.get("kept") or ()) < len(line.get("cohort") or ()) for line in run.rounds)


def note_on_notes(run: RunFolder, notes: Sequence[str]) -> str:
    """What is to be said beneath the run's notes, which tell of raw messages where the noise comes after them."""
    raw = bool(run.privacy) and bool(run.privacy.get("none") or run.privacy.get("trust") != "local")
    told = [note for note in notes if not note.startswith("Privacy:")]
    return "What notes tell of clients' replies is a diagnostic outside the guarantee." if raw and told else ""


def daggers(run: RunFolder) -> set[str]:
    """Columns of the page's table of rounds that no guarantee covers, "attackers" among them."""
    private = outside(run)
    kept = {*KEPT_COLUMNS, "attackers"} if "kept" in private else set()
    return kept | ({"worst10"} & set(private))


def marked(chart: Chart | None, outside: bool, mark: str = MARK) -> Chart | None:
    """The chart, its note saying that no guarantee covers it."""
    if chart is not None and outside:
        chart.note = f"{chart.note} {mark}".strip()
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
