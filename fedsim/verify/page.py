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
from fedsim.verify.published import Published, load_published, save_published
from fedsim.verify.runner import PAPERS, code_of, load, results_of, rows_of

FIGURES = "verify"
"""Folder of the figures, beside the page."""

HEAD = """# What the papers claim, and what is seen here

Made by `fedsim verify`, never by hand. Means over seeds with Student's interval at 95 %; a claim without an interval
draws nothing, or has run with one seed.
"""


def write_page(runs: str | Path, out: str | Path) -> Path:
    """Write ``verify.md``, its data and the figures into a folder; the page's path.

    A claim that has fewer results in ``runs`` than the page has already, from the same code, keeps what is published.
    """
    folder = Path(out)
    make_folder(folder / FIGURES)
    before = load_published(folder / FIGURES)
    shown = {paper: claims_shown(paper, Path(runs), before) for paper in PAPERS}
    rows = {paper: [row for each in claims for row in each.rows] for paper, claims in shown.items()}
    parts = [HEAD, "\n".join(f"- **{verdict}**: {meaning}" for verdict, meaning in MEANING.items())]
    counts: Counter[str] = Counter(row.verdict for own in rows.values() for row in own)
    parts.append(", ".join(f"{counts[verdict]} {verdict}" for verdict in MEANING if counts[verdict]) + ".")
    for paper, claims in shown.items():
        parts.append(f"## {(load(paper).__doc__ or paper).splitlines()[0].rstrip('.')}")
        if all(each.here for each in claims if each.published) or not (folder / FIGURES / f"{paper}.png").exists():
            draw(paper, Path(runs), folder / FIGURES)
        if (folder / FIGURES / f"{paper}.png").exists():
            parts.append(f"![{paper}]({FIGURES}/{paper}.png)")
        parts.append(table(rows[paper]))
        parts += [f"- `{row.key}`: {row.expected.differs}" for row in rows[paper] if row.expected.differs]
        facts = [(each, *fact) for each in claims if each.published for fact in each.published.facts.items()]
        parts += [f"- `{each.claim.key}`: {name} {said}" for each, name, said in facts]
    found = [(f"{each.claim.paper}.{each.claim.key}", each.published) for claims in shown.values() for each in claims]
    save_published(folder / FIGURES, [(key, each) for key, each in found if each])
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
        here: the lines are of results in the folder of runs.
    """

    claim: Claim
    rows: list[Row]
    published: Published | None
    here: bool


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
            shown.append(Shown(each, rows, known, False))
            continue
        means = {name: row.mean for name, row in names.items() if row.mean is not None}
        ours = {name: row.ours for name, row in names.items()}
        made = Published(code, seeds, means, ours, results[0].facts if results[0] else {}) if seeds else None
        shown.append(Shown(each, rows, made, bool(seeds)))
    return shown


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of rows."""
    head = ("claim", "source", "expected", "accepted", "ours", "verdict")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        want = row.expected
        lines.append((want.claim, row.source, want.expected, want.tolerance, row.ours, f"**{row.verdict}**"))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def draw(paper: str, runs: Path, out: Path) -> Path | None:
    """The paper's figure, ``NAME.png``, if its file draws one and the claims that it needs have results.

    A panel of a claim that has none, as of most with ``--quick``, says so.

    The file has ``draw(figure, found)``, given a matplotlib figure and what each claim found, by seed; ``DRAWN`` names
    the claims that must be among them (all without), ``SIZE`` the figure's in inches (7 × 3.2 without).
    """
    module: Any = load(paper)
    if not hasattr(module, "draw"):
        return None
    found: dict[str, list[Measured]] = {}
    for each in claims_of(paper):
        results = [result for result, _ in results_of(runs, module, each) if result is not None]
        if results:
            found[each.key] = results
    needed = getattr(module, "DRAWN", [each.key for each in claims_of(paper)])
    if not set(needed) <= found.keys():
        return None
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=getattr(module, "SIZE", (7, 3.2)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        module.draw(figure, found)
        name_empty(figure)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": None})
    make_folder(out)
    write_bytes(out / f"{paper}.png", drawn.getvalue())
    return out / f"{paper}.png"


def name_empty(figure: Any) -> None:
    """Write "not run" into the panels of a matplotlib figure that show nothing."""
    for axes in figure.get_axes():
        if axes.axison and not axes.has_data():
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", color="0.5")
