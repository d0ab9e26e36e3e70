"""Which measures of a run become which charts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsim.report import words
from fedsim.report.figures import MANY, Axis, Chart, Hint, Series, curves, distribution
from fedsim.report.folder import Floats, RunFolder, finite
from fedsim.report.measures import Measures


def progress(run: RunFolder, measures: Measures, aside: str = "") -> Chart | None:
    """Main accuracy and ASR over rounds, the floor, and the rounds in which an attacker was kept.

    Args:
        run: the run.
        measures: its headline.
        aside: what is to be said of who was kept, e.g. "outside the guarantee".
    """
    accuracy, asr = run.series("accuracy"), run.series("asr")
    if not accuracy[0] and not asr[0]:
        return None
    series = []
    if accuracy[0]:
        series.append(Series("main-task accuracy", "main", *accuracy))
    if asr[0]:
        low, high = run.series("asr_low"), run.series("asr_high")
        band = (low[1], high[1]) if low[0] == high[0] == asr[0] else ((), ())
        name = "attack success rate" + (" with 95\u202f% interval" if band[0] else "")
        series.append(Series(name, "attack", *asr, *band))
    numbers, floor = run.floor
    if len(floor) == 1:
        numbers, floor = [0, run.last_round], floor * 2
    if floor:
        series.append(Series("ASR floor, without attack", "floor", numbers, floor, form="level"))
    slips = measures.passed.slips if measures.passed else ()
    few = 0 < len(slips) < len(run.rounds) / 2
    return curves(
        "Main accuracy and attack success rate",
        series,
        run.last_round,
        marks=slips if few else (),
        hints=_hints(run, aside) if len(run.rounds) <= 1001 else (),
        pixels=280,
        note=f"Ticks at the bottom: rounds in which an attacker was kept{aside and f' ({aside})'}." if few else "",
    )


def weight(run: RunFolder, measures: Measures) -> Chart | None:
    """The weight that malicious clients got, beside their share of the cohort."""
    lines = [line for line in run.rounds if line.get("malicious") and line.get("cohort")]
    if measures.weight is None or not lines:
        return None
    known = [line for line in lines if finite(line.get("malicious_weight")) is not None]
    got = [float(line["malicious_weight"]) for line in known]
    share = [len(line["malicious"]) / len(line["cohort"]) for line in lines]
    numbers = [int(line["round"]) for line in lines]
    many = len(known) > MANY
    chance = (
        Series(
            "by chance: their mean share of the cohort",
            "chance",
            (0, run.last_round),
            (measures.cohort_share,) * 2,
            form="level",
        )
        if many and measures.cohort_share is not None
        else Series("by chance: their share of the cohort", "chance", numbers, share, form="dashes")
    )
    return curves(
        "Weight that the malicious got",
        [
            Series("their weight in the aggregate", "attack", [line["round"] for line in known], got, form="stems"),
            chance,
        ],
        run.last_round,
        y=Axis(0.0, min(1.0, max([*got, *share, 0.05]) * 1.15)),
        note="" if many else "Rounds with at least one malicious client; a dot on the axis is a weight of zero.",
    )


def scores(run: RunFolder) -> list[Chart]:
    """One distribution a scoring part, of scores beside the median of their round: scales differ between rounds."""
    malicious = run.clients.malicious
    found = []
    for name, values in run.clients.scores.items():
        medians = _round_medians(run.clients.round, values)
        ratio = bool((medians[np.isfinite(medians)] > 0).all())
        relative = values / medians if ratio else values - medians
        note = (
            "Each score "
            + ("divided by" if ratio else "minus")
            + " the median of its round, since scales differ between rounds."
        )
        chart = distribution(name, relative[~malicious], relative[malicious], note)
        if chart is not None:
            found.append(chart)
    return found


def _round_medians(rounds: NDArray[np.int64], values: Floats) -> Floats:
    """(m,) median of the finite scores of each entry's round; NaN where there is none."""
    medians = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    known = known[np.argsort(rounds[known], kind="stable")]
    for group in np.split(known, np.flatnonzero(np.diff(rounds[known])) + 1):
        if len(group):
            medians[group] = np.median(values[group])
    return medians


def norms(run: RunFolder) -> Chart | None:
    """Median norm of the honest and of the malicious updates."""
    honest, malicious = run.series("norm_honest"), run.series("norm_malicious")
    both = np.array(honest[1] + malicious[1])
    if not len(both):
        return None
    series = [Series("honest, median", "honest", *honest)]
    if malicious[0]:
        every = len(malicious[0]) == len(honest[0])
        series.append(Series("malicious, median", "malicious", *malicious, form="line" if every else "dots"))
    axis = Axis.around(both, log=True)
    return curves("Norms of the updates" + (", logarithmic" if axis.log else ""), series, run.last_round, y=axis)


def losses(run: RunFolder) -> Chart | None:
    """Test loss of the global model and the clients' own training loss."""
    pairs = (("test loss", "main", run.series("loss")), ("clients' training loss", "chance", run.series("train_loss")))
    series = [Series(name, style, *values) for name, style, values in pairs if values[0]]
    if not series:
        return None
    values = np.array([value for one in series for value in one.y])
    axis = Axis.around(values, log=True)
    return curves("Loss" + (", logarithmic" if axis.log else ""), series, run.last_round, y=axis)


def _hints(run: RunFolder, aside: str) -> list[Hint]:
    width = 1000 / max(run.last_round, 1)
    found = []
    for line in run.rounds:
        pieces = [f"round {line['round']}"]
        for key, name in (("accuracy", "accuracy"), ("asr", "ASR")):
            value = finite(line.get(key))
            if value is not None:
                pieces.append(f"{name} {words.percent(value)}")
        if line.get("malicious") and not run.guest:
            kept = f"attackers kept {len(line.get('kept_malicious') or ())} of {len(line['malicious'])}"
            pieces.append(f"{kept} ({aside})" if aside else kept)
        found.append(Hint((line["round"] - 0.5) * width, width, ", ".join(pieces)))
    return found
