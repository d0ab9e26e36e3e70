"""The table of claims as docs/results/verify.md, with a figure for each paper that has one."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsim.record import make_folder, write_bytes
from fedsim.verify.claim import MEANING, Claim, Measured, Row, claims_of
from fedsim.verify.published import Published, load_published, rounded, save_published
from fedsim.verify.runner import PAPERS, code_of, derived_rows, load, results_of, rows_of, times_of

FIGURES = "verify"
"""Folder of the figures, beside the page."""

HEAD = """# What the papers claim, and what is seen here

Made by `fedsim verify`, never by hand. Means over seeds with Student's interval at 95 %; a claim without an interval
draws nothing, or has run with one seed. A row is judged by its mean; where a seed alone lies outside of what is
accepted, a line below the table names it. In the figures bars and slopes are means over seeds, and curves are those of
seed 0, but for the left-out angles (means), SAM-GS' two objectives and the ReLU students (each seed), and the bars of
memorised labels (seed 0). Every ε is for neighbours = replace_one.
"""


def write_page(runs: str | Path, out: str | Path) -> Path:
    """Write ``verify.md``, its data and the figures into a folder; the page's path.

    A claim that has fewer results in ``runs`` than the page has already, from the same code, keeps what is published.
    """
    folder = Path(out)
    make_folder(folder / FIGURES)
    before = load_published(folder / FIGURES)
    shown = {paper: claims_shown(paper, Path(runs), before) for paper in PAPERS}
    results = {paper: results_shown(claims) for paper, claims in shown.items()}
    rows = {
        paper: [row for each in claims for row in each.rows] + derived_rows(paper, results[paper])
        for paper, claims in shown.items()
    }
    parts = [HEAD, "\n".join(f"- **{verdict}**: {meaning}" for verdict, meaning in MEANING.items())]
    counts: Counter[str] = Counter(row.verdict for own in rows.values() for row in own)
    parts.append(", ".join(f"{counts[verdict]} {verdict}" for verdict in MEANING if counts[verdict]) + ".")
    for paper, claims in shown.items():
        parts.append(f"## {(load(paper).__doc__ or paper).splitlines()[0].rstrip('.')}")
        older = [each.claim.key for each in claims if each.published and not each.published.series]
        if draw(paper, results[paper], folder / FIGURES, older):
            parts.append(f"![{paper}]({FIGURES}/{paper}.png)")
        parts.append(table(rows[paper]))
        parts += [f"- `{row.key}`: {row.expected.differs}" for row in rows[paper] if row.expected.differs]
        parts += [line for each in claims for line in strays(each)]
        facts = [(each, *fact) for each in claims if each.published for fact in each.published.facts.items()]
        parts += [f"- `{each.claim.key}`: {name} {said}" for each, name, said in facts]
        parts += seconds_a_seed(claims)
    kept = [(f"{each.claim.paper}.{each.claim.key}", each.published) for claims in shown.values() for each in claims]
    save_published(folder / FIGURES, [(key, each) for key, each in kept if each])
    page = folder / "verify.md"
    write_bytes(page, ("\n\n".join(parts) + "\n").encode())
    return page


@dataclass(frozen=True)
class Shown:
    """A claim on the page.

    Args:
        claim: whose rows they are.
        rows: its lines.
        published: what stays for the next page; None if nothing was run.
    """

    claim: Claim
    rows: list[Row]
    published: Published | None


def claims_shown(paper: str, runs: Path, before: Mapping[str, Published]) -> list[Shown]:
    """A paper's claims with their results, or with what was published of them by the same code on more seeds."""
    module, shown = load(paper), []
    for each in claims_of(paper):
        rows, code = rows_of(runs, module, each, None), code_of(module, each)
        results = [found for found, _ in results_of(runs, module, each)]
        seeds = len(results) if all(results) else 0
        known = before.get(f"{paper}.{each.key}")
        names = dict(zip(each.rows, rows, strict=True))
        if known and known.fingerprint == code and known.seeds > seeds and known.means.keys() == names.keys():
            rows = [
                replace(row, values=(), failure="", published=(known.means[name], known.ours[name]))
                for name, row in names.items()
            ]
            if not known.series and results and results[0]:
                known = replace(known, series=[rounded(results[0].series)])
            shown.append(Shown(each, rows, known))
            continue
        made = None
        if seeds:
            measured = [found for found in results if found]
            took = times_of(runs, each, seeds)
            made = Published(
                code,
                seeds,
                {name: row.mean for name, row in names.items() if row.mean is not None},
                {name: row.ours for name, row in names.items()},
                measured[0].facts,
                [found.values for found in measured],
                [rounded(found.series) for found in measured],
                [seconds for seconds, _ in took],
                [busy for _, busy in took if busy is not None],
            )
        shown.append(Shown(each, rows, made))
    return shown


def results_shown(claims: Sequence[Shown]) -> dict[str, list[Measured]]:
    """What was found by the claims that have results, of here or published."""
    return {each.claim.key: each.published.results for each in claims if each.published}


def strays(shown: Shown) -> list[str]:
    """A line for each row that is met in the mean and not by each seed: which ones alone would fail."""
    lines = []
    for name, row in zip(shown.claim.rows, shown.rows, strict=True):
        values = [each[name] for each in shown.published.values] if shown.published else []
        out = [(seed, one) for seed, one in enumerate(values) if replace(row, values=[one]).verdict == "fails"]
        if row.verdict != "fails" and out:
            seeds = ", ".join(f"seed {seed} has {one:.4g}" for seed, one in out)
            lines.append(f"- `{row.key}`: accepted in the mean; alone {seeds}")
    return lines


def seconds_a_seed(claims: Sequence[Shown]) -> list[str]:
    """A line that says how long each claim takes, as far as it is known; none if nothing is."""
    known = [(each.claim.key, each.published.seconds) for each in claims if each.published and each.published.seconds]
    said = [f"`{key}` {sum(seconds) / len(seconds):.1f}" for key, seconds in known]
    return [f"Seconds a seed, on a machine that did other things beside: {', '.join(said)}."] if said else []


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of rows."""
    head = ("claim", "source", "expected", "accepted", "ours", "verdict")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        want = row.expected
        lines.append((want.claim, row.source, want.expected, want.tolerance, row.ours, f"**{row.verdict}**"))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def draw(paper: str, found: Mapping[str, Sequence[Measured]], out: Path, older: Sequence[str] = ()) -> Path | None:
    """The paper's figure, ``NAME.png``, if its file draws one and any claim has results.

    The file has ``draw(figure, found)``, given a matplotlib figure and what each claim found, by seed; ``DRAWN`` names
    the claims that must be among them (none without), ``SIZE`` the figure's in inches (7 × 3.2 without). A panel names
    the claims that it shows in its ``gid``; one that is empty, as most are with ``--quick``, says why.

    Args:
        paper: of PAPERS.
        found: what the page shows of each claim that has results, by seed.
        out: folder of the figures.
        older: claims that were published without their curves.
    """
    module: Any = load(paper)
    if not hasattr(module, "draw") or not found or not set(getattr(module, "DRAWN", ())) <= found.keys():
        return None
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=getattr(module, "SIZE", (7, 3.2)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        module.draw(figure, {key: list(results) for key, results in found.items()})
        name_empty(figure, older)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": None})
    make_folder(out)
    write_bytes(out / f"{paper}.png", drawn.getvalue())
    return out / f"{paper}.png"


def name_empty(figure: Any, older: Sequence[str] = ()) -> None:
    """Say why in the panels of a matplotlib figure that show nothing: not run, or run when curves were not kept.

    A panel that shows some of its claims' curves says below its title how many others were not kept.
    """
    for axes in figure.get_axes():
        missing = set((axes.get_gid() or "").split()) & set(older)
        if axes.axison and not axes.has_data():
            axes.set(xticks=[], yticks=[])
            said = "measured earlier,\ncurves not kept" if missing else "not run"
            axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center", color="0.5")
        elif missing and axes.lines:
            said = f"{len(missing)} measured earlier, curves not kept"
            axes.text(0.5, 0.99, said, transform=axes.transAxes, ha="center", va="top", color="0.5", fontsize=6)
