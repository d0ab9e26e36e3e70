"""Commands around benchmarks: ``results``, ``merge``, and what ``bench`` prints in the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedsim import terminal
from fedsim.errors import FedsimError
from fedsim.report import words

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

FAILED = 1
LEGEND = {
    "a": "a: in some seed no attack took place",
    "d": "d: in some seed the defense never changed an aggregate, the result is that of plain averaging",
    "1": "1: a single seed, so no interval and no order",
}
EXTRAS = {
    "worst10": ("worst 10 %", "{:.3f}"),
    "recovery": ("recovery", "{:.1f}"),
    "survival": ("survival", "{:.1f}"),
    "seconds": ("s a round", "{:.2f}"),
}
"""What stands in further columns where any setting has it: head, and how a mean is written."""
MEANS = {"accuracy": "accuracy", "asr": "ASR", "utility_lost": "utility lost"}


def add(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (results, merge):
        app.command()(command)


def results(
    source: Annotated[str, typer.Argument(metavar="FILE|DIR", help="Folder of a benchmark, or its scenario file.")],
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COND", help="NAME OP VALUE, e.g. defense=krum, 'seed<3', data.clients=40; all must hold."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="DEFENSE", help="Differences to this defense, paired by seed, Holm's p.")
    ] = None,
    measure: Annotated[str | None, typer.Option(help="Column that --against compares; by default accuracy.")] = None,
    interval: Annotated[
        str | None, typer.Option(help="t (by default), or bootstrap (from ten seeds on, see docs/statistics.md).")
    ] = None,
    rounds: Annotated[bool, typer.Option("--rounds", help="A row a round, for --csv, --parquet and --json.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="The cells as CSV.")] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="The cells as Parquet; needs --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The cells as JSON, one list of objects.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write to, in place of standard output.")] = None,
) -> None:
    """Show what a benchmark found: means over seeds with intervals, the ranking by the worst attack."""
    from fedsim import bench

    if csv + parquet + json > 1:
        raise typer.BadParameter("one of --csv, --parquet and --json")
    if interval not in (None, "t", "bootstrap"):
        raise typer.BadParameter(f"--interval: given '{interval}'; accepted: t, bootstrap")
    exports = csv or parquet or json
    if out is not None and not exports:
        raise typer.BadParameter("--out: accepted with --csv, --parquet or --json")
    if against is not None and exports:
        raise typer.BadParameter("--against: accepted without --csv, --parquet and --json, which write the cells")
    if measure is not None and against is None:
        raise typer.BadParameter("--measure: accepted with --against DEFENSE")
    if interval is not None and (against is not None or exports):
        raise typer.BadParameter("--interval: accepted for the table over seeds, without --against and exports")
    frame = bench.results(source, where or (), "rounds" if rounds else "cells")
    if exports:
        _export(frame, "csv" if csv else "parquet" if parquet else "json", out)
    elif rounds:
        raise typer.BadParameter("--rounds: accepted with --csv, --parquet or --json")
    elif frame.empty:
        typer.echo(_no_cell(source, where or ()))
    elif against is not None:
        compared = measure or "accuracy"
        terminal.show(differences_table(bench.differences(frame, against, compared)))
        typer.echo(
            f"{compared} minus that of {against}, 95 % intervals, paired by seed; p adjusted over the table (Holm)"
        )
    else:
        show(frame, interval or "t")  # type: ignore[arg-type]
        states = list(frame["state"])
        if set(states) != {"finished"}:
            typer.echo(f"cells   {', '.join(f'{states.count(each)} {each}' for each in dict.fromkeys(states))}")


def merge(
    sources: Annotated[
        list[str], typer.Argument(metavar="DIR…", help="Folders of benchmarks, of this machine or others.")
    ],
    out: Annotated[Path, typer.Option(help="The folder that takes their finished cells.")],
) -> None:
    """Bring the finished cells of several folders into one."""
    from fedsim import bench

    done = bench.merge(sources, out)
    typer.echo(f"added   {done.added} cells to {out}")
    if done.known:
        typer.echo(f"known   {done.known} cells were there, bit for bit")
    if done.unfinished:
        typer.echo(f"left    {len(done.unfinished)} cells that are not finished")
    if done.differ:
        typer.echo(
            f"fedsim: {len(done.differ)} cells have another digest than those in {out}, which stay; "
            f"`fedsim compare` tells how far they are apart: {', '.join(done.differ[:5])}",
            err=True,
        )
        raise typer.Exit(FAILED)


def show(frame: pd.DataFrame, interval: Literal["t", "bootstrap"] = "t") -> None:
    """Print the table over seeds and, where several defenses were attacked, the ranking."""
    from fedsim.bench import over_seeds, ranking

    table = over_seeds(frame, interval)
    terminal.show(settings_table(table))
    last = sorted({int(count) for count in table["last_rounds"] if count})
    how = "Student's t" if interval == "t" else "bootstrap"
    if last:
        rounds = " to ".join(str(count) for count in dict.fromkeys((last[0], last[-1])))
        typer.echo(f"means over the last {rounds} evaluated rounds, then over seeds; 95 % intervals over seeds ({how})")
    if table[["recovery", "survival"]].notna().any(axis=None):
        typer.echo(
            "recovery: rounds from the last attack until accuracy is back within 2 points; survival: until half of\n"
            "the ASR above its floor is gone; (1 of 3): the mean of one seed, whose run saw it, is too small"
        )
    for mark, meaning in LEGEND.items():
        if table["marks"].str.contains(mark).any():
            typer.echo(meaning)
    ranked = ranking(frame, interval=interval)
    if len(ranked) > 1:
        typer.echo("")
        terminal.show(ranking_table(ranked))
        typer.echo(
            "harm under the worst attack: the larger of accuracy lost to plain averaging without attack and ASR above\n"
            f"its floor, 95 % intervals over seeds ({how}); place: 1 + the number of defenses that are surely ahead;\n"
            "ahead: share of the seeds' resamples in which it is ahead of the next one; no proof below ten seeds"
        )
    missing = unranked(frame, ranked)
    if missing:
        typer.echo(missing)


def unranked(frame: pd.DataFrame, ranked: pd.DataFrame) -> str:
    """Why defenses that were attacked have no place, and cells no part in it; empty where all have."""
    attacked = frame[frame["attacked"]]
    missing = [name for name in dict.fromkeys(attacked["defense"]) if name not in set(ranked["defense"])]
    done = attacked[attacked["state"] == "finished"]
    if done.empty:
        return ""
    unknown = int(done["utility_lost"].isna().sum())
    calm = "since no run without attack is there (of fedavg; of the defense, where the matrix has no fedavg)"
    if unknown == len(done):
        return (
            f"no ranking: nothing tells what the attacks cost, {calm}; "
            'an empty list in "adversary.attacks" of the [matrix] adds them'
        )
    found = []
    if unknown:
        found.append(f"not in the ranking: {words.plural(unknown, 'cell')} with unknown costs of the attack, {calm}")
    if missing:
        found.append(f"not ranked, since some attack was not measured against them: {', '.join(missing)}")
    return "\n".join(found)


def settings_table(table: pd.DataFrame) -> Table:
    """A row a setting: what sets it apart, its seeds, its means."""
    keys = _keys(table)
    more = [name for name in EXTRAS if name in table and table[name].notna().any()]
    rows = []
    for _, row in table.iterrows():
        kept = f"{row['attacker_rows_kept']} of {row['attacker_rows']}" if row["attacker_rows"] else "–"
        seeds = f"{row['seeds']}" if row["seeds"] == row["cells"] else f"{row['seeds']} of {row['cells']}"
        means = [spread(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in MEANS]
        extras = [_extra(row, name) for name in more]
        means += [_number(row["floor"]), kept, *extras]
        rows.append((*(str(row[key]) for key in keys), seeds, *means, row["marks"]))
    heads = (*keys, "seeds", *MEANS.values(), "floor", "kept", *(EXTRAS[name][0] for name in more), "marks")
    return terminal.columns(rows, heads, range(len(keys)))


def _extra(row: Any, name: str) -> str:
    """A further column's mean, with the number of seeds that it is of where they are not all."""
    if math.isnan(row[name]):
        return "–"
    seen = row.get(f"{name}_seeds", row["seeds"])
    return EXTRAS[name][1].format(row[name]) + ("" if seen == row["seeds"] else f" ({seen} of {row['seeds']})")


def ranking_table(table: pd.DataFrame) -> Table:
    """A row a defense."""
    rows = [
        (
            str(row["place"]),
            row["defense"],
            spread(row["worst"], row["low"], row["high"]),
            row["under"],
            _number(row["ahead"]),
            str(row["seeds"]),
            row["marks"],
        )
        for _, row in table.iterrows()
    ]
    return terminal.columns(rows, ("place", "defense", "worst harm", "under", "ahead", "seeds", "marks"), (1, 3))


def differences_table(table: pd.DataFrame) -> Table:
    """A row a pair."""
    if table.empty:
        accepted = "cells that share seeds, and a measure that they have"
        raise FedsimError(f"--against: no seed has the measure with both defenses; accepted: {accepted}")
    keys = _keys(table)
    rows = [
        (
            *(str(row[key]) for key in keys),
            str(row["pairs"]),
            spread(row["difference"], row["low"], row["high"], "+"),
            _number(row["p"]),
            _number(row["p_holm"]),
        )
        for _, row in table.iterrows()
    ]
    return terminal.columns(rows, (*keys, "pairs", "difference", "p", "p (Holm)"), range(len(keys)))


def spread(mean: float, low: float, high: float, sign: str = "") -> str:
    """``0.912 (0.902 to 0.921)``; a mean alone where there is no interval."""
    if math.isnan(mean):
        return "–"
    text = f"{mean:{sign}.3f}"
    return text if math.isnan(low) else f"{text} ({low:{sign}.3f} to {high:{sign}.3f})"


def _keys(table: pd.DataFrame) -> list[str]:
    """What tells the rows apart, the defense and the attack always."""
    from fedsim.bench.results import keys

    return [name for name in keys(table.columns) if name in ("defense", "attack") or table[name].nunique() > 1]


def _number(value: Any) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _no_cell(source: str, where: Sequence[str]) -> str:
    """``no cell``, and which values those columns have that the conditions ask for."""
    from fedsim import bench
    from fedsim.bench.results import condition

    frame = bench.results(source)
    names = [name for name in dict.fromkeys(condition(text).name for text in where) if name in frame]
    known = {name: dict.fromkeys(map(str, frame[name].dropna())) for name in names[:3]}
    there = [f"{name} is one of: {', '.join(each)}" if each else f"{name} is not known" for name, each in known.items()]
    return "; ".join(["no cell", *(each for each in there if len(each) < 1000)])


def _export(frame: pd.DataFrame, form: str, out: Path | None) -> None:
    if form == "parquet":
        if out is None:
            raise typer.BadParameter("--parquet: accepted with --out FILE")
        out.write_bytes(frame.to_parquet(index=False))
        typer.echo(out)
        return
    text = (
        frame.to_csv(index=False) if form == "csv" else frame.to_json(orient="records", indent=1, double_precision=15)
    )
    if out is None:
        typer.echo(text.rstrip("\n"))
    else:
        out.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        typer.echo(out)
