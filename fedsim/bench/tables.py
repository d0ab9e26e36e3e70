"""A benchmark's tables: means over seeds with intervals, differences, and the ranking by the worst attack."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedsim.analysis.ranking import rank_by_worst
from fedsim.analysis.statistics import Interval, bootstrap_interval, holm, paired_difference, paired_p_value, t_interval
from fedsim.bench.results import NUMBERS, keys
from fedsim.errors import FedsimError

if TYPE_CHECKING:
    import pandas as pd

MEASURES = {"accuracy": (0.0, 1.0), "asr": (0.0, 1.0), "utility_lost": (-1.0, 1.0), "asr_gain": (-1.0, 1.0)}
"""What is averaged over seeds, and between which values it lies: an interval that reaches beyond ends there."""
AFTERMATH = ("recovery", "survival")
"""Rounds until something is over: a run that ended before has none, and the mean of the others is too small."""
Method = Literal["t", "bootstrap"]


def over_seeds(frame: pd.DataFrame, interval: Method = "t") -> pd.DataFrame:
    """A row a setting: what its seeds have in common.

    Args:
        frame: cells, as :func:`fedsim.bench.results` gives them.
        interval: ``t`` (Student) or ``bootstrap``; too short below ten seeds, see docs/statistics.md.

    Returns:
        ``defense``, ``attack``, ``dataset``, ``partition``, other keys of the matrix, ``cells``, ``seeds`` (finished
        ones), ``failed``, then for each measure ``NAME``, ``NAME_low``, ``NAME_high``; ``floor``, ``seconds`` a round,
        ``worst10`` (accuracy of the worst tenth of the clients), ``recovery`` and ``survival`` (rounds, of those seeds
        whose run saw the end, see :func:`fedsim.report.aftermath.aftermath`) with ``recovery_seeds`` and
        ``survival_seeds`` (how many did), ``chance``, ``attacker_rows``, ``attacker_rows_kept``, ``last_rounds``, and
        ``marks``: ``a`` in some seed no attack took place, ``d`` in some seed the defense never changed an aggregate,
        ``1`` a single seed.
    """
    import pandas as pd

    rows = []
    for setting, group in frame.groupby("setting", sort=False):
        done = group[group["state"] == "finished"]
        row: dict[str, Any] = {name: group[name].iloc[0] for name in keys(frame.columns)}
        row |= {"cells": len(group), "seeds": len(done), "failed": int((group["state"] == "failed").sum())}
        for name, (least, most) in MEASURES.items():
            found = _interval([float(value) for value in done[name]], interval)
            low, high = (float(np.clip(end, least, most)) for end in (found.low, found.high))
            row |= {name: found.mean, f"{name}_low": low, f"{name}_high": high}
        for name in ("floor", "seconds", "chance", "worst10", *AFTERMATH):
            known = int(done[name].notna().sum()) if name in done else 0
            row[name] = float(done[name].mean()) if known else math.nan
            if name in AFTERMATH:
                row[f"{name}_seeds"] = known
        for name in ("attacker_rows", "attacker_rows_kept"):
            row[name] = int(done[name].sum())
        row["last_rounds"] = int(done["last_rounds"].min()) if len(done) else 0
        single = "1" if len(done) == 1 else ""
        row["marks"] = "".join(mark for mark in "ad" if done["marks"].str.contains(mark).any()) + single
        rows.append(row | {"setting": setting})
    return pd.DataFrame(rows)


def differences(frame: pd.DataFrame, baseline: str = "fedavg", measure: str = "accuracy") -> pd.DataFrame:
    """Each defense against one of them, paired by seed; the p values of the table are adjusted together (Holm).

    Args:
        frame: cells, as :func:`fedsim.bench.results` gives them.
        baseline: the defense that the others are compared with, as column ``defense`` writes it.
        measure: column that is compared.

    Returns:
        ``defense``, ``attack``, ``dataset``, ``partition``, ``pairs``, ``difference``, ``low``, ``high``, ``p`` and
        ``p_holm``.

    Raises:
        FedsimError: no cell has that defense, no such measure, or one of rounds until something is over that some run
            did not see: what is over late would be left out.
    """
    import pandas as pd

    measured = [name for name in (*NUMBERS, "utility_lost", "asr_gain") if name in frame]
    if measure not in measured:
        raise FedsimError(f"differences: given measure '{measure}'; accepted: one of: {', '.join(measured)}")
    if baseline not in set(frame["defense"]):
        known = ", ".join(sorted(set(frame["defense"])))
        raise FedsimError(f"differences: given {measure} against '{baseline}'; accepted: one of: {known}")
    done = frame[frame["state"] == "finished"]
    alike = [name for name in keys(done.columns) if name != "defense"]
    if measure in AFTERMATH:
        _check_over(done, alike, measure)
    done = done[done[measure].notna()]
    base = {
        (*row[:-2], row[-2]): row[-1] for row in done[done["defense"] == baseline][[*alike, "seed", measure]].to_numpy()
    }
    rows = []
    others = done[done["defense"] != baseline]
    for where, group in others.groupby(["defense", *alike], sort=False):
        pairs = [
            (v, base[(*where[1:], s)])
            for s, v in zip(group["seed"], group[measure], strict=True)
            if (*where[1:], s) in base
        ]
        if not pairs:
            continue
        ours, theirs = [float(one) for one, _ in pairs], [float(other) for _, other in pairs]
        found = paired_difference(ours, theirs)
        row = dict(zip(("defense", *alike), where, strict=True))
        row |= {"pairs": len(pairs), "difference": found.mean, "low": found.low, "high": found.high}
        rows.append(row | {"p": paired_p_value(ours, theirs)})
    table = pd.DataFrame(rows)
    if len(table):
        table["p_holm"] = holm(table["p"].to_numpy())
    return table


def ranking(
    frame: pd.DataFrame, measure: Literal["harm", "utility_lost", "asr_gain"] = "harm", interval: Method = "t"
) -> pd.DataFrame:
    """The defenses by their worst case: over attacks, data sets and partitions, the largest mean over seeds.

    Args:
        frame: cells, as :func:`fedsim.bench.results` gives them; those with the same seed are paired.
        measure: ``harm`` is the larger of utility lost and ASR above its floor, unknown where utility lost is.
        interval: of ``worst``: ``t`` (Student) or ``bootstrap``; too short below ten seeds, see docs/statistics.md.

    Returns:
        ``place`` (1 + the number of defenses that are surely ahead), ``defense``, ``worst``, ``low``, ``high``,
        ``under`` (the attack and setting that does it), ``ahead`` (share of the resamples in which it is ahead of the
        next one), ``seeds``, ``marks``, in the order of ``worst``. Defenses for which an attack was not measured are
        left out: a worst case over less looks better.
    """
    import pandas as pd

    done = frame[(frame["state"] == "finished") & frame["attacked"]].copy()
    # Where the accuracy that was lost is unknown, the ASR alone would pass for all the harm.
    done["harm"] = done[["utility_lost", "asr_gain"]].max(axis=1).where(done["utility_lost"].notna())
    varied = [name for name in keys(done.columns) if name != "defense" and done[name].nunique() > 1] or ["attack"]
    if done.empty or not done[measure].notna().any():
        return pd.DataFrame(columns=["place", "defense", "worst", "low", "high", "under", "ahead", "seeds", "marks"])
    done["under"] = [", ".join(str(row[name]) for name in varied) for _, row in done.iterrows()]
    table = done.pivot_table(index=["defense", "under"], columns="seed", values=measure, aggfunc="mean", dropna=False)
    unders = list(dict.fromkeys(done[done[measure].notna()]["under"]))
    names = [
        name
        for name in dict.fromkeys(done["defense"])
        if all((name, under) in table.index and table.loc[(name, under)].notna().any() for under in unders)
    ]
    if not names:
        return pd.DataFrame(columns=["place", "defense", "worst", "low", "high", "under", "ahead", "seeds", "marks"])
    harm = np.stack([np.stack([table.loc[(name, under)].to_numpy(dtype=float) for under in unders]) for name in names])
    # Defenses are compared on the seeds that all of them have: one that missed a hard seed would look better.
    shared = ~np.isnan(harm).any(axis=(0, 1))
    if shared.any():
        harm = harm[:, :, shared]
    rows = []
    for each in rank_by_worst(names, harm, interval=interval):
        cells = done[done["defense"] == each.name]
        here = cells[cells["under"] == unders[each.attack]]
        rows.append(
            {
                "place": each.place,
                "defense": each.name,
                "worst": each.worst,
                "low": float(np.clip(each.low, -1.0, 1.0)),
                "high": float(np.clip(each.high, -1.0, 1.0)),
                "under": unders[each.attack],
                "ahead": each.ahead,
                "seeds": int(shared.sum()) if shared.any() else int(here["seed"].nunique()),
                "marks": "".join(mark for mark in "ad" if cells["marks"].str.contains(mark).any()),
            }
        )
    return pd.DataFrame(rows)


def _check_over(done: pd.DataFrame, alike: list[str], measure: str) -> None:
    for _, group in done.groupby(alike, sort=False):
        seen = int(group[measure].notna().sum())
        if 0 < seen < len(group):
            raise FedsimError(
                f"differences: given measure '{measure}', which {len(group) - seen} of {len(group)} runs under "
                f"{group['attack'].iloc[0]} did not see the end of; accepted: where all did (longer runs, or `--where`)"
            )


def _interval(values: list[float], method: Method) -> Interval:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Interval(math.nan, math.nan, math.nan, 0)
    return t_interval(known) if method == "t" else bootstrap_interval(known)


__all__ = ["differences", "over_seeds", "ranking"]
